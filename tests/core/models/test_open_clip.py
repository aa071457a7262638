"""Models are open_clip's own: the same numbers from the same weights, for every model we list.

open_clip itself only warns where a tag's activation is not its architecture's, so references are
built with `force_quick_gelu` where the tag says so.
"""

import importlib.util
import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from calift_core.catalogue import OPEN_CLIP
from calift_core.data.preprocess import Preprocess
from calift_core.errors import CheckpointError, ModelError, ModelUnavailableError
from calift_core.models.clip import Clip, ModelConfig
from calift_core.models.finished import load_finished
from calift_core.models.loading import load_clip, resolve, weights_sha256
from calift_core.training.checkpoint import save_final
from tests.core.conftest import VIT, environment, known_to_open_clip, python
from tests.core.data.test_preprocess import input_of, picture

ROWS = sorted(OPEN_CLIP)
#: timm builds these image towers whole; only their text towers are cut.
OF_TIMM = {n for n, _ in ROWS if "timm_model_name" in open_clip.get_model_config(n)["vision_cfg"]}
WORDS = 500


@pytest.fixture
def cut_short(tmp_path):
    """open_clip's architectures with few layers and words, for whoever asks open_clip for them."""
    folder = tmp_path / "configs"
    folder.mkdir()
    for name in sorted({name for name, _ in ROWS}):
        config = open_clip.get_model_config(name)
        config["text_cfg"] |= {"layers": 1, "vocab_size": WORDS}
        layers = config["vision_cfg"].get("layers")
        if layers is not None:
            config["vision_cfg"]["layers"] = [1, 1, 1, 1] if isinstance(layers, list) else 2
        (folder / f"{name}.json").write_text(json.dumps(config))
    with known_to_open_clip(folder):
        yield


def tag_of(name: str, tag: str) -> dict[str, Any]:
    return dict(open_clip.get_pretrained_cfg(name, tag))


def needs_quick_gelu(name: str, tag: str) -> bool:
    config = open_clip.get_model_config(name)
    return bool(tag_of(name, tag).get("quick_gelu", config.get("quick_gelu", False)))


@contextmanager
def quiet() -> Iterator[None]:
    """open_clip tells the root logger that weights are random."""
    root = logging.getLogger()
    before, root.level = root.level, logging.ERROR
    try:
        yield
    finally:
        root.level = before


def reference_of(name: str, *, quick_gelu: bool) -> Any:
    """open_clip's model with random weights of a seed."""
    torch.manual_seed(5)
    with quiet():
        return open_clip.create_model(name, force_quick_gelu=quick_gelu).eval()


