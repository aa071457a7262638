"""Operations whose parameters a query declares, by name or as the query itself.

`client.measures(ID, n_bins=10)` is `client.measures(ID, MetricsQuery(n_bins=10))`; editors and type
checkers know the names from the query.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from calift_core.client.connection import Connection, url_path
from calift_core.schema.wire.queries import Query

_P = ParamSpec("_P")
_Q = TypeVar("_Q", bound=Query)
_T = TypeVar("_T")
_Q_contra = TypeVar("_Q_contra", bound=Query, contravariant=True)
_T_co = TypeVar("_T_co", covariant=True)


class _Call(Protocol[_Q_contra, _P, _T_co]):
    @overload
    def __call__(self, query: _Q_contra, /) -> _T_co: ...

    @overload
    def __call__(self, *args: _P.args, **params: _P.kwargs) -> _T_co: ...


class _CallOf(Protocol[_Q_contra, _P, _T_co]):
    @overload
    def __call__(self, target: str, query: _Q_contra, /) -> _T_co: ...

    @overload
    def __call__(self, target: str, /, *args: _P.args, **params: _P.kwargs) -> _T_co: ...


class _Get(Generic[_Q, _P, _T]):
    """GET of a path, in which `{}` stands for a run's or an evaluation's id."""

    def __init__(
        self, path: str, query: Callable[_P, _Q], answer: type[_T], wait_s: float | None = None
    ) -> None:
        self._path, self._query = path, cast("type[Query]", query)
        self._answer, self._wait_s = answer, wait_s

    def __set_name__(self, owner: type, name: str) -> None:
        self.__name__ = name

    def _call(self, client: Connection, *given: Any, **params: Any) -> _T:
        target, query = (*given, None, None)[:2] if "{}" in self._path else ("", (*given, None)[0])
        path = self._path.format(url_path("", target)[1:])
        return client._ask(path, self._answer, self._query.of(query, params), wait_s=self._wait_s)


class Operation(_Get[_Q, _P, _T]):
    """One that is of nothing in particular, such as a list."""

    def __get__(self, client: Connection, owner: type) -> _Call[_Q, _P, _T]:
        return cast("_Call[_Q, _P, _T]", partial(self._call, client))


class OperationOf(_Get[_Q, _P, _T]):
    """One of a run or an evaluation."""

    @overload
    def __get__(self, client: None, owner: type) -> Callable[[Connection, str, _Q], _T]: ...

    @overload
    def __get__(self, client: Connection, owner: type) -> _CallOf[_Q, _P, _T]: ...

    def __get__(self, client: Connection | None, owner: type) -> Any:
        return self if client is None else partial(self._call, client)

    def __call__(self, client: Connection, target: str, query: _Q) -> _T:
        """As an unbound method: of a client that is given first."""
        return self._call(client, target, query)
