"""Statistics and tables of the results study: stored predictions and reports in, Markdown out.

**Intervals.** Two rows are compared in pairs, on the same images and seeds, by the code that judges
sweeps (`calift_core.studies.sweep.paired`). OOD ECE is shown, and decided on the debiased squared
L2 error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core.calibration import TopLabel, ece, score_probs
from calift_core.calibration.squared import SquaredError
from calift_core.predictions.read import read_predictions
from calift_core.studies.sweep.paired import best_rows, difference, draw_images

Doubles = NDArray[np.float64]

#: The rows that every row is compared with.
YARDSTICKS = ("FT", "FLYP", "CaRot")

# ---------------------------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Judged:
    """Confidence and correctness on each OOD set, columns aligned by source image.

    Attributes:
        ids: (N,) source images.
        confidences: (K, N) of the predicted class on K sets.
        correct: (K, N) bool.
    """

    ids: NDArray[np.str_]
    confidences: Doubles
    correct: NDArray[np.bool_]


def load_judged(folder: Path, sets: Sequence[str]) -> Judged:
    """A run's stored predictions on the sets of these names.

    Raises:
        ValueError: the sets are not made from the same images.
    """
    ids: NDArray[np.str_] | None = None
    confidences, correct = [], []
    for name in sets:
        p = read_predictions(folder / "predictions" / f"{name}.parquet")
        order = np.argsort(p.ids)
        if ids is not None and not np.array_equal(ids, p.ids[order]):
            raise ValueError(f"{folder.name}: {name} has other source images than {sets[0]}")
        ids = p.ids[order]
        scores = score_probs(p.probs(), p.labels).take(order)
        confidences.append(scores.confidences)
        correct.append(scores.correct)
    assert ids is not None
    return Judged(ids, np.array(confidences), np.array(correct))


@dataclass(frozen=True)
class Resampled:
    """One run's numbers on the OOD sets, means over the sets.

    Attributes:
        ece: 15-bin equal-mass ECE of the data as they are.
        accuracy: (R + 1,) for each draw; the first is the data as they are.
        squared: (R + 1,) debiased squared L2 error; the first is the data as they are, the others
            vary around it as the error varies around the truth.
    """

    ece: float
    accuracy: Doubles
    squared: Doubles


def resampled(judged: Judged, images: Doubles) -> Resampled:
    """What the draws make of a run; bins are cut once, on the data as they are."""
    eces, squared = [], []
    for confidences, correct in zip(judged.confidences, judged.correct, strict=True):
        scores = TopLabel(confidences, correct)
        eces.append(ece(scores))
        error = SquaredError(scores)
        noise = error.noise(images[1:])
        squared.append(error.value + np.concatenate([[0.0], noise - noise.mean()]))
    return Resampled(
        float(np.mean(eces)),
        images @ judged.correct.mean(axis=0) / images.sum(axis=1),
        np.mean(squared, axis=0),
    )


def is_clear(found: Mapping[str, Any]) -> bool:
    """Whether an interval leaves 0 out; of an ECE, that of the squared errors."""
    decided = found.get("squared", found)
    return bool(decided["low"] > 0 or decided["high"] < 0)


def compare(
    rows: Mapping[str, Sequence[Path]],
    sets: Sequence[str],
    pairs: Iterable[tuple[str, str]],
    *,
    n_resamples: int = 1000,
) -> dict[str, Any]:
    """Every comparison of a suite, from the predictions of its runs.

    Args:
        rows: label → folders of its runs, one a seed, or one where nothing is random.
        sets: names of the OOD sets.
        pairs: (a, b) to compare beside each row with each of `YARDSTICKS`.
        n_resamples: R.

    Returns:
        `differences`: a → b → {ood_ece, ood_accuracy}, of which `ood_ece` has no interval of its
        own but `squared`; `best`: metric → {all, changed} → see `best_rows` (`changed` leaves
        zero-shot out).

    Raises:
        ValueError: runs were judged on different images, or have different numbers of seeds.
    """
    n_seeds = max(len(folders) for folders in rows.values())
    draws: Doubles | None = None
    ids: NDArray[np.str_] | None = None
    found: dict[str, list[Resampled]] = {}
    for label, folders in rows.items():
        if len(folders) not in (1, n_seeds):
            raise ValueError(f"{label} has {len(folders)} runs, expected 1 or {n_seeds}")
        found[label] = []
        for folder in folders:
            judged = load_judged(folder, sets)
            if draws is None or ids is None:
                ids = judged.ids
                draws = draw_images(len(ids), n_resamples=n_resamples)
            if not np.array_equal(ids, judged.ids):
                raise ValueError(f"{folder.name} was judged on other images than the first run")
            found[label].append(resampled(judged, draws))
    squared = {label: np.stack([run.squared for run in runs]) for label, runs in found.items()}
    accuracy = {label: np.stack([run.accuracy for run in runs]) for label, runs in found.items()}

    def between(a: str, b: str) -> dict[str, Any]:
        eces = [np.array([run.ece for run in found[label]]) for label in (a, b)]
        per_seed = eces[0] - eces[1]
        return {
            "ood_ece": {
                "difference": float(per_seed.mean()),
                "per_seed": per_seed.tolist(),
                "squared": difference(squared[a], squared[b]),
            },
            "ood_accuracy": difference(accuracy[a], accuracy[b]),
        }

    wanted = [(a, b) for a in rows for b in YARDSTICKS if b in rows and a != b]
    wanted += [(a, b) for a, b in pairs if a in rows and b in rows]
    differences: dict[str, Any] = {}
    for a, b in dict.fromkeys(wanted):
        differences.setdefault(a, {})[b] = between(a, b)
    best: dict[str, Any] = {}
    for key, values in (("ood_ece", squared), ("ood_accuracy", accuracy)):
        best[key] = {
            group: best_rows(
                {a: v for a, v in values.items() if group == "all" or a != "zero-shot"},
                higher_is_better=key == "ood_accuracy",
            )
            for group in ("all", "changed")
        }
    return {"differences": differences, "best": best, "n_resamples": n_resamples}


# -------------------------------------------------------------------------------------- verdict

#: What CaRot+ has to beat.
RIVALS = ("CaRot", "TRACER")


def verdict(studies: Mapping[str, Any]) -> dict[str, Any]:
    """Whether CaRot+ beats CaRot and TRACER, by the criterion that was set before the study.

    Against each rival: OOD ECE is lower in the mean over suites; the interval (of the squared
    errors) is clear below zero on at least one suite and clear above zero on none; the interval of
    OOD accuracy is clear below zero on none. It needs at least two suites.

    Args:
        studies: suite → its study, with `differences`.

    Returns:
        `holds` (None where it cannot be judged), and per rival `holds` and the conditions.
    """
    rivals: dict[str, Any] = {}
    for rival in RIVALS:
        found = {
            suite: study["differences"]["CaRot+"][rival]
            for suite, study in studies.items()
            if rival in study["differences"].get("CaRot+", {})
        }
        if len(found) < 2:
            rivals[rival] = {"holds": None, "suites": list(found)}
            continue
        ece = [d["ood_ece"] for d in found.values()]
        squared = [d["squared"] for d in ece]
        accuracy = [d["ood_accuracy"] for d in found.values()]
        conditions = {
            "lower_mean_ood_ece": float(np.mean([d["difference"] for d in ece])) < 0,
            "clearly_lower_ood_ece_somewhere": any(d["high"] < 0 for d in squared),
            "clearly_higher_ood_ece_nowhere": not any(d["low"] > 0 for d in squared),
            "clearly_lower_ood_accuracy_nowhere": not any(d["high"] < 0 for d in accuracy),
        }
        rivals[rival] = {
            "holds": all(conditions.values()),
            "suites": list(found),
            "conditions": conditions,
        }
    held = [r["holds"] for r in rivals.values()]
    return {"holds": None if None in held else all(held), "rivals": rivals}


# --------------------------------------------------------------------------------------- tables


def spread(values: Sequence[float | None], scale: float = 100, digits: int = 1) -> str:
    """Mean ± standard deviation over seeds, or the value where there is one; – where none."""
    if not values or any(v is None for v in values):
        return "–"
    x = np.array(values, dtype=np.float64) * scale
    if len(x) == 1:
        return f"{x[0]:.{digits}f}"
    return f"{x.mean():.{digits}f} ± {x.std(ddof=1):.{digits}f}"


def _mean(values: Sequence[float | None]) -> str:
    return spread(values[:1] if len(values) == 1 else [float(np.mean(values))])  # type: ignore[arg-type]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _interval(found: Mapping[str, Any]) -> str:
    """Points, in bold where the interval leaves 0 out; of an ECE, that of the squared errors."""
    text = f"{found['difference'] * 100:+.2f}"
    if is_clear(found):
        text = f"**{text}**"
    if "squared" in found:
        squared = found["squared"]
        low, high = (1e4 * squared[end] for end in ("low", "high"))
        return f"{text} (² {1e4 * squared['difference']:+.1f} [{low:+.1f}, {high:+.1f}])"
    return f"{text} [{found['low'] * 100:+.2f}, {found['high'] * 100:+.2f}]"


def _rate(lr: float | None) -> str:
    return "–" if lr is None else f"{lr:g}"


def suite_block(study: Mapping[str, Any]) -> str:
    """Tables of one suite."""
    s = study["settings"]
    rows: Mapping[str, Any] = study["rows"]
    body = []
    for label, row in rows.items():
        v = row["values"]
        body.append(
            [
                label,
                _rate(row["lr"]),
                spread(v["id_accuracy"]),
                spread(v["ood_accuracy"]),
                f"{spread(v['id_ece'])} ({_mean(v['id_ece_floor'])})",
                f"{spread(v['ood_ece'])} ({_mean(v['ood_ece_floor'])})",
                spread(v["id_nll"], 1, 3),
                spread(v["ood_nll"], 1, 3),
                spread(v["sigma_min"], 1e4, 2),
                spread(row["training_minutes"], 1, 1),
            ]
        )
    lines = [
        f"{_how(study)} {s['epochs']} epochs, batch {s['batch_size']}, seeds "
        f"{', '.join(map(str, s['seeds']))}; OOD: {', '.join(s['corruptions'])} at severities "
        f"{', '.join(map(str, s['severities']))}, {s['corruption_limit']:,} images each.",
        "",
        *_table(
            [
                "method",
                "lr",
                "ID acc",
                "OOD acc",
                "ID ECE (floor)",
                "OOD ECE (floor)",
                "ID NLL",
                "OOD NLL",
                "σ_min, 1e-4",
                "training, min",
            ],
            body,
        ),
        "",
        *_best_words(study),
        "",
        "Paired differences in points, row minus column, with 95 % intervals; bold where an "
        "interval leaves zero out. OOD ECE: in brackets (²) the difference of the squared L2 "
        "errors with the noise taken out and its interval, in squared points, which decides.",
        "",
    ]
    for key, name in (("ood_ece", "OOD ECE"), ("ood_accuracy", "OOD accuracy")):
        columns = [y for y in YARDSTICKS if y in rows]
        lines += [
            *_table(
                [name, *(f"− {y}" for y in columns)],
                (
                    [
                        label,
                        *(
                            _interval(study["differences"][label][y][key]) if label != y else ""
                            for y in columns
                        ),
                    ]
                    for label in rows
                ),
            ),
            "",
        ]
    lines += _pair_lines(study) + _grid_lines(study) + _frontier_lines(study)
    return "\n".join(lines).rstrip()


def _how(study: Mapping[str, Any]) -> str:
    """Where the numbers were made: revision and machine."""
    env = study["environment"]
    revisions = study["revisions"]
    if revisions:
        names = [
            f"{r['revision'][:10]}{' with local changes' if r['dirty'] else ''}" for r in revisions
        ]
        made = f"Made with revision{'s' if len(names) > 1 else ''} {', '.join(names)}"
    else:
        made = f"Made with calift {env['calift']}"
    threads = env["threads"]
    return (
        f"{made} on {env['processor'] if env['device_name'] == 'CPU' else env['device_name']}, "
        f"{threads} thread{'s' if threads != 1 else ''} a run, {env['precision']}."
    )


def _best_words(study: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, word in (
        ("ood_ece", "Lowest OOD calibration error (squared L2)"),
        ("ood_accuracy", "Highest OOD accuracy"),
    ):
        groups = study["best"][key]
        for group in ("all", "changed"):
            found = groups[group]
            if group == "changed" and found["set"] == groups["all"]["set"]:
                continue
            where = " of the models that were changed" if group == "changed" else ""
            others = [label for label in found["set"] if label != found["label"]]
            tail = f"; {', '.join(others)} may be it as well" if others else ", clear of all others"
            lines.append(f"- {word}{where}: {found['label']}{tail} (95 % model confidence set).")
    return lines


def _pair_lines(study: Mapping[str, Any]) -> list[str]:
    body = []
    for a, b in study["pairs"]:
        found = study["differences"].get(a, {}).get(b)
        if found is None:
            continue
        ratios = [
            f"{x / y:.2f}"
            for x, y in zip(
                study["rows"][a]["values"]["sigma_min"],
                study["rows"][b]["values"]["sigma_min"],
                strict=True,
            )
            if x is not None and y
        ]
        body.append(
            [
                f"{a} − {b}",
                _interval(found["ood_ece"]),
                _interval(found["ood_accuracy"]),
                ", ".join(ratios) or "–",
            ]
        )
    if not body:
        return []
    head = ["pair", "OOD ECE", "OOD accuracy", "σ_min ratio, per seed"]
    return [*_table(head, body), ""]


def _grid_lines(study: Mapping[str, Any]) -> list[str]:
    """Validation accuracy over the grid, and which rates lie at its edge."""
    rates = sorted({float(lr) for found in study["rates"].values() for lr in found["grid"]})
    body, edges = [], []
    for label, found in study["rates"].items():
        grid = {float(lr): values for lr, values in found["grid"].items()}
        cells = []
        for lr in rates:
            if lr not in grid:
                cells.append("")
            elif grid[lr] is None:
                cells.append("diverged")
            else:
                text = f"{grid[lr]['val_accuracy'] * 100:.2f}"
                cells.append(f"**{text}**" if lr == found["lr"] else text)
        body.append([label, *cells])
        if found["at_edge"]:
            edges.append(f"{label} ({found['at_edge']} edge, {found['lr']:g})")
    lines = [
        "ID validation accuracy over the grid of learning rates (seed "
        f"{study['settings']['grid_seed']}, used for nothing else), walked upwards until it fell:",
        "",
        *_table(["method", *(f"{lr:g}" for lr in rates)], body),
        "",
    ]
    if edges:
        lines += [
            f"Best at the grid's edge, so perhaps not the best there is: {'; '.join(edges)}.",
            "",
        ]
    return lines


def _frontier_lines(study: Mapping[str, Any]) -> list[str]:
    points = study.get("frontier")
    if not points:
        return []
    return [
        f"WiSE-FT from zero-shot (α = 0) to FT (α = 1), seed {study['settings']['seeds'][0]}:",
        "",
        *_table(
            ["α", "ID acc", "OOD acc", "ID ECE (floor)", "OOD ECE (floor)", "OOD NLL"],
            (
                [
                    f"{p['alpha']:g}",
                    spread([p["id_accuracy"]]),
                    spread([p["ood_accuracy"]]),
                    f"{spread([p['id_ece']])} ({spread([p['id_ece_floor']])})",
                    f"{spread([p['ood_ece']])} ({spread([p['ood_ece_floor']])})",
                    spread([p["ood_nll"]], 1, 3),
                ]
                for p in points
            ),
        ),
        "",
    ]


def verdict_block(studies: Mapping[str, Any]) -> str:
    """CaRot+ against its rivals on every suite, and what follows by the criterion."""
    body = []
    for rival in RIVALS:
        for suite, study in studies.items():
            found = study["differences"].get("CaRot+", {}).get(rival)
            if found is not None:
                row = [_interval(found["ood_ece"]), _interval(found["ood_accuracy"])]
                body.append([f"CaRot+ − {rival}", suite, *row])
    found = verdict(studies)
    lines = [
        "The criterion, set before the study: OOD ECE lower in the mean over suites, its interval "
        "clear of zero on at least one suite and on none to the wrong side, and no suite on which "
        "OOD accuracy is clearly lower.",
        "",
        *_table(["difference", "suite", "OOD ECE, points", "OOD accuracy, points"], body),
        "",
    ]
    words = {
        "lower_mean_ood_ece": "OOD ECE is not lower in the mean",
        "clearly_lower_ood_ece_somewhere": "OOD ECE is clearly lower on no suite",
        "clearly_higher_ood_ece_nowhere": "OOD ECE is clearly higher on a suite",
        "clearly_lower_ood_accuracy_nowhere": "OOD accuracy is clearly lower on a suite",
    }
    for rival, result in found["rivals"].items():
        if result["holds"] is None:
            lines.append(f"- Against {rival}: cannot be judged on fewer than two suites.")
        elif result["holds"]:
            lines.append(f"- Against {rival}: the criterion is met.")
        else:
            why = [words[name] for name, ok in result["conditions"].items() if not ok]
            lines.append(f"- Against {rival}: the criterion is not met ({'; '.join(why)}).")
    if found["holds"] is not None:
        overall = "better than both" if found["holds"] else "not better than both"
        lines.append(f"- Verdict: by this criterion CaRot+ is {overall}.")
    return "\n".join(lines)


def ablation_block(ablation: Mapping[str, Any]) -> str:
    """Variants of CaRot+ by ID criteria, each at its best rate."""
    suites = ablation["suites"]
    s = ablation["settings"]
    head = ["variant"]
    for suite in suites:
        head += [f"{suite}: lr", "val NLL", "val acc", "val ECE", "σ_min, 1e-4"]
    head += ["mean val NLL"]
    body, edges = [], []
    for name, variant in ablation["variants"].items():
        cells = [f"{name}: {variant['title']}"]
        for suite in suites:
            found = variant["suites"][suite]
            best = found["grid"][f"{found['lr']:g}"]
            cells += [
                f"{found['lr']:g}",
                f"{best['val_nll']:.4f}",
                spread([best["val_accuracy"]], 100, 2),
                spread([best["val_ece"]], 100, 2),
                spread([best["sigma_min"]], 1e4, 2),
            ]
            if found["at_edge"]:
                edges.append(f"{name} on {suite} ({found['at_edge']}, {found['lr']:g})")
        text = f"{variant['mean_val_nll']:.4f}"
        body.append([*cells, f"**{text}**" if name == ablation["best"] else text])
    lines = [
        f"{_how(ablation)} {s['epochs']} epochs, batch {s['batch_size']}, seed {s['grid_seed']}, "
        f"rates {', '.join(f'{lr:g}' for lr in ablation['rates'])}. Nothing was looked at but the "
        "ID validation split; σ_min is that of ID test images, without labels. The criterion, set "
        "before: the lowest mean over suites of the ID validation NLL, each variant at the rate "
        "where that is lowest.",
        "",
        *_table(head, body),
        "",
        f"Lowest: {ablation['best']} ({ablation['variants'][ablation['best']]['title']}). "
        f"λ_FD by the same criterion: {ablation['lambda_fd']:g}. With one seed, small differences "
        "are no ranking.",
    ]
    if edges and len(ablation["rates"]) > 1:
        lines += ["", f"Best at the edge of these rates: {'; '.join(edges)}."]
    return "\n".join(lines)


def inject(text: str, blocks: Mapping[str, str]) -> tuple[str, list[str]]:
    """Replace what stands between `<!-- results:NAME -->` and `<!-- /results:NAME -->`.

    Returns:
        The new text, and the names of blocks that it has no place for.
    """
    missing = []
    for name, block in blocks.items():
        start, end = f"<!-- results:{name} -->", f"<!-- /results:{name} -->"
        pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
        if len(pattern.findall(text)) != 1:
            missing.append(name)
            continue
        new = f"{start}\n\n{block}\n\n{end}"
        text = pattern.sub(lambda _, new=new: new, text)  # type: ignore[misc]
    return text, missing