def batch_of(net: Any, config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """A random image and two captions of random words, start and end where CLIP has them."""
    generator = torch.Generator().manual_seed(1)
    side = Preprocess.of(open_clip.get_model_preprocess_cfg(net)).size
    images = torch.randn(1, 3, side, side, generator=generator)
    text = config["text_cfg"]
    length, vocabulary = text.get("context_length", 77), text.get("vocab_size", 49408)
    tokens = torch.randint(1, vocabulary - 2, (2, length), generator=generator)
    for row, words in zip(tokens, (5, 9), strict=True):  # CLIP's ends: the largest two
        row[0], row[words], row[words + 1 :] = vocabulary - 2, vocabulary - 1, 0
    return images, tokens


@torch.no_grad()
def outputs(net: Any, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """open_clip's own: normalised embeddings, scale, bias and logits."""
    image, text = net.encode_image(images, normalize=True), net.encode_text(tokens, normalize=True)
    found = {"image": image, "text": text, "scale": net.logit_scale.exp()}
    if net.logit_bias is not None:
        found["bias"] = net.logit_bias.detach()
    return found | {"logits": net.get_logits(images, tokens)[0]}


@torch.no_grad()
def ours(clip: Clip, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    image, text = clip.encode_image(images), clip.encode_text(tokens)
    found = {"image": image, "text": text, "scale": clip.logit_scale}
    logits = clip.logit_scale * image @ text.T
    if clip.is_sigmoid:
        found["bias"] = clip.net.logit_bias.detach()
        logits = logits + clip.net.logit_bias
    return found | {"logits": logits}


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def test_resolve__every_published_tag_can_be_resolved():
    for name, tag in open_clip.list_pretrained():
        made = resolve(name, tag)
        output = tag_of(name, tag)
        for field in ("mean", "std", "interpolation", "resize_mode"):
            value = output[field]
            expected = tuple(value) if isinstance(value, (list, tuple)) else value
            assert getattr(made.preprocess, field) == expected
        assert made.preprocess.size == open_clip.get_model_config(name)["vision_cfg"]["image_size"]
        assert made.activation == ("quick_gelu" if needs_quick_gelu(name, tag) else "gelu")
        # open_clip writes the dashes of a tag as underscores.
        assert resolve(name, tag.replace("_", "-")) == made


def test_resolve__a_tag_that_says_gelu_under_a_quickgelu_name_is_refused(monkeypatch):
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED["ViT-B-32-quickgelu"], "other", {"quick_gelu": False}
    )
    with pytest.raises(ModelError, match="trained with GELU, and ViT-B-32-quickgelu is built with"):
        resolve("ViT-B-32-quickgelu", "other")


#: One of each architecture and activation: the others differ from these in sizes and weights.
KINDS = {
    ("EVA02-B-16", "merged2b_s8b_b131k"),
    ("MobileCLIP-B", "datacompdr"),
    ("MobileCLIP-S1", "datacompdr"),
    ("RN50", "openai"),
    ("ViT-B-16", "dfn2b"),
    ("ViT-B-16-SigLIP", "webli"),
    ("ViT-B-32", "laion2b_s34b_b79k"),
    ("convnext_base", "laion400m_s13b_b51k"),
}
#: timm builds these as it builds MobileCLIP-S1, whole and for seconds.
LARGE = {"EVA02-B-16", "MobileCLIP-B", "convnext_base"}


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        pytest.param(
            *row, marks=() if row in KINDS and row[0] not in LARGE else pytest.mark.thorough
        )
        for row in ROWS
    ],
    ids=lambda value: str(value),
)
@pytest.mark.usefixtures("cut_short")
def test_load_clip__computes_what_open_clip_computes(name, tag):
    quick = needs_quick_gelu(name, tag)
    net = reference_of(name, quick_gelu=quick)
    batch = batch_of(net, open_clip.get_model_config(name))
    expected = outputs(net, *batch)
    preprocess = open_clip.get_model_preprocess_cfg(net)
    del net
    clip = load_clip(name, tag, weights=False, generator=torch.Generator().manual_seed(5)).eval()
    found = ours(clip, *batch)
    # Sums are taken in another order where channels lie together, and in the text tower, which
    # runs on the longest caption only; logits are up to 14 times a cosine.
    assert clip.channels_last or torch.equal(found["image"], expected["image"])
    assert largest_difference(found, expected) < 2e-5
    assert clip.image_size == Preprocess.of(preprocess).size
    towers = {type(m) for m in clip.net.modules()}
    if name not in OF_TIMM:
        assert (open_clip.transformer.QuickGELU in towers) == quick
        assert (nn.GELU in towers) == (not quick)
    if quick and name in ("RN50", "ViT-B-32"):  # the test can tell
        other = reference_of(name, quick_gelu=False)
        assert largest_difference(found, outputs(other, *batch)) > 1e-4


MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
#: As people write it beside their weights.
WRAPPED = {
    "model_cfg": {**VIT, "quick_gelu": True},
    "preprocess_cfg": {
        "size": 999,  # open_clip takes the network's own
        "mean": MEAN,
        "std": STD,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    },
}
AS_WRAPPED = Preprocess(16, MEAN, STD, "bilinear", "squash")


