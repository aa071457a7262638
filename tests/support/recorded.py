"""What a run says, with one recorded real run as the only source.

`RECORDED` is that run, word for word. The functions tell the same story with a test's own numbers:
every record is a copy of a recorded one, and `checked` refuses what the recording does not back,
so no test can rest on words that no runner says.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from calift_core.schema import records as r
from calift_core.schema.report import EvaluationReport, SpectrumReport, Summary

#: Made by `record_run.py`.
RECORDED_FILE = Path(__file__).with_name("recorded_run.jsonl")
RECORDED: list[r.Record] = [
    r.RECORD.validate_json(line) for line in RECORDED_FILE.read_text(encoding="utf-8").splitlines()
]

#: A stage and a kind of record: where in a run something is said.
Place = tuple[str, str]

T = TypeVar("T")


def placed(records: Iterable[r.Record]) -> Iterator[tuple[Place, r.Record]]:
    """Each record with the stage that it is said in."""
    stage = ""
    for record in records:
        if isinstance(record, r.PhaseRecord):
            stage = record.phase
        yield (stage, record.kind), record


def _named(value: Any, path: str = "") -> Iterator[str]:
    """Dotted names of everything that is there; the contents of lists are not looked into."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _named(inner, f"{path}.{name}")
    elif value is not None:
        yield path


def shapes(records: Iterable[r.Record]) -> dict[Place, set[str]]:
    """By place, the dotted names of all that is ever said there."""
    found: dict[Place, set[str]] = {}
    for place, record in placed(records):
        found.setdefault(place, set()).update(_named(record.model_dump(mode="json")))
    return found


def always(records: Iterable[r.Record]) -> dict[Place, set[str]]:
    """By place, the names that every record there has.

    Methods and suites decide what metrics and summaries hold, so these are not looked into.
    """
    found: dict[Place, set[str]] = {}
    for place, record in placed(records):
        names = {
            n
            for n in _named(record.model_dump(mode="json"))
            if not n.startswith((".values.", ".summary."))
        }
        found[place] = found.get(place, names) & names
    return found


def turns(records: Iterable[r.Record]) -> set[tuple[Place, Place]]:
    """Which place follows which."""
    places = [place for place, _ in placed(records)]
    return set(zip(places, places[1:], strict=False))


_ALWAYS = always(RECORDED)
_METRICS = {n for names in shapes(RECORDED).values() for n in names if n.startswith(".values.")}


def checked(records: Iterable[r.Record]) -> list[r.Record]:
    """The records, if a real run could have said them.

    Raises:
        AssertionError: a stage, a kind of record in it, an absent value or the name of a metric
            that the recorded run does not have.
    """
    kept = list(records)
    for place, record in placed(kept):
        assert place in _ALWAYS, f"no run says {place[1]!r} while {place[0]!r}: {record}"
        names = set(_named(record.model_dump(mode="json")))
        absent = _ALWAYS[place] - names
        assert not absent, f"a run always says {sorted(absent)} in {place}: {record}"
        unheard = {n for n in names if n.startswith(".values.")} - _METRICS
        assert not unheard, f"no run says {sorted(unheard)}: {record}"
    return kept


def _first(kind: type[T], stage: str) -> T:
    return next(
        record for (at, _), record in placed(RECORDED) if at == stage and isinstance(record, kind)
    )


def phase(name: str) -> r.PhaseRecord:
    """The run enters a stage."""
    return _first(r.PhaseRecord, name)


def warning() -> r.LogRecord:
    """A sentence for people."""
    return _first(r.LogRecord, "loading")


def resumed(step: int) -> r.ResumedRecord:
    """The run goes on from a step."""
    return _first(r.ResumedRecord, "training").model_copy(update={"step": step})


def checkpoint(step: int) -> r.CheckpointRecord:
    """A checkpoint is complete."""
    return _first(r.CheckpointRecord, "training").model_copy(
        update={"step": step, "path": f"checkpoint/steps/{step:08d}"}
    )


def metrics(step: int, epoch: float, **values: float) -> r.MetricsRecord:
    """The numbers of a training step; what is not given is as recorded, terms aside."""
    recorded = _first(r.MetricsRecord, "training").values
    common = {name: recorded[name] for name in ("loss", "lr", "logit_scale")}
    return r.MetricsRecord(step=step, epoch=epoch, values=common | values)


def progress(step: int, total_steps: int, stage: str = "training") -> r.ProgressRecord:
    """How far a stage is."""
    return _first(r.ProgressRecord, stage).model_copy(
        update={"step": step, "total_steps": total_steps}
    )


def validated(step: int, epoch: float, spectrum: SpectrumReport) -> list[r.Record]:
    """What is measured at the end of an epoch."""
    recorded = next(
        record
        for record in RECORDED
        if isinstance(record, r.MetricsRecord) and "val_ece" in record.values
    )
    measured = {"effective_rank": spectrum.effective_rank}
    if spectrum.sigma_min is not None:
        measured["sigma_min"] = spectrum.sigma_min
    return [
        _first(r.SpectrumRecord, "training").model_copy(
            update={"step": step, "spectrum": spectrum}
        ),
        r.MetricsRecord(step=step, epoch=epoch, values=recorded.values | measured),
    ]


def training(steps, values, *, spectra=None, epochs=4, until=None):
    """A run from its start to the end of its training, or to the step `until`.

    Args:
        steps: of the whole training.
        values: the numbers of a step.
        spectra: by the steps at which epochs end; a checkpoint is saved at each.
        epochs: in the whole training.
        until: the last step that is told.
    """
    out = [phase("loading"), phase("training")]
    for step in range(1, (until or steps) + 1):
        epoch = epochs * step / steps
        out += [metrics(step, epoch, **values(step)), progress(step, steps)]
        if spectra and step in spectra:
            out += [*validated(step, epoch, spectra[step]), checkpoint(step)]
    return out


def evaluating(evaluations: Sequence[tuple[EvaluationReport, str]]) -> list[r.Record]:
    """Every data set is evaluated.

    Args:
        evaluations: each with the path of its predictions.
    """
    out: list[r.Record] = [phase("evaluating")]
    total = sum(evaluation.n for evaluation, _ in evaluations)
    done = 0
    for evaluation, path in evaluations:
        done += evaluation.n
        out.append(r.EvaluationRecord(evaluation=evaluation, predictions=path))
        at = progress(done, total, "evaluating")
        out.append(at.model_copy(update={"detail": evaluation.dataset}))
    return out


def ending(spectrum: SpectrumReport, summary: Summary, *, steps: int) -> list[r.Record]:
    """The finished model's spectrum, and the end."""
    final = _first(r.SpectrumRecord, "evaluating")
    return [
        final.model_copy(update={"step": steps, "spectrum": spectrum}),
        phase("saving"),
        _first(r.DoneRecord, "saving").model_copy(update={"summary": summary, "steps": steps}),
    ]
