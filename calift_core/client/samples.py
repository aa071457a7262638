"""Calls about single samples and their images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from calift_core.client.connection import Connection, at
from calift_core.schema.wire.results import (
    AS_EVALUATED,
    AskedBinning,
    CorrectedManifest,
    CorrectionsAsked,
    DoubtfulLabels,
    LabelCorrection,
    SampleHistory,
    SampleLooks,
    SamplePage,
    SampleTraits,
)


class SampleCalls(Connection):
    """Samples of an evaluation."""

    def samples(
        self,
        evaluation_id: str,
        *,
        where: str | None = None,
        lower: float | None = None,
        upper: float | None = None,
        bin: int | None = None,
        binning: AskedBinning = AS_EVALUATED,
        against: str | None = None,
        outcome: Literal["gained", "lost", "both", "neither"] | None = None,
        sort: Literal["stored", "confidence", "gap", "nll", "change"] = "stored",
        descending: bool = False,
        top: int = 5,
        temperature: float | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> SamplePage:
        """Samples of an evaluation one by one, with what the model says of each.

        Args:
            evaluation_id: of an evaluation.
            where: such as `confidence >= 0.9 and not correct`, as for `slices`.
            lower: the confidence lies above it.
            upper: the confidence is at most this; with `lower`, a bin of a diagram.
            bin: index of a bin under `binning`, from 0 and empty ones counted.
            binning: of `bin`.
            against: another model's evaluation on the same samples.
            outcome: against that one: right now and wrong before (`gained`), `lost`, right in
                `both`, or `neither`.
            sort: `change` is the gain in the true class's log-likelihood over `against`.
            descending: largest first.
            top: how many of the most probable classes each sample comes with, at most 10.
            temperature: None is as it was evaluated.
            cursor: `next_cursor` of the page before.
            limit: at most 200.
        """
        return self._get(
            at("/evaluations", evaluation_id, "samples"),
            SamplePage,
            where=where,
            lower=lower,
            upper=upper,
            bin=bin,
            **binning.model_dump(),
            against=against,
            outcome=outcome,
            sort=sort,
            descending=descending,
            top=top,
            temperature=temperature,
            cursor=cursor,
            limit=limit,
        )

    def sample_traits(
        self,
        evaluation_id: str,
        *,
        where: str | None = None,
        lower: float | None = None,
        upper: float | None = None,
        bin: int | None = None,
        binning: AskedBinning = AS_EVALUATED,
        against: str | None = None,
        outcome: Literal["gained", "lost", "both", "neither"] | None = None,
        temperature: float | None = None,
    ) -> SampleTraits:
        """Classes that the chosen samples have more often than the rest; see `samples`."""
        return self._get(
            at("/evaluations", evaluation_id, "samples", "traits"),
            SampleTraits,
            where=where,
            lower=lower,
            upper=upper,
            bin=bin,
            **binning.model_dump(),
            against=against,
            outcome=outcome,
            temperature=temperature,
        )

    def sample_looks(
        self,
        evaluation_id: str,
        *,
        where: str | None = None,
        lower: float | None = None,
        upper: float | None = None,
        bin: int | None = None,
        binning: AskedBinning = AS_EVALUATED,
        against: str | None = None,
        outcome: Literal["gained", "lost", "both", "neither"] | None = None,
        temperature: float | None = None,
        most: int = 60,
    ) -> SampleLooks:
        """How the chosen images look against the rest; see `samples`.

        Of both sides at most `most` images are measured.
        """
        return self._get(
            at("/evaluations", evaluation_id, "samples", "looks"),
            SampleLooks,
            where=where,
            lower=lower,
            upper=upper,
            bin=bin,
            **binning.model_dump(),
            against=against,
            outcome=outcome,
            temperature=temperature,
            most=most,
        )

    def doubtful_labels(
        self, evaluation_id: str, *, threshold: float = 0.8, top: int = 5, limit: int = 50
    ) -> DoubtfulLabels:
        """Likely label errors: all runs of the suite say the same other class, and surely."""
        return self._get(
            at("/evaluations", evaluation_id, "samples", "doubtful"),
            DoubtfulLabels,
            threshold=threshold,
            top=top,
            limit=limit,
        )

    def correct_labels(
        self, evaluation_id: str, corrections: Sequence[LabelCorrection]
    ) -> CorrectedManifest:
        """The manifest of an evaluation's data with some labels corrected; nothing is written.

        Args:
            evaluation_id: of an evaluation on images that are files, not on a corruption.
            corrections: of some of its samples; see `doubtful_labels`.

        Raises:
            ServiceError: 422 where they are of other data or name other classes; says which.
        """
        path = at("/evaluations", evaluation_id, "corrected")
        asked = CorrectionsAsked(corrections=list(corrections))
        return self._read(self._send("POST", path, body=asked), CorrectedManifest)

    def sample_answers(
        self, evaluation_id: str, sample_id: str, *, run_id: str | None = None, top: int = 5
    ) -> SampleHistory:
        """What a run says of one image on ID data and under each corruption.

        Args:
            evaluation_id: of an evaluation that has the sample.
            sample_id: its id there.
            run_id: whose answers; None: those of the evaluation's own run.
            top: how many of the most probable classes each answer comes with.
        """
        path = at("/samples", evaluation_id, sample_id, "answers")
        return self._get(path, SampleHistory, run_id=run_id, top=top)

    def thumbnail(self, evaluation_id: str, sample_id: str, *, size: int = 160) -> bytes:
        """The image of a sample as the model saw it, as PNG or JPEG.

        Args:
            evaluation_id: of the evaluation that it is in.
            sample_id: its id there.
            size: pixels of its longer side, from 64 to 512.

        Raises:
            ServiceError: 404 with the code `NO_IMAGE` where no image of it is known.
        """
        return self._picture(at("/samples", evaluation_id, sample_id, "thumbnail"), size)

    def training_thumbnail(self, run_id: str, sample_id: str, *, size: int = 160) -> bytes:
        """A training image that `try_picture` named, as PNG or JPEG.

        Args:
            run_id: of the run that was asked.
            sample_id: the image's id.
            size: pixels of its longer side, from 64 to 512.

        Raises:
            ServiceError: 404 where the run kept no features of it, or no image of it is known.
        """
        return self._picture(at("/runs", run_id, "training-images", sample_id, "thumbnail"), size)

    def _picture(self, path: str, size: int) -> bytes:
        return self._send("GET", path, params={"size": size}, headers={"Accept": "*/*"}).content
