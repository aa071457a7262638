"""`calift data`: what a source holds before anything runs on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from calift.commands.console import JsonFlag, err, faults_table, out, print_json, require_torch
from calift.commands.relabelling import doubtful, relabel
from calift_core.errors import DataError

if TYPE_CHECKING:
    from calift_core.analysis.copies import CopiesEffect
    from calift_core.data.alike import Features
    from calift_core.data.duplicates import Overlap, SetHashes
    from calift_core.data.images import ImageSet
    from calift_core.data.suites.load import Suite

app = typer.Typer(no_args_is_help=True, help="Look at data before anything runs on it.")
app.command()(doubtful)
app.command()(relabel)

_SHOWN = 5


@app.callback()
def data() -> None:
    """Look at data before anything runs on it."""


@app.command()
def inspect(
    source: Annotated[
        str,
        typer.Argument(
            help="As suite.id names it: a suite, a path, manifest:FILE, wds:FOLDER, hf:FOLDER."
        ),
    ],
    run: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a finished run: what copies are worth, by its stored predictions."
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a finished run or an exported model: look for copies once more, by its "
            "image features.",
            metavar="MODEL",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Count a source by part and class, and find unreadable files and copies between parts.

    Exit status 1 if an image cannot be read. Every image is decoded once, with --features twice.
    """
    from calift_core.analysis.copies import evaluated_sets
    from calift_core.data.counting import few_images
    from calift_core.data.duplicates import between
    from calift_core.data.suites.base import by_class
    from calift_core.data.suites.load import load_suite
    from calift_core.schema.suite import SuiteSpec, absolute_uri

    run_sets = {} if run is None else evaluated_sets(run)
    suite = load_suite(SuiteSpec(id=absolute_uri(source)), fetch=False, check=False)
    sets = {name: s for name, s in (suite.parts | suite.shifts).items() if len(s)}
    seen = _hash_images(sets)
    unreadable = any(one.unreadable for one in seen.values())
    overlaps = between(seen, suite.shifts)
    if features is not None and not unreadable:
        overlaps = _with_features(overlaps, _encoded(features, sets), sets, suite)
    overlaps = [o for o in overlaps if o.ids]
    found = {
        "source": source,
        "classes": list(suite.classes),
        "notes": [
            *suite.notes,
            *few_images(
                suite.classes,
                by_class(suite.parts, len(suite.classes)),
                {part: len(images) for part, images in suite.parts.items()},
            ),
        ],
        "sets": {name: _described(images, suite, seen[name]) for name, images in sets.items()},
        "overlaps": [_as_json(o, run_sets) for o in overlaps],
    }
    if as_json:
        print_json(found)
    else:
        _show(found)
    n_wrong = sum(len(s.unreadable) for s in seen.values())
    if n_wrong and not as_json:
        raise DataError(f"{n_wrong:,} images cannot be decoded")
    if n_wrong:
        raise typer.Exit(1)


def _hash_images(sets: Mapping[str, ImageSet]) -> dict[str, SetHashes]:
    from calift_core.data.duplicates import perceptual_hashes

    seen = {}
    for name, images in sets.items():
        err.print(f"looking at {len(images):,} images of {name} …", markup=False)
        seen[name] = perceptual_hashes(images)
    return seen


def _encoded(model: Path, sets: Mapping[str, ImageSet]) -> dict[str, Features]:
    """Features of every image of the sets, as a finished model makes them."""
    require_torch()
    from calift_core.evaluation.forward import ForwardSettings, encode
    from calift_core.models.finished import load_finished
    from calift_core.models.precision import resolve_device
    from calift_core.threads import loader_workers

    device = resolve_device("auto")
    clip = load_finished(model)[0].to(device)
    workers, found = loader_workers(None, device.type), {}
    settings = ForwardSettings(batch_size=64, workers=workers, device=device, precision="fp32")
    for name, images in sets.items():
        err.print(f"encoding {len(images):,} images of {name} …", markup=False)
        found[name] = encode(clip, images, settings).cpu().numpy()
    return found


def _with_features(
    overlaps: list[Overlap],
    features: Mapping[str, Features],
    sets: Mapping[str, ImageSet],
    suite: Suite,
) -> list[Overlap]:
    """The overlaps with what the features say beyond them."""
    import numpy as np

    from calift_core.data.alike import alike

    def classes(name: str) -> Any:
        return np.array(sets[name].own_names(suite.classes))[sets[name].own_labels]

    more = []
    for o in overlaps:
        matches = alike(features[o.name], features[o.other], classes(o.name), classes(o.other))
        mine, theirs = sets[o.name].ids, sets[o.other].ids
        pairs = [(mine[a], theirs[b]) for a, b, _ in matches.pairs]
        more.append(replace(o, alike=tuple(pair for pair in pairs if pair[0] not in o.ids)))
    return more


def _described(images: ImageSet, suite: Suite, seen: SetHashes) -> dict[str, Any]:
    own = images.own_names(suite.classes)
    counts = [0] * len(own)
    examples: dict[str, str] = {}
    for position, label in enumerate(images.own_labels.tolist()):
        counts[label] += 1
        examples.setdefault(own[label], images.ids[position])
    return {
        "images": len(images),
        "by_class": dict(zip(own, counts, strict=True)),
        "examples": examples,
        "unreadable": list(seen.unreadable),
    }


def _as_json(o: Overlap, run_sets: Mapping[str, Path]) -> dict[str, Any]:
    from calift_core.analysis.copies import copies_effect

    worth = copies_effect(run_sets[o.name], o.ids) if o.name in run_sets else None
    return {
        "set": o.name,
        "in": o.other,
        "n": o.n,
        "exact": [list(pair) for pair in o.exact],
        "near": [list(pair) for pair in o.near],
        "alike": [list(pair) for pair in o.alike],
        "moves_accuracy_at_most": o.share,
        "worth": None if worth is None else asdict(worth),
        "sentence": _sentence(o, worth),
    }


def _sentence(o: Overlap, worth: CopiesEffect | None) -> str:
    if worth is None:
        return o.sentence
    if worth.without is None:
        rest = "there is no other image"
    else:
        whole, without = f"{100 * worth.accuracy:.1f}", f"{100 * worth.without:.1f}"
        same = f"without them accuracy is {without} % as it is with them"
        rest = same if whole == without else f"without them accuracy is {without} %, not {whole}"
    return (
        f"{worth.copies:,} of the {worth.n:,} {o.name} images that the run was evaluated on are "
        f"copies of {o.other} images {o.kinds}; {rest}"
    )


def _show(found: Mapping[str, Any]) -> None:
    sets = found["sets"]
    table = Table("class", *sets, "for example")
    for name in found["classes"]:
        numbers = [f"{one['by_class'].get(name, 0):,}" for one in sets.values()]
        examples = [one["examples"][name] for one in sets.values() if name in one["examples"]]
        table.add_row(name, *numbers, examples[0] if examples else "–")
    table.add_row("all", *(f"{one['images']:,}" for one in sets.values()), "")
    out.print(table)
    for note in found["notes"]:
        out.print(f"warning: {note}", style="yellow", markup=False)
    unreadable = [(name, why) for name, one in sets.items() for why in one["unreadable"]]
    if unreadable:
        out.print(faults_table(unreadable))
    for o in found["overlaps"]:
        out.print(f"{o['sentence']}.", markup=False)
        for mine, theirs in (o["exact"] + o["near"] + o["alike"])[:_SHOWN]:
            out.print(f"  {mine} is {theirs}", markup=False)
    if not found["overlaps"]:
        out.print("No image is in two parts.", markup=False)
