"""A folder that images without labels arrive in: every batch is compared with the reference."""

import html
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from calift_core.errors import DataError, InterruptedRunError
from calift_core.files import atomic_write_bytes, storage_error
from calift_core.schema.unlabelled import FollowedBatch, Watched
from calift_core.shipping.classifier import Answers, CalibratedClassifier
from calift_core.shipping.reference import Reference
from calift_core.shipping.watching import Watcher, answered
from calift_core.words import percent

#: Chance that a batch of ID images is called drifted.
FALSE_ALARMS = 0.001
#: Images of a batch, and batches of a folder that is compared at once.
BATCH, MOST_BATCHES = 200, 50


def alarms_of(found: Watched, fail_below: float | None, fail_on_drift: float | None) -> list[str]:
    """Which bounds were passed, a phrase each."""
    alarms = []
    if fail_below is not None and (found.unknown is not None or found.answer.value < fail_below):
        how = "below the bound" if found.unknown is None else "unknown"
        alarms.append(f"the expected accuracy is {how}")
    if fail_on_drift is not None and found.drift.p_value < fail_on_drift:
        alarms.append("the images have drifted")
    return alarms


def read_log(file: Path) -> list[FollowedBatch]:
    """The batches of a log, the oldest first; a last line that was cut off is left out.

    Raises:
        DataError: another line is no batch.
    """
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(FollowedBatch.model_validate_json(line))
        except ValidationError:
            if number == len(lines) and not line.endswith("\n"):
                break
            raise DataError(
                f"line {number} of {str(file)!r} must be a batch of `calift watch --follow`",
                hint="Name another --log.",
            ) from None
    return found


def follow(
    model: CalibratedClassifier,
    reference: Reference,
    arrived: Callable[[], Sequence[str]],
    *,
    batch: int,
    log: Path | None = None,
    fail_below: float | None = None,
    fail_on_drift: float = FALSE_ALARMS,
    wait: Callable[[], bool],
) -> Iterator[FollowedBatch]:
    """Compare images with the reference as they arrive, a batch at a time.

    Args:
        arrived: the files that are there, in the order in which they are taken.
        batch: images that make one, 2 or more; fewer wait for others.
        log: a line a batch; what it names already is not compared again.
        fail_below, fail_on_drift: bounds of the alarms.
        wait: returns when it is time to look again, False where it is time to end.

    Raises:
        DataError: a batch has fewer than two images that can be read, or the log is none.
    """
    watcher = Watcher(model, reference)
    known = read_log(log) if log is not None else []
    seen = {image for one in known for image in one.images}
    if log is not None:
        _rewrite(log, known)  # without a line that was cut off
    while True:
        new = [path for path in arrived() if path not in seen]
        while len(new) >= batch:
            taken, new = new[:batch], new[batch:]
            seen.update(taken)
            found = watcher.compare(*answered(model, taken))
            one = _batch(found, alarms_of(found, fail_below, fail_on_drift), taken)
            if log is not None:
                _append(log, one)
            yield one
        if not wait():
            return


def _batch(found: Watched, alarms: list[str], images: Sequence[str] = ()) -> FollowedBatch:
    answer = found.answer if found.unknown is None else None
    return FollowedBatch(
        at=datetime.now(UTC).replace(microsecond=0),
        n=found.n,
        images=list(images),
        value=answer and answer.value,
        low=answer and answer.low,
        high=answer and answer.high,
        unknown=found.unknown,
        distance=found.drift.distance,
        p_value=found.drift.p_value,
        alarms=alarms,
    )


