"""The model card of an exported model, made of what its run measured."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from calift_core.calibration.decisions import clopper_pearson
from calift_core.calibration.registry import INITIAL_MODEL_CALIBRATORS
from calift_core.shipping.exported_scores import DatasetScores
from calift_core.shipping.folder import EXPORT_NAME, PICTURE_NAME, Exported
from calift_core.words import nats, percent

#: Names of classes that a card lists; of more it gives the number.
_LISTED = 100


def model_card(exported: Exported, rows: Sequence[DatasetScores], *, picture: bool) -> str:
    """The card as Markdown with the head that a hub reads.

    Args:
        rows: what it gives on ID test data, shifts and corruptions.
    """
    made = exported.provenance
    card = f"---\n{_head(exported, rows)}\n---\n\n# {_plain(made.name)}\n\n{_body(exported, rows)}"
    if picture:
        card += (
            f"\n## Reliability\n\n![Accuracy against confidence]({PICTURE_NAME})\n\n"
            "Accuracy of the images in a bin against their mean confidence, on ID test data and on "
            "the shift with the largest error. Below the diagonal the model is over-confident. The "
            "band is where a perfectly calibrated model's bins would lie 95 times in 100.\n"
        )
    return str(ModelCard(card))


def _head(exported: Exported, rows: Sequence[DatasetScores]) -> str:
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=_plain(row.dataset),
            dataset_name=_plain(row.dataset),
            metric_type=kind,
            metric_name=name,
            metric_value=round(value, 6),
        )
        for row in rows
        if row.role in ("id", "shift")
        for kind, name, value in (
            ("accuracy", "Accuracy", row.accuracy),
            ("ece", "Calibration error (ECE)", row.ece.value),
            ("nll", "Negative log likelihood", row.nll),
        )
    ]
    made = exported.provenance
    return ModelCardData(
        license=made.license,
        base_model=made.base_repository,
        library_name="open_clip",
        pipeline_tag="image-classification",
        tags=["clip", "calibration", "calift"],
        model_name=_plain(exported.provenance.name),
        eval_results=results or None,
    ).to_yaml()


def _body(exported: Exported, rows: Sequence[DatasetScores]) -> str:
    made, choice = exported.provenance, exported.choice
    classes = exported.model["classes"]
    named = ", ".join(map(_plain, classes[:_LISTED]))
    more = f" and {len(classes) - _LISTED:,} more" if len(classes) > _LISTED else ""
    warnings = "".join(f"> **Warning.** {one}\n\n" for one in chance_warnings(exported, rows))
    warnings += (
        f"A CLIP model ({_plain(exported.model['name'])}) of {made.method_title} on "
        f"{_plain(made.suite)}, with a head for {len(classes):,} classes: {named}{more}.\n\n"
        f"**Base model:** {_plain(made.base_model)}. **Licence:** {_license(made.license)}.\n\n"
    )
    if choice is None or choice.kind == "none":
        warnings += "Its probabilities are its own: no calibrator is applied.\n"
    else:
        on = choice.fitted_on
        warnings += (
            f"Its probabilities go through a calibrator, *{choice.kind}*, fitted on {on.n:,} "
            f"images of {_plain(on.dataset)}"
        )
        if choice.chosen_on is not None and choice.requested == "auto":
            warnings += (
                f" and chosen by the negative log likelihood on {choice.chosen_on.n:,} images of "
                f"{_plain(choice.chosen_on.dataset)}"
            )
        warnings += ". No shift and no test image was used for either.\n"
        if choice.kind in INITIAL_MODEL_CALIBRATORS:
            warnings += (
                "The calibrator reads the logits of the initial model too, which is in the folder "
                "`initial`: two towers, and two passes for every image.\n"
            )
    for note in [] if choice is None else choice.notes:
        warnings += f"\n> **Few images.** {_plain(note)}\n"
    return (
        warnings
        + _table(rows)
        + _changed(rows)
        + _promised(exported)
        + _none_of_these(exported)
        + _use(exported)
    )


def _license(name: str) -> str:
    if name != "unknown":
        return _plain(name)
    return "not stated. That of the base model and of the images it was trained on decides"


def chance_warnings(exported: Exported, rows: Sequence[DatasetScores]) -> list[str]:
    """Sentences on the data sets where the model is not shown to do better than guessing.

    Guessing is right in 1 / C of C equally frequent classes. An accuracy is above that where its
    Clopper-Pearson 95 % interval is.
    """
    n_classes, found = len(exported.model["classes"]), []
    for row in rows:
        low, high = map(float, clopper_pearson(round(row.accuracy * row.n), row.n))
        if row.role in ("id", "shift") and low <= 1 / n_classes:
            found.append(
                f"On {_plain(row.dataset)} it is not shown to be better than guessing: "
                f"{percent(row.accuracy)} of {row.n:,} images are right ({percent(low)} to "
                f"{percent(high)}), and "
                f"chance among {n_classes:,} classes is {percent(1 / n_classes)}."
            )
    return found


def _changed(rows: Sequence[DatasetScores]) -> str:
    """What the calibrator changed on ID data and shifts; nothing where there is none."""
    shown = [(row, row.before) for row in rows if row.role in ("id", "shift")]
    lines = [
        f"| {_plain(row.dataset)} | {percent(before.accuracy)} → {percent(row.accuracy)} | "
        f"{percent(before.ece)} → {percent(row.ece.value)} | "
        f"{nats(before.nll)} → {nats(row.nll)} | {before.brier:.3f} → {row.brier:.3f} |"
        for row, before in shown
        if before is not None
    ]
    if not lines:
        return ""
    head = ["| data | accuracy | ECE | NLL | Brier |", "|---|---|---|---|---|"]
    return "\n".join(["\n## Before and after the calibrator\n", *head, *lines]) + "\n"


def _table(rows: Sequence[DatasetScores]) -> str:
    lines = [
        "\n## What was measured\n",
        "| data | n | accuracy | ECE (95 % interval) | floor | NLL | Brier |",
        "|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows if row.role == "id"),
        *(_line(row) for row in rows if row.role == "shift"),
    ]
    corrupted = [row for row in rows if row.role == "corruption"]
    if corrupted:
        worst = max(corrupted, key=lambda row: row.ece.value)
        lines.append(_mean(corrupted))
        lines.append(_line(worst, "worst of them: "))
    lines.append(
        "\nPercent; NLL in nats. ECE: top-label calibration error, "
        f"{rows[0].ece.n_bins} bins of {rows[0].ece.scheme.replace('_', ' ')}. The *floor* is what "
        "a perfectly calibrated model would read on average at this n: an error near it is no "
        "evidence of miscalibration.\n"
    )
    own = [row.dataset for row in rows if not row.calibrated]
    if own:
        lines.append(
            f"Before the calibrator, since only the largest logits are stored: {', '.join(own)}.\n"
        )
    return "\n".join(lines)


def _promised(exported: Exported) -> str:
    promises = exported.promises
    if promises is None:
        return ""
    lines = [
        "\n## What can be promised, and where it holds\n",
        f"Fitted on {promises.n:,} images of {_plain(promises.dataset)}. The promise is for data "
        "like these; the rows of shifts show what became of it there.\n",
        "| at most … errors among what is kept | from confidence | data | kept | errors (95 %) |",
        "|---|---|---|---|---|",
    ]
    for one in promises.thresholds:
        if one.threshold is None:
            lines.append(f"| {percent(one.risk, 0)} | cannot be promised | | | |")
        for test in one.tests:
            errors = "–"
            if test.errors is not None and test.interval is not None:
                low, high = test.interval
                errors = f"{percent(test.errors)} ({percent(low)} to {percent(high)})"
                if test.role == "id" and low > one.risk:
                    errors += ", **broken**"
            lines.append(
                f"| {percent(one.risk, 0)} | {one.threshold:.4f} | {_plain(test.dataset)} | "
                f"{percent(test.coverage)} | {errors} |"
            )
    lines += [
        "\n| sets with the true class in … | data | coverage | classes in a set |",
        "|---|---|---|---|",
        *(
            f"| {percent(one.coverage, 0)} | {_plain(test.dataset)} | {percent(test.coverage)} | "
            f"{test.mean_size:.2f} |"
            for one in promises.sets
            for test in one.tests
        ),
    ]
    return "\n".join(lines) + "\n"


def _none_of_these(exported: Exported) -> str:
    found = exported.none_of_these
    if found is None or all(one.threshold is None for one in found.thresholds):
        return ""
    lines = [
        "\n## None of these\n",
        f"Images with a score ({found.score.upper()}) below a threshold are unlike the ID data. It "
        f"is chosen on {found.n:,} images of {_plain(found.dataset)} for a rate of false alarms.\n",
        "| false alarms | score below | data | none of these (95 %) |",
        "|---|---|---|---|",
    ]
    for one in found.thresholds:
        for test in one.tests:
            low, high = test.interval
            lines.append(
                f"| {percent(one.false_alarms, 0)} | {one.threshold:.6g} | "
                f"{_plain(test.dataset)} | "
                f"{percent(test.alarms)} ({percent(low)} to {percent(high)}) |"
            )
    return "\n".join(lines) + "\n"


def _line(row: DatasetScores, before: str = "") -> str:
    low, high = row.ece.interval
    return (
        f"| {before}{_plain(row.dataset)} | {row.n:,} | {percent(row.accuracy)} | "
        f"{percent(row.ece.value)} "
        f"({percent(low)} to {percent(high)}) | {percent(row.ece.null_mean)} | {nats(row.nll)} | "
        f"{row.brier:.3f} |"
    )


def _mean(rows: Sequence[DatasetScores]) -> str:
    return (
        f"| {len(rows)} corrupted sets, mean | {sum(row.n for row in rows):,} | "
        f"{percent(fmean(row.accuracy for row in rows))} | "
        f"{percent(fmean(row.ece.value for row in rows))} | "
        f"{percent(fmean(row.ece.null_mean for row in rows))} | "
        f"{nats(fmean(row.nll for row in rows))} | "
        f"{fmean(row.brier for row in rows):.3f} |"
    )


def _use(exported: Exported) -> str:
    made = exported.provenance
    return f"""
