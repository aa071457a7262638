"""Statistics and tables of the results study: stored predictions and reports in, Markdown out.

**Intervals.** Two rows are compared in pairs, on the same images and seeds, by a bootstrap over
source images (each with all its corruptions: a cluster) and seeds together (basic bootstrap). Bins
are cut once per run and set, and the difference of two ECEs is freed of what noise adds to each, as
in `calift_core.calibration.paired_difference`. Drawing S seeds with replacement understates their
spread by (S − 1)/S, so seed draws are stretched by √(S/(S − 1)). Intervals are plain 95 %
intervals, not corrected for how many there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calift_core.calibration import top_label
from calift_core.calibration.compare import EceParts, Noise, noise_of, spanned
from calift_core.predictions import read_predictions

Doubles = NDArray[np.float64]

#: The rows that every row is compared with.
YARDSTICKS = ("FT", "FLYP", "CaRot")
LEVEL = 0.95

# ---------------------------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Draws:
    """One set of bootstrap draws for all rows of a study; row 0 is the data as they are.

    Attributes:
        images: (R + 1, N) how often each source image was drawn.
        seeds: (R + 1, S) weight of each seed; rows sum to 1.
    """

    images: Doubles
    seeds: Doubles


def make_draws(n_images: int, n_seeds: int, *, n_resamples: int = 1000, seed: int = 0) -> Draws:
    """Draw source images and seeds with replacement, `n_resamples` times."""
    rng = np.random.default_rng(seed)
    images = np.ones((n_resamples + 1, n_images))
    seeds = np.full((n_resamples + 1, n_seeds), 1 / n_seeds)
    stretch = np.sqrt(n_seeds / (n_seeds - 1)) if n_seeds > 1 else 1.0
    for r in range(1, n_resamples + 1):
        images[r] = np.bincount(rng.integers(n_images, size=n_images), minlength=n_images)
        drawn = np.bincount(rng.integers(n_seeds, size=n_seeds), minlength=n_seeds) / n_seeds
        seeds[r] += stretch * (drawn - 1 / n_seeds)
    return Draws(images, seeds)


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
        c, r = top_label(p.probs(), p.labels)
        confidences.append(c[order])
        correct.append(r[order])
    assert ids is not None
    return Judged(ids, np.array(confidences), np.array(correct))


def resampled(judged: Judged, images: Doubles) -> tuple[Doubles, Doubles, Noise]:
    """Mean over sets of the 15-bin equal-mass ECE, and mean accuracy, for each draw: (R + 1,) each.

    Bins are cut once, on the data as they are. The third is what noise adds to the mean ECE.
    """
    values, noises = [], []
    for confidences, correct in zip(judged.confidences, judged.correct, strict=True):
        statistic = EceParts(confidences, correct)
        parts = statistic.parts(images)  # (R + 1, bins)
        values.append(statistic.fold(parts))
        noises.append(noise_of(statistic, parts[0], parts[1:]))
    noise = Noise(
        np.mean([each.added for each in noises], axis=0),
        np.concatenate([each.parts for each in noises]),
        np.concatenate([each.spread for each in noises]),
    )
    accuracy = images @ judged.correct.mean(axis=0) / images.sum(axis=1)
    return np.mean(values, axis=0), accuracy, noise


def difference(
    a: Doubles,
    b: Doubles,
    seeds: Doubles,
    noise: tuple[Sequence[Noise], Sequence[Noise]] | None = None,
) -> dict[str, Any]:
    """A − b with its 95 % interval; a and b are (S, R + 1), or (1, R + 1) where nothing is random.

    Args:
        a: values of the first row; the first column is the data as they are.
        b: values of the second row.
        seeds: (R + 1, S) weight of each seed.
        noise: what noise adds to each run of a and of b, for errors that it is added to; None where
            the draws vary around the truth as the data do.

    Returns:
        difference, low, high and per_seed, in the unit of a and b.
    """
    per_seed = a - b  # (S, R + 1)
    is_random = per_seed.shape[0] > 1

    def folded(values: Doubles) -> Doubles:
        return (values.T * seeds[1:]).sum(axis=1) if is_random else values[0]

    point = float(per_seed[:, 0].mean())
    if noise is None:
        drawn = folded(per_seed[:, 1:])
        spans = spanned(point, lambda i, j: drawn - drawn.mean(), apart=0.0, level=LEVEL)
    else:
        added_a, added_b = (np.stack([run.added for run in runs]) for runs in noise)
        at = per_seed[:, :1]
        runs = [(x, y) for x in noise[0] for y in noise[1]]
        spans = spanned(
            point,
            lambda i, j: folded(at + added_a[:, i] - added_b[:, j]) - point,
            apart=float(np.mean([x.apart_from(y) for x, y in runs])),
            level=LEVEL,
        )
    return {
        "difference": point,
        "low": spans.low,
        "high": spans.high,
        "per_seed": per_seed[:, 0].tolist(),
    }


def is_clear(found: Mapping[str, Any]) -> bool:
    """Whether an interval leaves 0 out."""
    return bool(found["low"] > 0 or found["high"] < 0)


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
        `differences`: a → b → {ood_ece, ood_accuracy}; `best`: metric → {all, changed} → the best
        label and those whose interval to it holds 0 (`changed` leaves zero-shot out).

    Raises:
        ValueError: runs were judged on different images, or have different numbers of seeds.
    """
    n_seeds = max(len(folders) for folders in rows.values())
    draws: Draws | None = None
    ids: NDArray[np.str_] | None = None
    values: dict[str, dict[str, Doubles]] = {}
    noises: dict[str, list[Noise]] = {}
    for label, folders in rows.items():
        if len(folders) not in (1, n_seeds):
            raise ValueError(f"{label} has {len(folders)} runs, expected 1 or {n_seeds}")
        found = []
        for folder in folders:
            judged = load_judged(folder, sets)
            if draws is None or ids is None:
                ids = judged.ids
                draws = make_draws(len(ids), n_seeds, n_resamples=n_resamples)
            if not np.array_equal(ids, judged.ids):
                raise ValueError(f"{folder.name} was judged on other images than the first run")
            found.append(resampled(judged, draws.images))
        values[label] = {
            "ood_ece": np.stack([ece for ece, _, _ in found]),
            "ood_accuracy": np.stack([accuracy for _, accuracy, _ in found]),
        }
        noises[label] = [noise for _, _, noise in found]
    assert draws is not None
    seeds = draws.seeds

    def of(key: str, a: str, b: str) -> dict[str, Any]:
        noise = (noises[a], noises[b]) if key == "ood_ece" else None
        return difference(values[a][key], values[b][key], seeds, noise)

    def between(a: str, b: str) -> dict[str, Any]:
        return {key: of(key, a, b) for key in values[a]}

    wanted = [(a, b) for a in rows for b in YARDSTICKS if b in rows and a != b]
    wanted += [(a, b) for a, b in pairs if a in rows and b in rows]
    differences: dict[str, Any] = {}
    for a, b in dict.fromkeys(wanted):
        differences.setdefault(a, {})[b] = between(a, b)
    best: dict[str, Any] = {}
    for key, sign in (("ood_ece", 1), ("ood_accuracy", -1)):
        best[key] = {}
        for group in ("all", "changed"):
            labels = [a for a in rows if group == "all" or a != "zero-shot"]
            first = min(labels, key=lambda a: sign * float(values[a][key][:, 0].mean()))
            others = [a for a in labels if a != first and not is_clear(of(key, a, first))]
            best[key][group] = {"label": first, "not_distinguishable": others}
    return {"differences": differences, "best": best, "n_resamples": n_resamples}