def in_batches(
    watcher: Watcher,
    answers: Answers,
    read: Sequence[str],
    *,
    batch: int = BATCH,
    stop: Callable[[], bool] = lambda: False,
) -> list[FollowedBatch]:
    """Compare answers for files with the reference, a batch at a time, the oldest files first.

    Args:
        batch: images of a batch at least; there are `MOST_BATCHES` at most.

    Raises:
        InterruptedRunError: `stop` said so.
    """
    order = np.argsort([os.stat(path).st_mtime for path in read], kind="stable")
    found: list[FollowedBatch] = []
    for rows in np.array_split(order, max(1, min(MOST_BATCHES, len(read) // batch))):
        if stop():
            raise InterruptedRunError(f"stopped behind {len(found):,} batches")
        one = watcher.compare(answers.of(rows), [read[k] for k in rows], {})
        found.append(_batch(one, alarms_of(one, None, FALSE_ALARMS)))
    return found


def _rewrite(log: Path, known: Sequence[FollowedBatch]) -> None:
    text = "".join(one.model_dump_json() + "\n" for one in known)
    atomic_write_bytes(log, text.encode())


def _append(log: Path, one: FollowedBatch) -> None:
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(one.model_dump_json() + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise storage_error(error, log, "write") from error


def chart_html(batches: Sequence[FollowedBatch], title: str) -> str:
    """One page that stands alone: expected accuracy batch by batch, alarms marked, and a table."""
    width, height, left = 900, 260, 44
    step = (width - left - 16) / max(len(batches), 1)

    def y(fraction: float) -> float:
        return 12 + (1 - fraction) * (height - 44)

    marks = "".join(
        f"<line x1='{left}' x2='{width}' y1='{y(v):.1f}' y2='{y(v):.1f}' class='grid'/>"
        f"<text x='{left - 8}' y='{y(v) + 4:.1f}' text-anchor='end'>{percent(v, 0)}</text>"
        for v in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    for i, one in enumerate(batches):
        x, kind = left + step * (i + 0.5), "alarm" if one.alarms else "batch"
        tooltip = f"<title>{html.escape(one.line)}</title>"
        if one.value is None or one.low is None or one.high is None:
            marks += (
                f"<text x='{x:.1f}' y='{y(0.5):.1f}' class='{kind}' text-anchor='middle'>?{tooltip}"
                "</text>"
            )
            continue
        marks += (
            f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{y(one.low):.1f}' y2='{y(one.high):.1f}' "
            f"class='{kind}'/><circle cx='{x:.1f}' cy='{y(one.value):.1f}' r='4' class='{kind}'>"
            f"{tooltip}</circle>"
        )
    rows = "".join(
        f"<tr><td>{one.at:%Y-%m-%d %H:%M:%S}</td><td>{one.n:,}</td><td>"
        + (
            "unknown"
            if one.value is None
            else f"{percent(one.value, 0)} ({percent(one.low, 0)} to {percent(one.high, 0)})"
        )
        + f"</td><td>{one.p_value:.3f}</td><td>{html.escape(' and '.join(one.alarms))}"
        + ("" if one.unknown is None else f"<br>{html.escape(one.unknown)}")
        + "</td></tr>"
        for one in reversed(batches)
    )
    n = sum(bool(one.alarms) for one in batches)
    last = batches[-1].line if batches else "no batch yet"
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><meta http-equiv="refresh" content="30">
<title>{html.escape(title)}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color-scheme:light dark}}svg{{width:100%;font-size:12px;fill:currentColor}}
.grid{{stroke:#8884}}.batch{{stroke:#3a6ea5;fill:#3a6ea5;stroke-width:2}}
.alarm{{stroke:#c0392b;fill:#c0392b;stroke-width:2}}
table{{border-collapse:collapse}}td,th{{padding:.25rem .75rem;text-align:left;
border-bottom:1px solid #8886;vertical-align:top}}</style>
<h1>{html.escape(title)}</h1>
<p><b>{len(batches):,} batches, {n:,} with an alarm.</b> The last: {html.escape(last)}.</p>
<svg viewBox="0 0 {width} {height}" role="img"
aria-label="Expected accuracy by batch, the newest at the right">{marks}</svg>
<p>Expected accuracy with its interval, the newest batch at the right; red is an alarm, a question
mark an unknown accuracy. No measurement: labels of a few hundred images would be.</p>
<table><tr><th>compared (UTC)</th><th>images</th><th>expected accuracy</th><th>drift p</th>
<th>alarm</th></tr>{rows}</table>
</html>
"""