## Use

```python
import calift

model = calift.load("FOLDER")            # this folder
model.predict(["a.jpg"]).top(5)          # classes with calibrated probabilities
```

In plain open_clip, without head and calibrator:
`open_clip.create_model_and_transforms("local-dir:FOLDER")`.

**Meant for** classifying images like those it was fine-tuned on into the classes above.
**Limits.** It knows no other class and gives one of these to any image. A probability is worth what
the table says of data like yours: where images differ from all rows of the table, nothing is known.
A calibrator fitted on ID data does not repair what a shift breaks; the rows of shifts show how much
is left. Measure on images of your own before a decision rests on a probability.

## Where it comes from

Run {_plain(made.run_id)} of calift {made.calift_version}, {made.method_title}
{_options(made.method)}, seed {made.train.get("seed")}, RunSpec {made.spec_sha256[:16]}…; all else
is in `{EXPORT_NAME}`.
"""


def _options(method: Mapping[str, Any]) -> str:
    options = [f"{k} = {v}" for k, v in method.items() if k != "kind" and v is not None]
    return f"({_plain(', '.join(options)) or 'no options'})"


def _plain(text: Any) -> str:
    """A name as text: no markup of its own, one line."""
    kept = " ".join(str(text).split())
    return "".join("\\" + c if c in "\\`*_{}[]<>|#!" else c for c in kept)
