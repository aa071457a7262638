"""One finding of `calift doctor`."""

from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One finding. `hint` says what to do when it is not ok."""

    name: str
    state: State
    detail: str
    hint: str = ""

    def as_dict(self) -> dict[str, str]:
        """A JSON object."""
        return asdict(self)
