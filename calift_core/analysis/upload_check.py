"""The service's check of an uploaded predictions file, in a process of its own."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calift_core.analysis.imported import evaluation_of
from calift_core.child_process import answer_all, limit
from calift_core.errors import CaliftError, PredictionsError
from calift_core.predictions.foreign.load import load_predictions
from calift_core.predictions.foreign.source import MAX_BYTES
from calift_core.predictions.types import PredictionsMetadata, Role
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


def check_upload(folder: Path, dataset: str | None, role: Role | None) -> dict[str, Any]:
    """Check `folder/upload` and leave `stored.parquet`; what is known of it, as JSON knows it.

    For a process of its own: a hostile file may make the decoder take all memory that it may have,
    or end it.

    Raises:
        CaliftError: the upload is refused.
        PredictionsError: it takes too much memory.
    """
    try:
        predictions = load_predictions(
            folder / "upload", dataset=dataset, role=role, max_bytes=MAX_BYTES
        )
        sha256 = write_predictions(folder / "stored.parquet", predictions)
        evaluation = evaluation_of(predictions, EvaluationSpec(), sha256)
    except CaliftError as error:
        message = error.message.replace(f"{folder / 'upload'}", "the upload")
        raise PredictionsError(message, hint=error.hint) from None
    except MemoryError:
        raise PredictionsError(
            "the upload must be decoded within the memory that an import may take"
        ) from None
    return {
        "sha256": sha256,
        "metadata": asdict(predictions.metadata),
        "evaluation": evaluation.model_dump(mode="json") if evaluation else None,
    }


def checked(folder: Path, answer: dict[str, Any]) -> Checked:
    """What `check_upload` said of a folder."""
    evaluation = answer["evaluation"]
    return Checked(
        stored=folder / "stored.parquet",
        sha256=answer["sha256"],
        metadata=PredictionsMetadata(**answer["metadata"]),
        evaluation=EvaluationReport.model_validate(evaluation) if evaluation else None,
    )


def _answer(question: bytes) -> bytes:
    request = json.loads(question)
    return json.dumps(check_upload(Path(request.pop("folder")), **request)).encode()


if __name__ == "__main__":
    limit(int(sys.argv[1]))
    answer_all(b"{}", _answer)
