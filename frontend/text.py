"""Numbers, times and states in words for people. Data stays in fractions; percent begins here."""

import html
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from math import inf
from os.path import commonprefix
from pathlib import PurePath
from typing import Any, NamedTuple

from calift_core.calibration.confidence_sets import on_border, p_value_error
from calift_core.schema.report import EceReport, EvaluationReport, Summary
from calift_core.schema.wire.answers import TrainingPictures, TriedPicture
from calift_core.schema.wire.runs import RunSummary

DASH = "–"
NBSP = "\u00a0"


def percent(value: float | None, digits: int = 1) -> str:
    """Turn the fraction 0.0312 into `3.1 %`; none into a dash."""
    return DASH if value is None else f"{_minus(f'{100 * value:.{digits}f}')}{NBSP}%"


def points(value: float | None, digits: int = 1) -> str:
    """Turn a difference of fractions into signed percentage points: `+1.2 pp`."""
    return DASH if value is None else f"{_minus(f'{100 * value:+.{digits}f}')}{NBSP}pp"


def square_points(value: float | None, digits: int = 1) -> str:
    """Turn a difference of squared fractions into squared percentage points: `+12.5 pp²`."""
    return DASH if value is None else f"{_minus(f'{1e4 * value:+.{digits}f}')}{NBSP}pp²"


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits, zeros kept: `0.130`; none is a dash.

    What is very small or large has a power of ten and a digit less: `9.0e-5`.
    """
    if value is None:
        return DASH
    rounded = abs(float(f"{value:.{digits}g}"))
    if 0 < rounded < 1e-3 or 1e5 <= rounded < inf:
        mantissa, _, power = f"{value:.{max(digits - 2, 0)}e}".partition("e")
        return _minus(f"{mantissa}e{int(power)}")
    if rounded >= 10**digits:
        return _minus(f"{value:,.0f}")
    return _minus(f"{value:#.{digits}g}".removesuffix("."))


def p_value(value: float, n_resamples: int | None = None) -> str:
    """`p = 0.03`, or `p < 0.01`.

    Args:
        value: of a test at 0.05.
        n_resamples: draws that it comes from. One that other draws might put on the other side is
            named as such: `p = 0.049 ± 0.003: on the border`.
    """
    if n_resamples is not None and on_border(value, n_resamples):
        return f"p = {value:.3f} ± {p_value_error(0.05, n_resamples):.3f}: on the border"
    return "p < 0.01" if value < 0.01 else f"p = {value:.2f}"


def draws(n_resamples: int) -> str:
    """`5,000 draws, so that a p-value of 0.05 is known to ± 0.003`, one standard error."""
    error = p_value_error(0.05, n_resamples)
    return f"{count(n_resamples)} draws, so that a p-value of 0.05 is known to ± {error:.3f}"


def count(value: int | None) -> str:
    """Thousands apart: `7,500`."""
    return DASH if value is None else f"{value:,}"


def interval(low: float, high: float, digits: int = 1) -> str:
    """An interval of fractions: `2.4 to 3.8 %`."""
    low_text, high_text = (_minus(f"{100 * v:.{digits}f}") for v in (low, high))
    return f"{low_text} to {high_text}{NBSP}%"


def span(low: float, high: float) -> str:
    """Two edges on [0, 1] with as many digits as tell them apart: `0.800 to 0.867`."""
    digits = next((d for d in range(3, 9) if f"{low:.{d}f}" != f"{high:.{d}f}"), 9)
    return f"{low:.{digits}f} to {high:.{digits}f}"


def ece_with_floor(value: float | None, floor: float | None) -> str:
    """A calibration error never stands without its floor: `3.1 % (floor 1.2 %)`."""
    if value is None:
        return DASH
    return percent(value) if floor is None else f"{percent(value)} (floor {percent(floor)})"


def ece(report: EceReport, *, with_interval: bool = True) -> str:
    """The error, its floor, and the 95 % interval of the binned calibration error."""
    text = ece_with_floor(report.value, report.null_mean)
    return f"{text}, 95{NBSP}% {interval(*report.interval)}" if with_interval else text


def above_floor(report: EceReport) -> bool:
    """Whether a calibrated model would show so high an error in fewer than 5 % of samples."""
    return report.value > report.null_q95


def size(n_bytes: int | None) -> str:
    if n_bytes is None:
        return DASH
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f}{NBSP}{unit}" if unit == "B" else f"{value:.1f}{NBSP}{unit}"
        value /= 1000
    return f"{value:.1f}{NBSP}TB"


def duration(seconds: float | None) -> str:
    """Seconds in the largest two units: `2 h 05 min`."""
    if seconds is None:
        return DASH
    whole = round(seconds)
    if whole < 1:
        return f"under 1{NBSP}s"
    if whole < 60:
        return f"{whole}{NBSP}s"
    if whole < 3600:
        return f"{whole // 60}{NBSP}min {whole % 60:02d}{NBSP}s"
    if whole < 86400:
        return f"{whole // 3600}{NBSP}h {whole % 3600 // 60:02d}{NBSP}min"
    return f"{whole // 86400}{NBSP}d {whole % 86400 // 3600}{NBSP}h"


def age(then: datetime | None, now: datetime | None = None) -> str:
    """How long ago, in one unit: `3 min ago`. A time without zone is read as UTC."""
    if then is None:
        return DASH
    seconds = max(0.0, (_aware(now or datetime.now(UTC)) - _aware(then)).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{NBSP}{unit} ago"
    return "just now" if seconds < 5 else f"{int(seconds)}{NBSP}s ago"


def moment(then: datetime | None) -> str:
    """A time to the second, in UTC."""
    return DASH if then is None else _aware(then).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def elapsed_s(start: datetime | None, end: datetime | None) -> float | None:
    """Seconds between two times; up to now while the end is open."""
    if start is None:
        return None
    return max(0.0, (_aware(end or datetime.now(UTC)) - _aware(start)).total_seconds())


def _aware(value: datetime) -> datetime:
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _minus(text: str) -> str:
    """A real minus sign, and no sign on what rounds to zero."""
    if text[:1] == "-" and not text.strip("-0."):
        text = text[1:]
    return text.replace("-", "−", 1) if text.startswith("-") else text


class Mark(NamedTuple):
    """A state in a word, a symbol and a colour, never the colour alone."""

    word: str
    symbol: str
    colour: str


PHASES: dict[str, Mark] = {
    "QUEUED": Mark("Queued", "◷", "gray"),
    "STARTING": Mark("Starting", "◔", "blue"),
    "RUNNING": Mark("Running", "▶", "blue"),
    "CANCELLING": Mark("Cancelling", "◼", "orange"),
    "SUCCEEDED": Mark("Succeeded", "✓", "green"),
    "FAILED": Mark("Failed", "✕", "red"),
    "CANCELLED": Mark("Cancelled", "⊘", "gray"),
}
#: What a sweep may be besides.
_PAUSED = Mark("Paused", "‖", "orange")

ROLES: dict[str, str] = {"id": "in distribution", "shift": "shift", "corruption": "corruption"}


#: Kinds of calibrators, as people read them.
CALIBRATORS: dict[str, str] = {
    "temperature": "temperature (one number)",
    "vector": "vector (scale and offset per class)",
    "ets": "ensemble temperature (ETS)",
    "svs": "structured vector (SVS)",
    "sms": "structured matrix (SMS)",
    "histogram": "histogram binning of the top label",
    "isotonic": "isotonic regression of the top label",
    "tsp": "temperature on perturbed copies (TS-P)",
    "disagreement": "temperature by disagreement with the initial model",
    "cautious": "temperature by disagreement, never colder where they disagree",
    "sals": "range of the initial model (SaLS)",
    "ensemble": "mean with the initial model",
}


def calibrator(kind: str) -> str:
    """What a calibrator is called, in Markdown; one that was added is called by its kind."""
    return CALIBRATORS.get(kind) or md(kind)


def role_order(role: str) -> int:
    """Where evaluations of a role stand: in distribution first, then shifts, then corruptions."""
    return list(ROLES).index(role)


SCHEMES: dict[str, str] = {"equal_mass": "equal mass", "equal_width": "equal width"}
NORMS: dict[str, str] = {"l1": "L1", "l2": "L2", "max": "max"}


def phase_mark(phase: str) -> Mark:
    """How the phase of a run or a sweep is shown; an unknown one by its name."""
    if phase == "PAUSED":
        return _PAUSED
    return PHASES.get(phase, Mark(phase.capitalize(), "?", "gray"))


_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+\-.!|~$:^=@&/])")


def md(value: object) -> str:
    """Escape what somebody typed for Markdown, so that it reads as typed and formats nothing."""
    return _MARKDOWN.sub(r"\\\1", str(value)).replace("\n", " ")


_CODE = re.compile(r"`([^`\n]+)`")


def md_prose(sentence: str) -> str:
    """A sentence of the service for Markdown: what stands in backticks is code, the rest plain."""
    parts = _CODE.split(sentence)
    return "".join(f"`{part}`" if i % 2 else md(part) for i, part in enumerate(parts))


def html_prose(sentence: str) -> str:
    """A sentence of the service for HTML: what stands in backticks is code, the rest plain."""
    parts = _CODE.split(sentence)
    return "".join(f"<code>{esc(p)}</code>" if i % 2 else esc(p) for i, p in enumerate(parts))


def esc(value: object) -> str:
    """Escape what somebody typed for HTML and for the labels of charts."""
    return html.escape(str(value), quote=True)


def plain(value: Any) -> str:
    """A parameter's value as it stands in a RunSpec."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items()) or "none"
    return str(value)


