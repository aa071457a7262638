"""The progress of jobs of the service, drawn until they have ended."""

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from calift.commands.console import SAY_EVERY_S, err, progress_text
from calift_core.schema.wire.runs import TERMINAL_PHASES, JobSummary

_Job = TypeVar("_Job", bound=JobSummary)


def follow(
    get_job: Callable[[str], _Job],
    job_ids: Sequence[str],
    *,
    quiet: bool = False,
    then: Callable[[_Job], Sequence[str]] = lambda _: (),
) -> list[_Job]:
    """Show the progress of runs or evaluation jobs until every one has ended.

    Args:
        get_job: the job of an id, as it is now.
        then: asked of each job that has ended, which are to be followed too.

    Returns:
        The jobs, in the order asked, and those that came later after them.
    """
    wanted = list(job_ids)
    ended: dict[str, _Job] = {}
    columns = (
        TextColumn("{task.description:<34}"),
        TextColumn("{task.fields[phase]:<12}"),
        BarColumn(bar_width=24),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    plain = not quiet and not err.is_terminal
    last_shown: dict[str, tuple[str, str, float]] = {}
    with Bars(*columns, console=err, disable=quiet or plain) as bars:
        tasks: dict[str, Any] = {}
        while len(ended) < len(wanted):
            for job_id in list(wanted):
                if job_id in ended:
                    continue
                job = get_job(job_id)
                if job_id not in tasks:
                    tasks[job_id] = bars.add_task(job.name, total=None, phase="", note="")
                p = job.progress
                note = f"{p.phase} {p.detail}".strip() if p else ""
                if p and p.samples_per_s:
                    note += f" · {p.samples_per_s:.0f} images/s"
                bars.update(
                    tasks[job_id],
                    phase=job.phase,
                    completed=p.step if p else 0,
                    total=p.total_steps if p and p.total_steps else None,
                    note=note,
                )
                if plain:
                    state = f"{job.name}: {job.phase.lower()} {p.phase if p else ''}".strip()
                    line = state + (
                        progress_text(p) if p and job.phase not in TERMINAL_PHASES else ""
                    )
                    before, last, at = last_shown.get(job_id, ("", "", 0.0))
                    late = time.monotonic() - at >= SAY_EVERY_S
                    if state != before or (line != last and late):
                        last_shown[job_id] = (state, line, time.monotonic())
                        err.print(line, markup=False)
                if job.phase in TERMINAL_PHASES:
                    ended[job_id] = job
                    bars.update(tasks[job_id], note=job.message or "", completed=1, total=1)
                    wanted += then(job)
            time.sleep(0.5)
    return [ended[job_id] for job_id in wanted]
