"""The service's check of an uploaded predictions file, in a process of its own."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calift_core.analysis.imported import evaluation_of
from calift_core.errors import CaliftError, PredictionsError
from calift_core.files import atomic_write_json
from calift_core.predictions.foreign.load import load_predictions
from calift_core.predictions.foreign.source import MAX_BYTES
from calift_core.predictions.types import PredictionsMetadata
from calift_core.predictions.write import write_predictions
from calift_core.schema.report import EvaluationReport
from calift_core.schema.spec import EvaluationSpec


@dataclass(frozen=True)
class Checked:
    """What the check of an upload found; `stored` is a file of our own making."""

    stored: Path
    sha256: str
    metadata: PredictionsMetadata
    evaluation: EvaluationReport | None


def check_upload(folder: Path, memory_bytes: int | None) -> None:
    """Check `folder/upload`; leave `stored.parquet` and `checked.json`, or an error in the latter.

    For a process of its own: a hostile file may make the decoder take all memory that it may have,
    or end it.
    """
    if memory_bytes is not None and sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    job = json.loads((folder / "job.json").read_bytes())
    try:
        predictions = load_predictions(
            folder / "upload", dataset=job["dataset"], role=job["role"], max_bytes=MAX_BYTES
        )
        stored = folder / "stored.parquet"
        sha256 = write_predictions(stored, predictions)
        evaluation = evaluation_of(predictions, EvaluationSpec(), sha256)
        answer: dict[str, Any] = {
            "sha256": sha256,
            "metadata": asdict(predictions.metadata),
            "evaluation": evaluation.model_dump(mode="json") if evaluation else None,
        }
    except CaliftError as error:
        message = error.message.replace(f"{folder / 'upload'}", "the upload")
        answer = {"code": error.code, "message": message, "hint": error.hint}
    except MemoryError:
        answer = {
            "code": PredictionsError.code,
            "message": "the upload must be decoded within the memory that an import may take",
            "hint": "",
        }
    atomic_write_json(folder / "checked.json", answer)


def read_check(folder: Path) -> Checked:
    """Read what `check_upload` left.

    Raises:
        PredictionsError: the upload was refused, or the check left nothing.
    """
    try:
        answer = json.loads((folder / "checked.json").read_bytes())
    except FileNotFoundError:
        raise PredictionsError(
            "the upload must be a predictions file that can be decoded, got one that ended the "
            "decoder"
        ) from None
    if "code" in answer:
        raise PredictionsError(answer["message"], hint=answer["hint"])
    evaluation = answer["evaluation"]
    return Checked(
        stored=folder / "stored.parquet",
        sha256=answer["sha256"],
        metadata=PredictionsMetadata(**answer["metadata"]),
        evaluation=EvaluationReport.model_validate(evaluation) if evaluation else None,
    )


if __name__ == "__main__":
    check_upload(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
