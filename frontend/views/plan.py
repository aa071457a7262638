"""Plan: how many samples a data set must have to show a difference."""

import streamlit as st

from calift_core.client import Client
from calift_core.errors import CaliftError
from calift_core.schema.wire.queries import BudgetQuery
from calift_core.schema.wire.results import Budget, Evaluation
from frontend import api, figures, page, pickers, state, text
from frontend.tables import Run

METRICS = {"accuracy": "Accuracy", "ece": "Calibration (L2)", "nll": "NLL", "brier": "Brier score"}
#: What is looked at around the difference that is asked for.
_TIMES = (0.25, 0.5, 1.0, 2.0, 4.0)
_POWERS = {"0.8": "80 %", "0.9": "90 %", "0.95": "95 %"}


def main() -> None:
    page.head(
        "Sample size",
        "How many samples it takes to show a difference, by the rule that comparisons decide with.",
    )
    chosen = pickers.pick_runs("run", most=4)
    labels = {run.id: run.label for run in pickers.as_runs(chosen)}
    found = {run_id: api.evaluations(run) for run_id, run in chosen.items()}
    titles: dict[str, str] = {}
    for e in sorted((e for es in found.values() for e in es), key=text.evaluation_order):
        titles.setdefault(e.dataset, f"{text.evaluation_title(e)} ({text.ROLES[e.role]})")
    if not titles:
        pickers.nothing_evaluated()
        return
    columns = st.columns([5, 4, 4, 6])
    dataset = state.choice(
        columns[0].selectbox, "Data", name="dataset", options=titles, always=True
    )
    metric = state.choice(columns[1].selectbox, "Difference in", name="metric", options=METRICS)
    scale = 100.0 if metric in ("accuracy", "ece") else 1.0
    difference = (
        state.number(
            columns[2].number_input,
            "To be shown, points" if scale > 1 else "To be shown",
            name="difference",
            default=1.0 if scale > 1 else 0.02,
            min_value=0.001,
            max_value=100.0,
            step=0.5 if scale > 1 else 0.01,
            format="%g",
        )
        / scale
    )
    power = float(
        state.choice(
            columns[3].segmented_control,
            "Power",
            name="power",
            options=_POWERS,
            required=True,
            help="How often the difference is found where it is real; the test's level is 95 %",
        )
    )
    base = _baseline(labels)
    by_run = {run_id: e for run_id, es in found.items() for e in es if e.dataset == dataset}
    plans = []
    for run_id, evaluation in by_run.items():
        against = by_run.get(base)
        if evaluation is against:
            continue
        plan = _plan(evaluation, against, metric, difference, power, labels)
        if plan:
            plans.append((Run(run_id, labels[run_id]), plan))
    if not plans:
        return
    page.chart(
        figures.planning.needed(
            plans,
            styles=state.styles(list(chosen)),
            title=f"Samples that a difference takes on {titles[dataset]}",
        ),
        figures.planning.table(plans),
        name="plan",
    )
    page.table(figures.planning.table(plans), caption="Samples that a difference takes")


def _baseline(labels: dict[str, str]) -> str:
    return state.choice(
        st.selectbox,
        "On the same samples as",
        name="against",
        options={"": "nobody: each model on samples of its own", **labels},
        help="In pairs, what is hard for both models cancels: of models alike, fewer samples do",
    )


def _plan(
    evaluation: Evaluation,
    against: Evaluation | None,
    metric: str,
    difference: float,
    power: float,
    labels: dict[str, str],
) -> list[Budget]:
    """The sentence for one run, and its budgets around the difference."""
    name = f"**{text.md(labels[evaluation.run_id])}**"
    budgets = []
    for times in _TIMES:
        try:
            budgets.append(
                api.answer(
                    Client.budget,
                    evaluation.id,
                    evaluation.predictions_sha256,
                    BudgetQuery.of(
                        params={
                            "difference": difference * times,
                            "metric": metric,
                            "against": against and against.id,
                            "power": power,
                        }
                    ),
                )
            )
        except CaliftError as error:
            if times == 1.0:
                st.warning(f"{name}: {text.md_prose(error.message)}", icon=":material/warning:")
                return []
    budget = next(b for b in budgets if b.difference == difference)
    pairs = f" in pairs with {text.md(labels[against.run_id])}" if against else ""
    unit = text.points if metric in ("accuracy", "ece") else text.number
    least = "no difference" if budget.detectable is None else unit(budget.detectable).lstrip("+")
    verdict = "enough" if budget.enough else "too few"
    st.markdown(
        f"{name}{pairs}: a difference of {unit(difference).lstrip('+')} takes "
        f"**{text.count(budget.needed)}** samples. There are {text.count(budget.n)}: {verdict}; "
        f"they show {least}."
    )
    return budgets


main()