# -------------------------------------------------------------------------------------- verdict

#: What CaRot+ has to beat.
RIVALS = ("CaRot", "TRACER")


def verdict(studies: Mapping[str, Any]) -> dict[str, Any]:
    """Whether CaRot+ beats CaRot and TRACER, by the criterion that was set before the study.

    Against each rival: OOD ECE is lower in the mean over suites; its interval is clear below zero
    on at least one suite and clear above zero on none; the interval of OOD accuracy is clear below
    zero on none. It needs at least two suites.

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
        accuracy = [d["ood_accuracy"] for d in found.values()]
        conditions = {
            "lower_mean_ood_ece": float(np.mean([d["difference"] for d in ece])) < 0,
            "clearly_lower_ood_ece_somewhere": any(d["high"] < 0 for d in ece),
            "clearly_higher_ood_ece_nowhere": not any(d["low"] > 0 for d in ece),
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
    """Points, in bold where the interval leaves 0 out."""
    text = f"{found['difference'] * 100:+.2f}"
    low, high = found["low"] * 100, found["high"] * 100
    return f"{f'**{text}**' if is_clear(found) else text} [{low:+.2f}, {high:+.2f}]"


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
        "interval leaves zero out.",
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
    for key, word in (("ood_ece", "Lowest OOD ECE"), ("ood_accuracy", "Highest OOD accuracy")):
        groups = study["best"][key]
        for group in ("all", "changed"):
            found = groups[group]
            if group == "changed" and found["label"] == groups["all"]["label"]:
                continue
            where = " of the models that were changed" if group == "changed" else ""
            same = ", ".join(found["not_distinguishable"])
            tail = f"; not distinguishable from it: {same}" if same else "; clear of every other"
            lines.append(f"- {word}{where}: {found['label']}{tail}.")
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
