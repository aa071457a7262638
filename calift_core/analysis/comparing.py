"""Models on the very same samples: pairs and confidence sets of a data set, and over several."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from calift_core import calibration
from calift_core.analysis.library import PredictionsFile
from calift_core.calibration import SampleScores
from calift_core.calibration.bins import Doubles
from calift_core.calibration.compare import Together
from calift_core.predictions.shared import shared_samples

METRICS = ("accuracy", "ece", "nll", "brier")
#: What a metric's differences are decided on, where that is not the metric itself.
DECIDES = {"ece": "squared_ece"}
#: Most and fewest draws of a data set: a p-value at 0.05 is known to ± 0.003 and to ± 0.007.
_MOST, _FEWEST = 5000, 1000
#: Draws times samples of one data set, which bounds its time.
_CELLS = 100_000_000


def resamples_for(n: int) -> int:
    """Draws of n samples: 5,000 up to 20,000 samples, 1,000 from 100,000 on."""
    return int(min(_MOST, max(_FEWEST, _CELLS // n)))


@dataclass(frozen=True, eq=False)
class Shared:
    """The samples that several models were all evaluated on, in the order of their ids.

    Attributes:
        complete: no model has seen a sample that another has not.
    """

    scores: Mapping[str, SampleScores]
    together: Together
    complete: bool

    def pair(self, run: str, base: str) -> dict[str, Any]:
        """The number of samples and a row a metric of `run` minus `base`."""
        return {"n": self.together.n, "rows": [self._row(run, base, metric) for metric in METRICS]}

    def _row(self, run: str, base: str, metric: str) -> dict[str, Any]:
        found = self.together.difference(run, base, DECIDES.get(metric, metric))
        row: dict[str, Any] = {
            "metric": metric,
            "baseline": found.b,
            "value": found.a,
            "difference": found.difference,
            "interval": (found.low, found.high),
            "distinguishable": found.distinguishable,
        }
        if metric == "ece":
            squared = {k: row[k] for k in ("baseline", "value", "difference", "interval")}
            value, baseline = (calibration.ece(self.scores[name]) for name in (run, base))
            row |= {"baseline": baseline, "value": value, "difference": value - baseline,
                    "interval": None, "squared": squared}  # fmt: skip
        return row


def share(
    files: Mapping[str, PredictionsFile],
    scored: Callable[[str], SampleScores],
    metrics: Sequence[str] = METRICS,
) -> Shared:
    """Bring models to the samples that all of them saw.

    Draws depend on which units there are and on nothing else: data sets of the same source images
    are drawn together, so that what they have in common is allowed for, and others apart.

    Args:
        scored: gives a name's scores in stored order.

    Raises:
        UnpairedError: two of them share no samples, have other classes, or label a sample
            differently.
    """
    first = next(iter(files.values()))
    places, kept = {}, np.arange(len(first))
    for name, file in files.items():
        in_first, in_own = _positions(first, file)
        places[name] = (in_first, in_own)
        if len(in_first) < len(first):
            kept = np.intersect1d(kept, in_first)
    kept = kept[np.argsort(first.ids[kept])]
    clusters = None if first.clusters is None else first.clusters[kept]
    scores = {}
    for name, (in_first, in_own) in places.items():
        position = np.full(len(first), -1, dtype=np.int64)
        position[in_first] = in_own
        scores[name] = scored(name).take(position[kept])
    together = Together(
        scores,
        metrics=[DECIDES.get(metric, metric) for metric in metrics],
        n_resamples=resamples_for(len(kept)),
        clusters=clusters,
        seed=_seed(first.ids[kept] if clusters is None else np.unique(clusters)),
    )
    return Shared(scores, together, all(len(file) == len(kept) for file in files.values()))


def _positions(
    a: PredictionsFile, b: PredictionsFile
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """As `shared_samples`, at once where both hold the same samples in the same order."""
    same = (
        a.metadata.class_names == b.metadata.class_names
        and np.array_equal(a.ids, b.ids)
        and np.array_equal(a.labels, b.labels)
    )
    at = np.arange(len(a))
    return (at, at) if same else shared_samples(a, b)


def _seed(units: npt.NDArray[np.str_]) -> int:
    return zlib.crc32(np.ascontiguousarray(units).tobytes())


@dataclass(frozen=True, eq=False)
class Drawn:
    """What confidence sets over several data sets need of one: values and noise of each model.

    Attributes:
        of: metric → values (J,) and noise (R, J) about its mean.
        n_clusters: independent units.
    """

    names: Sequence[str]
    of: Mapping[str, tuple[Doubles, npt.NDArray[np.float32]]]
    n: int
    n_clusters: int

    @classmethod
    def from_together(cls, found: Together) -> Drawn:
        """Keep the draws, to seven digits, and leave the samples."""
        of = {}
        for metric in (DECIDES.get(metric, metric) for metric in METRICS):
            noise = found.noise(metric)
            of[metric] = found.values(metric), (noise - noise.mean(axis=0)).astype(np.float32)
        return cls(tuple(found.names), of, found.n, found.n_clusters)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(values.nbytes + noise.nbytes for values, noise in self.of.values())

    def values(self, metric: str) -> Doubles:
        """Values (J,) on the samples as they are."""
        return self.of[metric][0]

    def noise(self, metric: str) -> Doubles:
        """Values (R, J) on shared draws."""
        return self.of[metric][1].astype(np.float64)
