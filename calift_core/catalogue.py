"""Suites and models that a RunSpec can name, and what of them is on this machine. Torch-free."""

import json
import os
from functools import lru_cache
from pathlib import Path

from calift_core.data.suites import SUITES
from calift_core.data.suites.base import SuiteFamily, variable_of
from calift_core.errors import StorageError
from calift_core.files import sha256_file
from calift_core.packaged import packaged
from calift_core.schema.methods import METHOD_SPECS, MethodBase
from calift_core.schema.suite import TINY_SUITES
from calift_core.schema.wire.service import DatasetInfo, MethodInfo, ModelInfo

TINY = "calift-tiny"

#: Common open_clip architectures and tags, with the hub repository that their weights come from.
#: Any other open_clip name works as well; this list only spares people from knowing them.
OPEN_CLIP: dict[tuple[str, str], str] = {
    ("RN50", "openai"): "timm/resnet50_clip.openai",
    ("RN101", "openai"): "timm/resnet101_clip.openai",
    ("ViT-B-32", "openai"): "timm/vit_base_patch32_clip_224.openai",
    ("ViT-B-32", "laion2b_s34b_b79k"): "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    ("ViT-B-32", "datacomp_xl_s13b_b90k"): "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
    ("ViT-B-16", "openai"): "timm/vit_base_patch16_clip_224.openai",
    ("ViT-B-16", "laion2b_s34b_b88k"): "laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
    ("ViT-B-16", "datacomp_xl_s13b_b90k"): "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
    ("ViT-B-16", "dfn2b"): "apple/DFN2B-CLIP-ViT-B-16",
    ("ViT-B-16-SigLIP", "webli"): "timm/ViT-B-16-SigLIP",
    ("ViT-L-14", "openai"): "timm/vit_large_patch14_clip_224.openai",
    ("ViT-L-14", "laion2b_s32b_b82k"): "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
    ("ViT-L-14", "datacomp_xl_s13b_b90k"): "laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
    ("ViT-L-14-336", "openai"): "timm/vit_large_patch14_clip_336.openai",
    ("ViT-H-14", "laion2b_s32b_b79k"): "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    ("EVA02-B-16", "merged2b_s8b_b131k"): "timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k",
    ("convnext_base", "laion400m_s13b_b51k"): "laion/CLIP-convnext_base-laion400M-s13B-b51K",
    ("MobileCLIP-S1", "datacompdr"): "apple/MobileCLIP-S1-OpenCLIP",
    ("MobileCLIP-B", "datacompdr"): "apple/MobileCLIP-B-OpenCLIP",
}


@lru_cache(maxsize=1)
def methods() -> tuple[MethodInfo, ...]:
    """Every method with the JSON schema of its options."""
    return tuple(
        MethodInfo(
            kind=kind,
            title=spec.title,
            summary=spec.summary,
            source=spec.source,
            trains=spec.trains,
            terms=list(spec.terms),
            defaults={
                "lr": spec.default_lr,
                "adapted_lr": _adapted_rates(spec),
                "weight_decay": spec.default_weight_decay,
                "clip_grad_norm": spec.default_clip_grad_norm,
                # Not validated: what a method requires has no default.
                **spec.model_construct(kind=kind).model_dump(mode="json", exclude={"kind"}),
            },
            spec_schema=spec.model_json_schema(),
        )
        for kind, spec in METHOD_SPECS.items()
    )


def _adapted_rates(spec: type[MethodBase]) -> str | None:
    """The learning rates of a run that trains a part of the towers, in words."""
    parts = [adapt for adapt in spec.adapts if adapt != "full"]
    rates = spec.model_construct(kind="")
    return ", ".join(f"{adapt} {rates.rate_of(adapt):g}" for adapt in parts) or None


def datasets() -> list[DatasetInfo]:
    """Every named suite, with what is here and how to get the rest."""
    return available_suites()


def models(home: Path) -> list[ModelInfo]:
    """Our own small model first, then the common open_clip ones.

    Args:
        home: `CALIFT_HOME`, whose `models/` holds the weights that calift makes.
    """
    found = _tiny_models(home)
    for (name, tag), hub in OPEN_CLIP.items():
        weights = cached_weights(name, tag)
        found.append(
            ModelInfo(
                name=name,
                pretrained=tag,
                available=weights is not None,
                detail="in the local cache"
                if weights
                else f"fetched from {hub} at first use, where the machine has a network",
                size_bytes=weights.stat().st_size if weights else None,
            )
        )
    return found


def _tiny_models(home: Path) -> list[ModelInfo]:
    here = [info.id for info in available_suites() if info.available and "pretrain" in info.parts]
    made = sorted(index.stem for index in (home / "models" / TINY).glob("*.json"))
    return [_tiny_model(home, suite) for suite in dict.fromkeys([*TINY_SUITES, *here, *made])]


def _tiny_model(home: Path, suite: str) -> ModelInfo:
    weights = tiny_weights(home, suite)
    if weights is None:
        return ModelInfo(
            name=TINY,
            pretrained=suite,
            available=False,
            detail="not pre-trained here yet; the first run that names it does that",
        )
    information = weights.stat()
    return ModelInfo(
        name=TINY,
        pretrained=suite,
        available=True,
        detail="it comes with calift" if packaged(suite) else "pre-trained on this machine",
        size_bytes=information.st_size,
        sha256=_hash_of(str(weights), information.st_mtime_ns),
    )


@lru_cache(maxsize=64)
def _hash_of(path: str, _mtime_ns: int) -> str | None:
    try:
        return sha256_file(path)
    except StorageError:
        return None


def tiny_weights(home: Path, suite: str) -> Path | None:
    """The weights of `calift-tiny` for a suite: they came along, or were made here, if any."""
    comes_along = packaged(suite)
    if comes_along is not None:
        return comes_along.file if comes_along.file.is_file() else None
    index = home / "models" / TINY / f"{suite}.json"
    try:
        entry = json.loads(index.read_text(encoding="utf-8"))
        weights = index.parent / str(entry["folder"]) / "model.safetensors"
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return weights if weights.is_file() else None


def cached_weights(name: str, tag: str) -> Path | None:
    """The weights of an open_clip model in the hub's local cache, if they are there."""
    hub = OPEN_CLIP.get((name, tag))
    if hub is None:
        return None
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    snapshots = cache / f"models--{hub.replace('/', '--')}" / "snapshots"
    for pattern in ("*/open_clip*.safetensors", "*/open_clip*.bin", "*/*.safetensors", "*/*.pt"):
        for path in sorted(snapshots.glob(pattern)):
            if path.is_file():
                return path
    return None


def available_suites() -> list[DatasetInfo]:
    """Every named suite, with what is here and what to do about what is not."""
    return [_info(family) for family in SUITES.values()]


def _info(family: SuiteFamily) -> DatasetInfo:
    missing = family.missing(None)
    detail = "on this machine"
    if missing:
        detail = family.how_to_get
        if os.environ.get(variable_of(family.name)):  # somebody has begun: say what is left
            detail = f"Incomplete ({'; '.join(missing[:8])}). {detail}"
    return DatasetInfo(
        id=family.name,
        title=family.title,
        available=not missing,
        detail=detail,
        classes=list(family.classes),
        parts=dict(family.parts),
    )
