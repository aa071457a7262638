"""Calls that compare runs and decide."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from calift_core.client.connection import Connection, at
from calift_core.schema.wire.answers import BoundMonitor, Decision, Leaders, Ledger, TriedPicture
from calift_core.schema.wire.results import (
    Comparison,
)

#: A model is loaded, and others may be before it.
_TRY_S = 300.0


class AnswerCalls(Connection):
    """Answers over several runs."""

    def compare(
        self,
        run_ids: Sequence[str],
        baseline: str | None = None,
        *,
        datasets: Sequence[str] = (),
        paired: bool = True,
    ) -> Comparison:
        """Put 2 to 10 runs side by side.

        Args:
            run_ids: the runs.
            baseline: one of them; None: the first.
            datasets: what differences and confidence sets are wanted on; none: all.
            paired: make differences and confidence sets at all.
        """
        return self._get(
            "/compare",
            Comparison,
            run_id=list(run_ids),
            baseline=baseline,
            dataset=list(datasets),
            paired=paired,
        )

    def leaders(self, run_ids: Sequence[str]) -> Leaders:
        """Which of 2 to 10 runs may be the best, on ID data, over shifts and corruptions."""
        return self._get("/compare/leaders", Leaders, run_id=list(run_ids))

    def ledger(
        self, run_id: str, against: str, *, datasets: Sequence[str] = (), step: float = 0.1
    ) -> Ledger:
        """What a run has gained and lost against another on the data that both were tested on.

        Args:
            run_id: the run.
            against: another run, such as its zero-shot model.
            datasets: names; none: all.
            step: by how much a confidence must differ to have moved.
        """
        return self._get(
            at("runs", run_id, "ledger"),
            Ledger,
            against=against,
            dataset=list(datasets),
            step=step,
        )

    def decision(
        self, run_id: str, *, risk: float = 0.05, level: float = 0.95, datasets: Sequence[str] = ()
    ) -> Decision:
        """A threshold for at most so many errors among what is kept, and what it gives.

        Args:
            run_id: a run with predictions of its ID validation or calibration part.
            risk: largest share of errors among what is kept.
            level: how often the promise holds.
            datasets: names; none: all that the run was tested on.
        """
        return self._get(
            at("runs", run_id, "decision"),
            Decision,
            risk=risk,
            level=level,
            dataset=list(datasets),
        )

    def bound(self, suite: str) -> BoundMonitor:
        """Finished runs on a suite with the bound's terms, and how these rank with the errors."""
        return self._get("/bound", BoundMonitor, suite=suite)

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
        path = at("/runs", run_id, "try")
        return self._read(self._send("POST", path, body=body, wait_s=_TRY_S), TriedPicture)
