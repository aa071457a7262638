"""A sweep's configurations and its verdict as tables, for pages and commands alike."""

from collections.abc import Sequence

from calift_core.schema.wire.runs import RunSummary
from calift_core.schema.wire.sweeps import (
    EqualAccuracy,
    SweepArm,
    SweepRate,
    SweepSummary,
    SweepVerdict,
    VerdictMetric,
    VerdictSet,
)
from frontend import text
from frontend.tables import Column, Table, headline

METRICS: dict[VerdictMetric, str] = {
    "accuracy": "OOD accuracy",
    "squared": "OOD calibration (L2²)",
    "nll": "OOD NLL",
}


def sweeps_table(found: Sequence[SweepSummary]) -> Table:
    """Sweeps, with how far they are."""
    rows = [
        {
            **dict(one),
            "phase": text.phase_mark(one.phase),
            "share": one.runs_done / one.runs_at_most if one.runs_at_most else None,
            "runs": f"{one.runs_done} of {one.runs_at_most} at most",
            "why": one.message if one.phase in ("PAUSED", "FAILED", "CANCELLING") else "",
            "methods": ", ".join(one.methods),
            "age": text.age(one.finished_at or one.created_at),
            "age_by": -(one.finished_at or one.created_at).timestamp(),
        }
        for one in found
    ]
    columns = [
        Column("name", "Sweep", "open"),
        Column("phase", "Status", "mark"),
        Column("share", "Done", "share"),
        Column("runs", "Runs"),
        *([Column("why", "Why")] if any(row["why"] for row in rows) else []),
        Column("methods", "Methods"),
        Column("owner", "Owner"),
        Column("age", "Age"),
    ]
    return Table(columns, rows)


def arms(found: Sequence[SweepArm]) -> Table:
    """Contenders with the rates that were chosen for them."""
    rows = []
    for arm in found:
        rate = text.DASH if arm.lr is None else f"{arm.lr:g}"
        if arm.at_edge:
            rate += f", at the {arm.at_edge} edge"
        if arm.rate_of:
            rate += f", that of {arm.rate_of}"
        rows.append(
            {
                "label": arm.label,
                "method": arm.method,
                "rate": rate,
                "ladder": "  ·  ".join(map(_rung, arm.rates)),
                "judged": f"{arm.n_evaluated} of {arm.n_seeds}",
                "trouble": arm.trouble,
            }
        )
    columns = [
        Column("label", "Configuration"),
        Column("method", "Method"),
        Column("rate", "Learning rate"),
        Column("judged", "Seeds"),
        Column("ladder", "Ladder: ID validation accuracy", "prose"),
        Column("trouble", "Trouble", "prose"),
    ]
    may_miss = ("ladder", "trouble")
    return Table([c for c in columns if c.name not in may_miss or any(r[c.name] for r in rows)],
                 rows)  # fmt: skip


def runs(arms: Sequence[SweepArm], found: Sequence[RunSummary]) -> Table:
    """One row per finished run of a sweep: contender, rate, seed, what it is chosen on, results."""
    rates = {
        rate.run_id: (arm.label, rate.lr, rate.val_accuracy)
        for arm in arms
        for rate in arm.rates
        if rate.run_id is not None
    }
    evaluated = {run_id: arm for arm in arms for run_id in arm.run_ids}
    rows = []
    for run in found:
        arm = evaluated.get(run.id)
        label, lr, val = rates.get(run.id, (arm.label, arm.lr, None) if arm else (None,) * 3)
        if run.summary is not None and label is not None:
            rows.append(
                {
                    "run": run.name,
                    "arm": label,
                    "lr": lr,
                    "seed": str(run.seed),
                    "val_accuracy": val,
                    **run.summary.model_dump(),
                }
            )
    return Table(
        [
            Column("arm", "Configuration"),
            Column("lr", "Rate", "number"),
            Column("seed", "Seed"),
            Column("val_accuracy", "ID validation", "percent"),
            *headline(),
        ],
        rows,
    )


def _rung(rate: SweepRate) -> str:
    state = {"done": text.percent(rate.val_accuracy, 2), "runs": "under way"}.get(
        rate.state, rate.state
    )
    return f"{rate.lr:g}: {state}"


