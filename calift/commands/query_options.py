"""Options of a command, made of the fields of a query."""

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from pydantic.fields import FieldInfo

from calift_core.schema.wire.queries import Query

Command = Callable[..., None]
#: Fields whose option is called otherwise.
_NAMES = {"n_bins": "--bins"}


def takes(
    kind: type[Query], *, arguments: tuple[str, ...] = (), without: tuple[str, ...] = ()
) -> Callable[[Command], Command]:
    """Replace a command's parameter `query` by an option for each of the query's fields.

    Args:
        kind: the query; the command gets one that is checked.
        arguments: fields that are typed without a name.
        without: fields that are no options: `cursor`, and what the command asks for by itself.
    """
    fields = {n: f for n, f in kind.model_fields.items() if n not in {"cursor", "bin", *without}}

    def decorate(command: Command) -> Command:
        hints = get_type_hints(command, include_extras=True)

        def parameters() -> Iterator[inspect.Parameter]:
            for name, own in inspect.signature(command).parameters.items():
                if name != "query":
                    yield own.replace(annotation=hints[name], kind=own.KEYWORD_ONLY)
                    continue
                for field_name, field in fields.items():
                    yield _parameter(field_name, field, is_argument=field_name in arguments)

        @wraps(command)
        def typed(**given: Any) -> None:
            params = {name: given.pop(name) for name in fields}
            query = kind.of(params={n: v for n, v in params.items() if v is not None})
            command(**given, query=query)

        made = list(parameters())
        typed.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
        typed.__annotations__ = {p.name: p.annotation for p in made}
        del typed.__wrapped__
        return typed

    return decorate


def _parameter(name: str, field: FieldInfo, *, is_argument: bool) -> inspect.Parameter:
    annotation, default = _plain(field.annotation), field.default
    help_text = field.description or ""
    if field.examples:
        help_text += f", such as {field.examples[0]!r}"
    if is_argument:
        info: Any = typer.Argument(help=help_text)
    else:
        bounds: dict[str, Any] = {
            "min": next((m.ge for m in field.metadata if hasattr(m, "ge")), None),
            "max": next((m.le for m in field.metadata if hasattr(m, "le")), None),
        }
        flag = _NAMES.get(name, "--" + name.replace("_", "-"))
        # Of a switch that is on, typer offers the opposite as well.
        names = () if default is True else (flag,)
        info = typer.Option(*names, help=help_text, **bounds)
    if get_origin(annotation) is list:
        annotation, default = annotation | None, None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if field.is_required() else default,
        annotation=Annotated[annotation, info],
    )


def _plain(annotation: Any) -> Any:
    """A type without what pydantic knows of it; several values are a list."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain(inner[0])
    if origin is tuple:
        one = _plain(inner[0])
        return list[str if get_origin(one) is Literal else one]  # type: ignore[misc]
    if type(None) in inner:
        return Union[tuple(_plain(one) for one in inner)]  # noqa: UP007
    return annotation