class Metric(NamedTuple):
    """A number of an evaluation: its name for people and how it reads.

    `better` is `high` or `low`; `fraction` says that people see it in percent.
    """

    title: str
    better: str
    fraction: bool


METRICS: dict[str, Metric] = {
    "accuracy": Metric("Accuracy", "high", True),
    "ece": Metric("ECE", "low", True),
    "nll": Metric("NLL", "low", False),
    "brier": Metric("Brier score", "low", False),
    "smooth_ece": Metric("Smooth ECE", "low", True),
    "classwise_ece": Metric("Class-wise ECE", "low", True),
    "ks_error": Metric("KS calibration error", "low", True),
    "aurc": Metric("AURC", "low", True),
    "mean_confidence": Metric("Mean confidence", "high", True),
    "mean_per_class_accuracy": Metric("Mean per-class accuracy", "high", True),
    "ece_batch_averaged": Metric("Batch-averaged ECE (paper-compatible)", "low", True),
}

#: Numbers of a whole run, in the order that every table and page shows them: names that `Summary`
#: and `FrontierPoint` have. An error's floor stands under the same name with `_floor`.
HEADLINES: dict[str, Metric] = {
    "id_accuracy": Metric("ID accuracy", "high", True),
    "ood_accuracy": Metric("OOD accuracy", "high", True),
    "id_ece": Metric("ID ECE", "low", True),
    "ood_ece": Metric("OOD ECE", "low", True),
    "id_nll": Metric("ID NLL", "low", False),
    "ood_nll": Metric("OOD NLL", "low", False),
    "sigma_min": Metric("σ_min", "high", False),
}


