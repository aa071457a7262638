"""The base of every schema model."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from calift_core.untrusted import check_depth

#: An object whose fields are checked elsewhere, and which nests no deeper than that can follow.
JsonObject = Annotated[dict[str, Any], AfterValidator(check_depth)]


class Frozen(BaseModel):
    """Immutable, unknown keys refused, no inf or nan."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )
