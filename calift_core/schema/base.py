"""The base of every schema model."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from calift_core.untrusted import check_depth

#: An object whose fields are checked elsewhere, and which nests no deeper than that can follow.
JsonObject = Annotated[dict[str, Any], AfterValidator(check_depth)]


class Frozen(BaseModel):
    """Immutable, unknown keys refused, no inf or nan."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


Weight = Annotated[float, Field(ge=0, le=1000)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10_000)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


def option(default: Any, title: str, description: str, **limits: Any) -> Any:
    """A field with what people read of it."""
    return Field(default=default, title=title, description=description, **limits)
