"""Images without labels: how right the model is likely to be, whether they have drifted."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calift_core.analysis.choosing import calibrated
from calift_core.calibration.drift import Familiarity, KnownSets, energy_drift
from calift_core.calibration.ood import ALARM_RATE
from calift_core.calibration.unlabelled import (
    DIFFERENCE,
    REGRESSED,
    AccuracyEstimate,
    EstimatorError,
    Unlabelled,
    estimate_regressed,
    recommended,
)
from calift_core.errors import CaliftError, DataError, InterruptedRunError, UnreadableImageError
from calift_core.schema.unlabelled import (
    DRIFTED,
    Drifted,
    Expected,
    Familiar,
    NoneOfTheseShare,
    Share,
    Unusual,
    Watched,
)
from calift_core.shipping.classifier import BATCH_SIZE, Answers, CalibratedClassifier, together
from calift_core.shipping.reference import Reference
from calift_core.words import percent

#: Images that are shown as the most unusual.
SHOWN = 12
#: An estimate that was further off on average, a fraction, is not told of images that drifted.
TRUSTED = 0.06


def _unknown(best: Expected, drift: Drifted, familiar: Familiarity | None, own: str) -> str | None:
    """Why an expected accuracy cannot be used, None where it can."""
    if drift.p_value >= DRIFTED:
        return None
    if familiar is None or best.mean_error is None:
        return f"they differ from {own}, and the run was tested on no shift to evaluate that by."
    if familiar.further:
        return (
            f"they are further from {own} than every shift that the run was tested on (energy "
            f"distance {familiar.distance:.3g}, at most {familiar.largest:.3g} there)."
        )
    if familiar.unlike:
        nearest = own if familiar.nearest == "ID" else familiar.nearest
        return (
            f"they are unlike {own} and every shift that the run was tested on (energy distance "
            f"{familiar.nearest_distance:.3g} to the nearest, {nearest}; {familiar.usual:.3g} is "
            "usual among those)."
        )
    if best.mean_error > TRUSTED:
        return (
            f"they differ from {own}, and on the shifts that the run was tested on even the "
            f"closest estimate was off by {100 * best.mean_error:.1f} points on average."
        )
    return None


def watch(
    model: CalibratedClassifier,
    reference: Reference,
    paths: Sequence[str],
    *,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
    stop: Callable[[], bool] = lambda: False,
) -> Watched:
    """Compare images with the reference.

    Raises:
        DataError: fewer than two images can be read.
        InterruptedRunError: `stop` said so.
    """
    answers, read, unreadable = answered(model, paths, batch_size, on_progress, stop)
    return Watcher(model, reference, seed=seed).compare(answers, read, unreadable)


class Watcher:
    """Compares a model's answers for images without labels with its reference, set after set."""

    def __init__(self, model: CalibratedClassifier, reference: Reference, *, seed: int = 0) -> None:
        self._model, self._reference, self._seed = model, reference, seed
        self._estimators = reference.estimators(model.calibrator)
        self._errors = reference.validated
        self._known = None
        if reference.shifts:
            self._known = KnownSets(reference.logits, reference.shifts, seed=seed)
        there = calibrated(reference.logits, model.calibrator, reference.initial).argmax(axis=1)
        self._shares = np.bincount(there, minlength=len(model.classes)) / len(there)

    def compare(
        self, answers: Answers, read: Sequence[str], unreadable: Mapping[str, str]
    ) -> Watched:
        """Compare the answers for the files that were read.

        Raises:
            DataError: they are fewer than two.
        """
        if len(read) < 2:
            n = len(read) + len(unreadable)
            raise DataError(f"at least 2 images must be readable, {len(read)} of {n} are")
        reference, logits, probs = self._reference, answers.logits, answers.probs
        confidences, predicted = probs.max(axis=1), probs.argmax(axis=1)
        expected = self._expected(answers)
        drift = Drifted(**vars(energy_drift(reference.logits, logits, seed=self._seed)))
        familiar = None if self._known is None else self._known.familiarity(logits)
        chosen = recommended(self._errors) if drift.p_value < DRIFTED else DIFFERENCE
        best = next(one for one in expected if one.estimator == chosen)
        energy = -np.logaddexp.reduce(logits.astype(np.float64), axis=1)
        order = np.argsort(-energy, kind="stable")[:SHOWN]
        return Watched(
            n=len(read),
            reference=reference.dataset,
            n_reference=len(reference.labels),
            expected=expected,
            recommended=chosen,
            drift=drift,
            unknown=_unknown(best, drift, familiar, reference.dataset),
            familiar=None if familiar is None else Familiar(**vars(familiar)),
            none_of_these=_none_of_these(self._model, answers),
            shares=self._largest_changes(predicted),
            unusual=[
                Unusual(
                    path=read[i],
                    label=self._model.classes[predicted[i]],
                    confidence=float(confidences[i]),
                    energy=float(energy[i]),
                )
                for i in order
            ],
            unreadable=dict(unreadable),
        )

    def _expected(self, answers: Answers) -> list[Expected]:
        """What every estimator says, with its errors; the regressed ones behind the others."""
        plain = self._estimators.estimate(
            Unlabelled(answers.probs, answers.initial), seed=self._seed
        )
        values = {one.estimator: one for one in plain}

        def estimate(error: EstimatorError) -> AccuracyEstimate:
            if not error.estimator.endswith(REGRESSED):
                return values[error.estimator]
            value = values[error.estimator.removesuffix(REGRESSED)].value
            return estimate_regressed(self._reference.known, error, value)

        return [
            Expected(
                **vars(estimate(error)),
                mean_error=error.mean_error if error.errors else None,
                errors=dict(error.errors),
            )
            for error in self._errors
        ]

    def _largest_changes(self, predicted: NDArray[np.int64]) -> list[Share]:
        classes, before = self._model.classes, self._shares
        here = np.bincount(predicted, minlength=len(classes)) / len(predicted)
        order = np.argsort(-np.abs(here - before), kind="stable")
        return [
            Share(label=classes[i], reference=float(before[i]), here=float(here[i]))
            for i in order[:20]
        ]


