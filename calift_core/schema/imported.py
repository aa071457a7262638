"""What stands for a RunSpec in a run whose predictions were imported: no training, one data set."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator

from calift_core.errors import SpecError
from calift_core.schema.base import Frozen
from calift_core.schema.methods import MethodBase
from calift_core.schema.spec import EvaluationSpec, ModelSpec, plain_name, problems_of


class Imported(MethodBase):
    """Predictions that were made elsewhere. Not in `METHOD_SPECS`: nothing can be submitted."""

    title: ClassVar[str] = "Imported"
    summary: ClassVar[str] = "Predictions that were made elsewhere and brought in as a file."
    source: ClassVar[str] = "calift import-predictions"
    trains: ClassVar[bool] = False

    kind: Literal["imported"] = "imported"


class ImportedSuite(Frozen):
    """Which data the first predictions were of."""

    id: str = Field(min_length=1, max_length=200)


class ImportedSpec(Frozen):
    """The spec of an imported run, with the fields of a RunSpec that have a meaning for it."""

    name: str = Field(min_length=1, max_length=120)
    model: ModelSpec = ModelSpec(name="imported", pretrained=None)
    method: Imported = Imported()
    suite: ImportedSuite
    evaluation: EvaluationSpec = EvaluationSpec()
    tags: tuple[Annotated[str, Field(min_length=1, max_length=40)], ...] = ()
    notes: str = Field(default="", max_length=10_000)

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        return plain_name(name)

    @classmethod
    def checked(cls, **values: object) -> ImportedSpec:
        """The spec of these values, checked.

        Raises:
            SpecError: a value is not allowed.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SpecError("; ".join(p["message"] for p in problems_of(error))) from error

    def content_hash(self) -> str:
        """SHA-256 (hex) of the spec without name, tags and notes."""
        body = self.model_dump(mode="json", exclude={"name", "tags", "notes"})
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()