def published(folder: Path, config: dict[str, Any] = WRAPPED) -> Any:
    """Files as a hub repository has them; returns open_clip's own model of them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(3)
    with quiet():
        net = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    save_file(net.state_dict(), folder / "open_clip_model.safetensors")
    return net


def test_local_dir__is_open_clips_model_with_its_own_preprocessing(tmp_path):
    net = published(tmp_path / "model")
    clip = load_clip(f"local-dir:{tmp_path / 'model'}", None).eval()
    assert clip.pretrained is None
    assert clip.model_config.activation == "quick_gelu"
    assert clip.preprocess == AS_WRAPPED
    batch = batch_of(net, WRAPPED["model_cfg"])
    assert largest_difference(ours(clip, *batch), outputs(net, *batch)) < 1e-5
    with quiet():
        _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'model'}")
    image = picture(31, 57)
    assert torch.equal(input_of(clip.preprocess, np.asarray(image)), transform(image))


def test_config__preprocess_cfg_and_activation_are_honoured(tmp_path):
    net = published(tmp_path)
    path, weights = tmp_path / "mine.json", str(tmp_path / "open_clip_model.safetensors")
    path.write_text(json.dumps(WRAPPED))
    clip = load_clip(str(path), weights).eval()
    assert clip.preprocess == AS_WRAPPED
    batch = batch_of(net, WRAPPED["model_cfg"])
    assert largest_difference(ours(clip, *batch), outputs(net, *batch)) < 1e-5
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(VIT))
    assert resolve(str(bare), weights) == ModelConfig(VIT, Preprocess(16))
    typo = {"model_cfg": VIT, "preprocess_cfg": {"resize": "squash"}}
    path.write_text(json.dumps(typo))
    with pytest.raises(ModelError, match=r"keys among size, .*resize_mode.*, got 'resize'"):
        load_clip(str(path), weights)


def test_local_dir__what_is_wrong_with_it_is_a_sentence(tmp_path):
    name = f"local-dir:{tmp_path / 'm'}"
    with pytest.raises(ModelUnavailableError, match="cannot read the model config"):
        load_clip(name, None)
    published(tmp_path / "m")
    with pytest.raises(ModelError, match="brings its own weights.*null, got 'openai'"):
        load_clip(name, "openai")
    weights = tmp_path / "m" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot load the model in local-dir"):
        load_clip(name, None)
    weights.unlink()
    with pytest.raises(ModelError, match="Required pretrained weights.*could not be loaded"):
        load_clip(name, None)
    assert load_clip(name, None, weights=False).preprocess == AS_WRAPPED
    (tmp_path / "m" / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    with pytest.raises(ModelError, match="embed_dim, vision_cfg and text_cfg"):
        load_clip(name, None)


def test_load_clip__weights_in_a_file_come_with_a_note_where_published_ones_differ():
    here = str(Path(__file__))
    note = resolve("ViT-B-16", here).note
    assert "ViT-B-16 is built with GELU and open_clip's default preprocessing" in note
    assert "QuickGELU (name it ViT-B-16-quickgelu) is what openai, dfn2b" in note
    assert "another preprocessing" not in note
    assert "another preprocessing is what webli need" in resolve("ViT-B-16-SigLIP", here).note
    assert resolve("ViT-B-16-plus-240", here).note == ""
    assert resolve("ViT-B-16-quickgelu", here).activation == "quick_gelu"


@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="it is installed")
def test_tokenizer__a_package_that_is_not_there_is_named_when_it_is_needed(tmp_path):
    path = tmp_path / "model.json"
    text = {**VIT["text_cfg"], "hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}
    path.write_text(json.dumps({**VIT, "text_cfg": text}))
    clip = load_clip(str(path), None)
    with pytest.raises(ModelUnavailableError, match="timm/ViT-B-16-SigLIP.*transformers>=5"):
        clip.tokenizer  # noqa: B018 - the first use makes it


#: Run in a process of its own: the hub's library reads the place of its cache when it is imported.
_ASK_THE_HUB = """
import json, sys, torch
from pathlib import Path
import open_clip
from calift_core.models.loading import load_clip, weights_sha256
from calift_core.errors import CaliftError

open_clip.add_model_config(Path(sys.argv[1]))
answers = {}
for name, tag in json.loads(sys.argv[2]):
    try:
        clip = load_clip(name, tag)
        answers[f"{name} {tag}"] = {
            **clip.model_config.described(), "sha256": weights_sha256(clip.net),
            "pretrained": clip.pretrained, "tokens": clip.tokenizer(["a cat"]).shape[1],
        }
    except CaliftError as error:
        answers[f"{name} {tag}"] = {"code": error.code, "error": str(error)}
