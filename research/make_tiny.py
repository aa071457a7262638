"""Pre-train `calift-tiny` on typefaces, and write the weights that come with the package.

    CALIFT_TYPEFACES=FOLDER python research/make_tiny.py --out FOLDER

FOLDER of the images is what `research/make_typefaces.py` wrote (`study`). About 20 minutes of one
core; it goes on where it was. The last lines say the file's SHA-256, which belongs into
`calift_core/packaged.py`, and the zero-shot accuracy in float32 and as it is shipped.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from calift_core.data.suites.load import Suite, load_suite
from calift_core.evaluation.forward import ForwardSettings, predict
from calift_core.files import sha256_file
from calift_core.jobs.folder import run_in_folder
from calift_core.jobs.tiny import pretraining_spec
from calift_core.methods.base import zero_shot_classifier
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.models.loading import TINY, load_clip, load_shipped, shrunk
from calift_core.models.zeroshot import TEMPLATES
from calift_core.schema.records import MetricsRecord, ProgressRecord


def main() -> None:
    """Read the arguments, train, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the run and the file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="auto", help="bf16 takes two thirds of the time")
    options = parser.parse_args()
    spec = pretraining_spec("typefaces")
    train = {"seed": options.seed, "precision": options.precision, "cache_images": True}
    spec = spec.model_copy(update={"train": spec.train.model_copy(update=train)})
    for record in run_in_folder(spec, options.out / "run"):
        if isinstance(record, MetricsRecord | ProgressRecord):
            print(record.model_dump_json(exclude_none=True), flush=True)
    suite = load_suite(spec.suite)
    weights = options.out / "run" / "checkpoint" / "model.safetensors"
    clip = load_clip(TINY, str(weights))
    tokens = torch.cat(
        [
            Captions.make(suite.class_names, TEMPLATES[name], clip.tokenizer).tokens
            for name in ("letters", suite.learned)
        ]
    ).unique()
    file = options.out / "calift_tiny_typefaces.safetensors"
    save_file(shrunk(clip.net, tokens), file)
    print("float32:", *accuracies(clip, suite))
    small = load_clip(TINY, None, generator=torch.Generator().manual_seed(0))
    load_shipped(small.net, file)
    print("shipped:", *accuracies(small, suite))
    print(f"{file}: {file.stat().st_size:,} bytes, {len(load_file(file)['token_ids'])} token rows")
    print(f"SHA-256 {sha256_file(file)}")
    shutil.copy(weights, options.out / "model.safetensors")


def accuracies(clip: Clip, suite: Suite) -> list[str]:
    """Zero-shot accuracy on each ID part: no shift is looked at when weights are chosen."""
    clip.eval()
    captions = Captions.make(suite.class_names, TEMPLATES["letters"], clip.tokenizer)
    classifier = zero_shot_classifier(clip, captions)
    said = []
    settings = ForwardSettings(
        batch_size=256, workers=0, device=torch.device("cpu"), precision="fp32"
    )
    for images in map(suite.part, ("validation", "calibration", "test")):
        logits = predict(clip, classifier, images, settings)
        right = np.asarray(logits).argmax(axis=1) == images.labels
        said.append(f"{images.name} {right.mean():.4f}")
    return said


if __name__ == "__main__":
    sys.exit(main())