def _none_of_these(model: CalibratedClassifier, answers: Answers) -> NoneOfTheseShare | None:
    known = model.none_of_these
    alarms = None if known is None else known.alarms(answers.logits, ALARM_RATE)
    if alarms is None:
        return None
    return NoneOfTheseShare(share=float(alarms.mean()), false_alarms=ALARM_RATE)


def answered(
    model: CalibratedClassifier,
    paths: Sequence[str],
    batch_size: int = BATCH_SIZE,
    on_progress: Callable[[int], None] = lambda done: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Answers, list[str], dict[str, str]]:
    """Answers for N images, the files that were read, and why others were not."""
    answers: list[Answers] = []
    read: list[str] = []
    unreadable: dict[str, str] = {}
    for start in range(0, len(paths), batch_size):
        if stop():
            raise InterruptedRunError(f"stopped behind {start:,} of {len(paths):,} images")
        fitted = []
        for path in paths[start : start + batch_size]:
            try:
                fitted.append(model.fit(path))
                read.append(path)
            except UnreadableImageError as error:
                unreadable[path] = error.message
        if fitted:
            answers.append(model.answer(np.stack(fitted)))
        on_progress(min(start + batch_size, len(paths)))
    return together(model.classes, answers), read, unreadable


def report_html(watched: Watched, title: str) -> str:
    """One page that stands alone: the answer, its evidence, the images."""
    best = watched.recommended if watched.unknown is None else None
    rows = "".join(
        f"<tr{' class=best' if best == one.estimator else ''}>"
        f"<td>{_words(one.estimator)}</td><td>{percent(one.value)}</td>"
        f"<td>{percent(one.low)} to {percent(one.high)}</td>"
        f"<td>{'–' if one.mean_error is None else f'{100 * one.mean_error:.1f} points'}</td>"
        f"<td>{html.escape('; '.join(f'{k} {100 * v:+.1f}' for k, v in one.errors.items()))}</td>"
        "</tr>"
        for one in watched.expected
    )
    shares = "".join(
        f"<tr><td>{html.escape(one.label)}</td><td>{percent(one.reference)}</td>"
        f"<td>{percent(one.here)}</td></tr>"
        for one in watched.shares[:10]
    )
    pictures = "".join(
        f"<figure><img src='{_picture(one.path)}' alt='{html.escape(one.path, quote=True)}'>"
        f"<figcaption>{html.escape(Path(one.path).name)}<br>{html.escape(one.label)}, "
        f"{percent(one.confidence, 0)}</figcaption></figure>"
        for one in watched.unusual
    )
    unreadable = "".join(
        f"<li>{html.escape(path)}: {html.escape(why)}</li>"
        for path, why in list(watched.unreadable.items())[:20]
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{html.escape(title)}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color-scheme:light dark}}table{{border-collapse:collapse}}td,th{{padding:.25rem .75rem;
text-align:left;border-bottom:1px solid #8886}}.best{{font-weight:bold}}
.images{{display:flex;flex-wrap:wrap;gap:.75rem}}figure{{margin:0;width:8.5rem;font-size:.85rem;
overflow-wrap:anywhere}}img{{width:100%;image-rendering:auto}}</style>
<h1>{html.escape(title)}</h1>
<p><b>{html.escape(watched.sentence)}</b> {html.escape(watched.evidence)}</p>
<p>This is no measurement: labels of a few hundred of these images would be.</p>
<h2>By estimator</h2>{
        "" if watched.unknown is None else "<p>None of these may be used: see above.</p>"
    }<table><tr><th>estimator</th><th>expected accuracy</th><th>95 %</th>
<th>mean error where labels are known</th><th>estimate − accuracy by shift, points</th></tr>
{rows}</table>
<h2>Predicted classes</h2><table><tr><th>class</th><th>{html.escape(watched.reference)}</th>
<th>here</th></tr>{shares}</table>
<h2>Most unusual images</h2><div class="images">{pictures}</div>
{
        f"<h2>{len(watched.unreadable):,} images that cannot be read</h2><ul>{unreadable}</ul>"
        if unreadable
        else ""
    }
</html>
"""


def _words(estimator: str) -> str:
    return estimator.replace("_", " ")


def _picture(path: str) -> str:
    """A small picture as a data address; nothing where it cannot be drawn."""
    from calift_core.data.decode import decode

    try:
        image = Image.fromarray(decode(path))
    except CaliftError:
        return ""
    image.thumbnail((136, 136))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