_CALIBRATION = (
    Column("ood_nll", "OOD NLL", "number"),
    Column("ood_ece", "OOD ECE", "percent"),
    Column("ood_ece_floor", "floor", "percent"),
    Column("ood_squared", "OOD L2², square points", "square_points"),
)


def verdict_rows(verdict: SweepVerdict) -> Table:
    rows = [
        {
            **dict(row),
            "lr": None if row.lr is None else f"{row.lr:g}",
            "seeds": len(row.seeds),
        }
        for row in verdict.rows
    ]
    columns = [
        Column("label", "Configuration"),
        Column("lr", "Rate"),
        Column("seeds", "Seeds", "count"),
        Column("id_accuracy", "ID accuracy", "percent"),
        Column("ood_accuracy", "OOD accuracy", "percent"),
        *_CALIBRATION,
    ]
    return Table(columns, rows)


def as_evaluated(shown: Table, evaluated_on: str) -> Table:
    """A table of a verdict that says ID where there was no shifted data to judge on."""
    if evaluated_on != "id":
        return shown
    names = {column.name for column in shown.columns}
    columns = [
        column._replace(label=column.label.replace("OOD", "ID"))
        for column in shown.columns
        if column.name != "ood_accuracy" or "id_accuracy" not in names
    ]
    rows = [
        row | {"metric": str(row["metric"]).replace("OOD", "ID")} if "metric" in row else row
        for row in shown.rows
    ]
    return Table(columns, rows)


def confidence_sets(sets: Sequence[VerdictSet]) -> Table:
    """Which contender may be the best, by each measure."""
    rows = [
        {
            "metric": METRICS[one.metric],
            "members": ", ".join(one.members),
            "excluded": ", ".join(
                f"{label} ({text.p_value(one.p_values[label])})" for label in one.excluded
            ),
        }
        for one in sets
    ]
    columns = [
        Column("metric", "By"),
        Column("members", "Statistically tied for best, best first", "prose"),
        Column("excluded", "Ruled out", "prose"),
    ]
    return Table(columns, rows)


def differences(sets: Sequence[VerdictSet]) -> Table:
    """Each contender minus the best by a measure, with 95 % intervals."""
    kinds: dict[VerdictMetric, str] = {
        "accuracy": "points", "squared": "square_points", "nll": "number"
    }  # fmt: skip
    says = {"points": text.points, "square_points": text.square_points, "number": text.number}
    rows = [
        {
            "metric": METRICS[one.metric],
            "pair": f"{d.label} − {d.against}",
            "difference": says[kinds[one.metric]](d.difference),
            "interval": " … ".join(says[kinds[one.metric]](end) for end in d.interval),
            "clear": d.distinguishable,
        }
        for one in sets
        for d in one.differences
    ]
    columns = [
        Column("metric", "By"),
        Column("pair", "Pair"),
        Column("difference", "Difference"),
        Column("interval", "95 % interval"),
        Column("clear", "Told apart", "yes"),
    ]
    return Table(columns, rows)


def at_equal_accuracy(equal: EqualAccuracy) -> Table:
    """Contenders at one ID accuracy, and those that cannot be read there."""
    rows = [{**dict(row), "between": f"{row.lr_low:g} and {row.lr_high:g}"} for row in equal.rows]
    columns = [
        Column("label", "Configuration"),
        Column("between", "Between the rates"),
        Column("ood_accuracy", "OOD accuracy", "percent"),
        *_CALIBRATION,
    ]
    return Table(columns, rows)


def ladders(arms: Sequence[SweepArm]) -> Table:
    rows = [
        {
            **dict(rate),
            "label": arm.label,
            "lr": f"{rate.lr:g}",
            "chosen": rate.lr == arm.lr,
        }
        for arm in arms
        for rate in arm.rates
    ]
    columns = [
        Column("label", "Configuration"),
        Column("lr", "Rate"),
        Column("state", "State"),
        Column("val_accuracy", "ID validation accuracy", "percent"),
        Column("chosen", "Chosen", "yes"),
    ]
    return Table(columns, rows)