def metric_value(evaluation: EvaluationReport, metric: str) -> float:
    """A metric of an evaluation, as a fraction where it is one."""
    value = getattr(evaluation, metric)
    return float(value.value if isinstance(value, EceReport) else value)


def metric_text(value: float | None, metric: str) -> str:
    if value is None:
        return DASH
    look = METRICS.get(metric)
    return percent(value) if look is None or look.fraction else number(value)


def run_name(kind: str, suite: str) -> str:
    """`carot on pacs sketch`, `carot on photos` of a folder or a zip; only what a name may have."""
    name, _, rest = suite.partition(":")
    place, _, domain = rest.partition("#")
    if name in ("folder", "domains"):
        name = PurePath(place).name or name
    elif name in ("zip", "manifest"):
        name = PurePath(place).stem or name
    elif "/" not in place and not domain:
        domain = place
    words = f"{kind.replace('_', '-')} on {name} {domain}".strip()
    return re.sub(r"[^A-Za-z0-9 ._:+()/-]+", "-", words)[:120]


def worst_shift(summary: Summary) -> str:
    """Where accuracy is lowest: `art`, or `contrast, severity 5`."""
    if summary.worst_shift is None:
        return ""
    name = summary.worst_shift.replace("_", " ")
    if summary.worst_severity is not None:
        return f"{name}, severity {summary.worst_severity}"
    return name