print(json.dumps(answers))
"""


def in_hub_cache(cache: Path, repository: str) -> Path:
    """The folder of a repository's only snapshot in the hub's local cache."""
    at = cache / "hub" / f"models--{repository.replace('/', '--')}"
    commit = "0" * 40
    (at / "refs").mkdir(parents=True)
    (at / "refs" / "main").write_text(commit)
    return at / "snapshots" / commit


@pytest.fixture(scope="module")
def from_hub(tmp_path_factory):
    """What loading models gives where there is a filled cache and no network."""
    root = tmp_path_factory.mktemp("hub")
    cache, configs = root / "cache", root / "configs"
    own = published(in_hub_cache(cache, "calift/mine"))
    bare = in_hub_cache(cache, "calift/no-weights")
    published(bare)
    (bare / "open_clip_model.safetensors").rename(bare / "another.safetensors")
    # An open_clip tag: the architecture is cut to a tiny one for this test.
    configs.mkdir()
    (configs / "ViT-B-16.json").write_text(json.dumps(VIT))
    repository = OPEN_CLIP["ViT-B-16", "openai"]
    tagged = published(in_hub_cache(cache, repository), {"model_cfg": VIT, "preprocess_cfg": {}})
    damaged = in_hub_cache(cache, OPEN_CLIP["ViT-B-16", "dfn2b"])
    published(damaged)
    weights = damaged / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    requested = [
        ("hf-hub:calift/mine", None),
        ("hf-hub:calift/mine", "openai"),
        ("hf-hub:calift/no-weights", None),
        ("hf-hub:calift/nowhere", None),
        ("ViT-B-16", "openai"),
        ("ViT-B-16", "dfn2b"),
        ("ViT-B-16", "laion2b_s34b_b88k"),
    ]
    env = environment(root / "home", HF_HOME=str(cache))
    out, words = python("-W", "error", "-c", _ASK_THE_HUB, configs, json.dumps(requested), env=env)
    assert words == ""  # open_clip's words on the way are not shown
    answers = json.loads(out)
    return answers | {"own": weights_sha256(own), "tagged": weights_sha256(tagged)}


def test_hub__a_repository_says_how_it_is_made_and_a_tag_decides_the_activation(from_hub):
    own, tagged = from_hub["hf-hub:calift/mine None"], from_hub["ViT-B-16 openai"]
    assert (own["sha256"], tagged["sha256"]) == (from_hub["own"], from_hub["tagged"])
    assert own["activation"] == tagged["activation"] == "quick_gelu"
    assert Preprocess.of(own["preprocess"]) == AS_WRAPPED
    assert Preprocess.of(tagged["preprocess"]) == Preprocess(16)
    assert (own["pretrained"], own["tokens"]) == (None, 16)


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("hf-hub:calift/mine openai", "MODEL_INVALID", "must be null, got 'openai'"),
        ("hf-hub:calift/no-weights None", "MODEL_UNAVAILABLE", "are not on this machine"),
        ("hf-hub:calift/nowhere None", "MODEL_UNAVAILABLE", "HF_HUB_OFFLINE is set"),
        ("ViT-B-16 laion2b_s34b_b88k", "MODEL_UNAVAILABLE", "name it local-dir:FOLDER"),
        ("ViT-B-16 dfn2b", "MODEL_INVALID", "weights dfn2b of ViT-B-16 in .* cannot be loaded"),
    ],
)
def test_hub__what_cannot_be_had_is_a_sentence(from_hub, model, code, words):
    assert from_hub[model]["code"] == code
    assert re.search(words, from_hub[model]["error"])


def save_run(folder: Path, clip: Clip, description: dict[str, Any]) -> Path:
    """The model of a finished run with three classes."""
    save_final(folder / "checkpoint", clip.net, {"weights": torch.eye(3, 16)}, description)
    return folder


def description_of(clip: Clip, **more: Any) -> dict[str, Any]:
    return {
        "format": 2,
        "name": clip.name,
        "pretrained": clip.pretrained,
        "config": dict(clip.config),
        **clip.model_config.described(),
    } | more


def test_load_finished__is_made_as_it_was_trained(tmp_path):
    published(tmp_path / "m")
    clip = load_clip(f"local-dir:{tmp_path / 'm'}", None).eval()
    run = save_run(tmp_path / "run", clip, description_of(clip))
    shutil.rmtree(tmp_path / "m")  # a finished run needs nothing else
    again, _, description = load_finished(run)
    assert again.model_config == clip.model_config
    assert description["activation"] == "quick_gelu"
    batch = batch_of(clip.net, WRAPPED["model_cfg"])
    assert largest_difference(ours(again.eval(), *batch), ours(clip, *batch)) == 0
    assert again.tokenizer(["a"]).shape == (1, 16)


def test_load_finished__a_description_that_contradicts_itself_is_refused(tmp_path):
    published(tmp_path / "m")
    clip = load_clip(f"local-dir:{tmp_path / 'm'}", None)
    for change, words in (
        ({"activation": "gelu"}, "must be one of gelu and 16 pixels, its config is one of quick_g"),
        ({"preprocess": clip.preprocess.described() | {"size": 32}}, "and 32 pixels, its config"),
        ({"preprocess": {"resize_mode": "stretch"}}, "description of the model is damaged"),
    ):
        run = save_run(tmp_path / "run", clip, description_of(clip, **change))
        with pytest.raises(CheckpointError, match=words):
            load_finished(run)
