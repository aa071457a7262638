"""What each of several ranks does in the tests: `one_rank(FOLDER, ENVIRONMENT)` in a process each.

FOLDER holds `vit.json`, a model's config, and a RunSpec for every run in `specs/`. Rank 0 leaves
`gradients.json`, how far gradients and terms of shared batches are from those of whole ones, and a
folder of each run in `runs/`.
"""

import copy
import json
import os
import traceback
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from calift_core.data.ranks import Ranks, joined
from calift_core.jobs.folder import run_in_folder
from calift_core.methods import Batch, Method, RunLength, make_method
from calift_core.methods.confidence import mix
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.models.loading import load_clip
from calift_core.schema.methods import METHOD_SPECS
from calift_core.schema.spec import load_spec
from calift_core.schema.train import ConfidenceSpec
from calift_core.training.step import add_gradient, make_optimizer
from tests.core.conftest import CLASSES, PHOTO, random_batch
from tests.core.training.test_loop import plan

CPU = torch.device("cpu")
#: Name → method, its options, training-time calibration, accumulation steps.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "flyp in parts": ("flyp", {}, {"label_smoothing": 0.1, "zero_shot_kd": 0.5}, 2),
    "carot in parts": ("carot", {"teacher_update_every": 2}, {}, 3),
    "tracer": ("tracer", {"preset": "ViT-B-16"}, {}, 1),
    "anchored": ("anchored", {}, {}, 1),
    "finetune": ("finetune", {}, {"label_smoothing": 0.1}, 2),
    "finetune mixed": ("finetune", {}, {"mixup_alpha": 0.5}, 1),
    "finetune with mmce": ("finetune", {}, {"mmce": 4.0, "zero_shot_kd": 0.5}, 1),
    "lipsum_ft": ("lipsum_ft", {}, {}, 1),
    "car_ft": ("car_ft", {}, {}, 1),
}
#: Of a batch: no multiple of 2 or 4, so that ranks have shares of different sizes.
B = 11


def made(case: str, clip: Clip, captions: Captions) -> Method:
    """A method two steps into its run, so that the teacher is another model than the student."""
    kind, options, confidence, _ = CASES[case]
    method = make_method(
        METHOD_SPECS[kind](**options),
        copy.deepcopy(clip),
        captions,
        length=RunLength(total_steps=20),
        confidence=ConfidenceSpec(**confidence),
    )
    method.clip.train()
    optimizer = make_optimizer(method, plan(lr=3e-3))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for step in (1, 2, 3):
        add_gradient(method, random_batch(clip, 8, seed=step), scaler, plan(), CPU)
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step)
    return method


def gradient_of(method: Method, batch: Batch, parts: int) -> tuple[dict[str, Tensor], Tensor]:
    """Loss and terms, and the whole gradient as one vector; it is cleared."""
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    terms = add_gradient(method, batch, scaler, plan(accumulation_steps=parts), CPU)
    parameters = [p for module in method.trainable().values() for p in module.parameters()]
    found = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    for parameter in parameters:
        parameter.grad = None
    return terms, found


def shared(batch: Batch, ranks: Ranks) -> Batch:
    """This rank's part of a batch."""
    parts = {name: ranks.share(getattr(batch, name)) for name in ("images", "labels", "captions")}
    return replace(batch, **parts, ranks=ranks, total=len(batch))


def compared(case: str, clip: Clip, captions: Captions, ranks: Ranks) -> dict[str, float]:
    """How far the shared batch is from the whole one: of the gradient's norm, and of each term."""
    alone, together = made(case, clip, captions), made(case, clip, captions)
    _, _, confidence, parts = CASES[case]
    batch = random_batch(clip, B, seed=50)
    mine = shared(batch, ranks)
    if alpha := confidence.get("mixup_alpha"):
        batch, mine = (mix(b, alpha, torch.Generator().manual_seed(1)) for b in (batch, mine))
    terms, expected = gradient_of(alone, batch, parts)
    again, found = gradient_of(together, mine, parts)
    assert terms.keys() == again.keys()
    gaps = {name: float((again[name] - value).abs()) for name, value in terms.items()}
    everybody = ranks.all_gather(found)
    assert all(torch.equal(found, other) for other in everybody), "ranks have other gradients"
    return gaps | {"gradient": float((found - expected).norm() / expected.norm())}


def main(folder: Path) -> None:
    """Compare gradients, then go through every run."""
    torch.set_num_threads(1)
    with joined() as ranks, nullcontext():
        config = str(folder / "vit.json")
        clip = load_clip(config, None, generator=torch.Generator().manual_seed(7))
        names = [name.replace("_", " ") for name in CLASSES]
        captions = Captions.make(names, PHOTO, clip.tokenizer)
        cases = [case for case in CASES if os.environ.get("CASES", case) == case]
        gaps = {case: compared(case, clip, captions, ranks) for case in cases}
        if ranks.first:
            (folder / "gradients.json").write_text(json.dumps(gaps))
        for path in sorted((folder / "specs").glob("*.json")):
            for _ in run_in_folder(load_spec(path), folder / "runs" / path.stem, ranks=ranks):
                pass
        ranks.wait()


def one_rank(folder: Path, environment: dict[str, str]) -> None:
    """`main` in a process of its own; what goes wrong is told in the folder too."""
    os.environ |= environment
    try:
        main(folder)
    except BaseException:
        with (folder / "faults").open("a") as file:
            traceback.print_exc(file=file)
        raise