def evaluation_title(evaluation: EvaluationReport) -> str:
    """What an evaluation is on, in words: `art` or `gaussian noise, severity 3`."""
    if evaluation.corruption is not None:
        return f"{evaluation.corruption.replace('_', ' ')}, severity {evaluation.severity}"
    return evaluation.dataset


def short_suite(suite: str) -> str:
    """A suite's name with the last two folders of where it lies."""
    head, _, path = suite.partition(":")
    parts = PurePath(path).parts
    return f"{head}:…/{'/'.join(parts[-2:])}" if len(parts) > 2 else suite


def verdict(value: float, null_mean: float, null_q95: float) -> str:
    """What the floor says about an error, in a sentence."""
    if value <= null_q95:
        return (
            f"Not above the floor: a perfectly calibrated model would show up to "
            f"{percent(null_q95)} at this n."
        )
    return (
        f"Above the floor: a perfectly calibrated model would show {percent(null_mean)} on "
        f"average and more than {percent(null_q95)} only once in twenty."
    )


def evaluation_order(evaluation: EvaluationReport) -> tuple[int, str, int]:
    """Sorts evaluations: by role, then by name, then by severity."""
    e = evaluation
    return role_order(e.role), e.corruption or e.dataset, e.severity or 0


def labels(runs: Sequence[RunSummary], *, whole: bool = False) -> dict[str, str]:
    """A name per run id; equal names are told apart by seed, else by the id's beginning.

    Args:
        whole: leave the name of its sweep to each run. Else runs of one sweep, which all begin with
            it, are told apart by the rest.
    """
    rest = {} if whole else _without_sweep(runs)
    names_of = {run.id: rest.get(run.id, run.name) for run in runs}
    names = Counter(names_of.values())
    seeds = Counter((names_of[run.id], run.seed) for run in runs)
    out = {}
    for run in runs:
        name = names_of[run.id]
        if names[name] == 1:
            out[run.id] = name
        elif seeds[name, run.seed] == 1:
            out[run.id] = f"{name} (seed {run.seed})"
        else:
            out[run.id] = f"{name} ({run.id[-6:]})"
    return out


def _without_sweep(runs: Sequence[RunSummary]) -> dict[str, str]:
    """What the names of a sweep's runs say after the sweep's own; empty where two sweeps are."""
    own = [run for run in runs if run.sweep_id is not None]
    if len(own) < 2 or len({run.sweep_id for run in own}) > 1:
        return {}
    shared, mark, _ = commonprefix([run.name for run in own]).rpartition(": ")
    rest = {run.id: run.name.removeprefix(shared + mark) for run in own}
    return rest if all(rest.values()) else {}


def training_words(trained: TrainingPictures, method: str | None) -> str:
    """Among which training images of a run a picture's nearest were looked for."""
    among = f"all {trained.n:,} images"
    if trained.n < trained.of:
        among = f"{trained.n:,} of the {trained.of:,} images, the same for every run,"
    sentence = (
        f"By the cosine of this run's own image features, among {among} of "
        f"{trained.dataset.replace('_', ' ')}."
    )
    return sentence + " This run was not trained." if method == "zero_shot" else sentence


def unlike_words(one: TriedPicture, false_alarms: float) -> tuple[str, str]:
    """Whether a picture is one of the classes at a rate of false alarms, and what that means."""
    at = next((u for u in one.unlike if abs(u.false_alarms - false_alarms) < 1e-9), None)
    if at is None:
        return "–", "no threshold: no ID validation part"
    if at.none_of_these is None:
        return "–", f"too few ID images for {percent(false_alarms)} false alarms"
    rate = f"said of {percent(false_alarms)} of images like the ID data"
    return ("none of these", rate) if at.none_of_these else ("one of these", f"else {rate}")


def kept_words(one: TriedPicture, risk: float) -> str:
    """Whether an answer is kept where at most a share `risk` of what is kept may be wrong."""
    at = next((k for k in one.kept if abs(k.risk - risk) < 1e-9), None)
    if at is None:
        return "no threshold: no ID validation part"
    if at.threshold is None:
        return f"abstains: at most {percent(risk)} errors cannot be promised"
    if at.threshold * one.n_classes <= 1:  # no likeliest class has less
        return f"kept, as every answer is: that makes at most {percent(risk)} errors"
    word, where = ("kept", "above") if at.kept else ("abstains", "below")
    return f"{word}: {where} the {percent(at.threshold)} threshold"
