"""Calls that compare runs and decide."""

import os
from pathlib import Path

from calift_core.client.connection import Connection, url_path
from calift_core.client.operations import Operation, OperationOf
from calift_core.schema.wire.answers import (
    BoundMonitor,
    Decision,
    Leaders,
    Ledger,
    TextFeatures,
    TriedPicture,
)
from calift_core.schema.wire.ood import OodDetection
from calift_core.schema.wire.queries import (
    BoundQuery,
    CompareQuery,
    DecisionQuery,
    LeadersQuery,
    LedgerQuery,
    OodQuery,
    TextQuery,
)
from calift_core.schema.wire.results import Comparison

#: A model is loaded, and others may be before it.
_TRY_S = 300.0


class AnswerCalls(Connection):
    """Answers over several runs."""

    compare = Operation("/compare", CompareQuery, Comparison)
    """Put 2 to 10 runs side by side."""

    leaders = Operation("/compare/leaders", LeadersQuery, Leaders)
    """Which of 2 to 10 runs may be the best, on ID data, over shifts and corruptions."""

    ledger = OperationOf("/runs/{}/ledger", LedgerQuery, Ledger)
    """What a run has gained and lost against another on the data that both were tested on."""

    decision = OperationOf("/runs/{}/decision", DecisionQuery, Decision)
    """A threshold for at most so many errors among what is kept, and what it gives."""

    ood = OperationOf("/runs/{}/ood", OodQuery, OodDetection)
    """How well a run's scores tell its ID test images from each shift."""

    bound = Operation("/bound", BoundQuery, BoundMonitor)
    """Finished runs on a suite with the bound's terms, and how these rank with the errors."""

    text_features = OperationOf("/runs/{}/text-features", TextQuery, TextFeatures, _TRY_S)
    """A unit vector of a text, by a run's own text tower; see `samples`, which ranks by it."""

    def try_picture(self, run_id: str, picture: bytes | str | os.PathLike[str]) -> TriedPicture:
        """What a run says of a picture, and which evaluated images it resembles.

        The first question to a run takes the seconds that its model takes to be loaded.

        Args:
            run_id: a finished run.
            picture: a file, or its bytes.

        Raises:
            ServiceError: 422 with the code `IMAGE_UNREADABLE` where it is no picture.
        """
        body = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
        path = url_path("/runs", run_id, "try")
        return self._read(self._send("POST", path, body=body, wait_s=_TRY_S), TriedPicture)
