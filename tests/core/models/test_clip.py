"""Models: encoders, projections, weights in and out, names that nobody knows."""

import copy
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from calift_core.errors import (
    CheckpointError,
    ModelError,
    ModelUnavailableError,
    UnknownNameError,
    UnsupportedTowerError,
)
from calift_core.methods.base import encode_captions
from calift_core.models.clip import Clip
from calift_core.models.finished import load_finished
from calift_core.models.loading import load_clip, load_weights, weights_sha256
from calift_core.models.zeroshot import TEMPLATES, resolve_templates, zero_shot_weights
from calift_core.training.checkpoint import save_final
from tests.core.conftest import CONFIGS, TEXT, VIT, random_batch


def built(folder: Path, config: dict[str, Any]) -> Clip:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return load_clip(str(path), None, generator=torch.Generator().manual_seed(1))


def vit_with(folder: Path, *, vision: Any = None, text: Any = None, **more: Any) -> Clip:
    body = {
        **VIT,
        "vision_cfg": {**VIT["vision_cfg"], **(vision or {})},
        "text_cfg": {**TEXT, **(text or {})},
        **more,
    }
    return built(folder, body)


def test_encoders__embeddings_are_unit_vectors_of_the_shared_width(clip):
    clip.eval()
    batch = random_batch(clip, 5)
    for embeddings in (
        clip.encode_image(batch.images),
        clip.encode_text(clip.tokenizer(["a"] * 5)),
    ):
        assert embeddings.shape == (5, clip.embed_dim)
        assert embeddings.dtype == torch.float32
        torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(5))


@settings(max_examples=15)
@given(st.lists(st.sampled_from(["a", "a red thing", "one two three four five"]), min_size=1))
def test_encode_text__short_context_equals_the_full_one(originals, texts):
    clip = originals["vit"]
    tokens = clip.tokenizer(texts)
    full = F.normalize(clip.net.encode_text(tokens), dim=-1)
    torch.testing.assert_close(clip.encode_text(tokens), full, atol=1e-6, rtol=1e-5)


def test_encode_text__a_caption_longer_than_the_context_is_cut_as_open_clip_cuts_it(vit):
    tokens = vit.tokenizer(["word " * 40, "word"])
    assert tokens.shape == (2, 16)
    full = F.normalize(vit.net.encode_text(tokens), dim=-1)
    torch.testing.assert_close(vit.encode_text(tokens), full, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ({}, {"custom_text": True}),
        ({"pool_type": "last"}, {}),
        ({"no_causal_mask": True}, {}),
        ({"proj_bias": True}, {"custom_text": True}),
    ],
    ids=["custom text tower", "last token", "not causal", "projection with bias"],
)
def test_encode_text__other_towers_equal_open_clips_own_encoding(tmp_path, text, more):
    clip = vit_with(tmp_path, text=text, **more)
    tokens = clip.tokenizer(["a red thing", "b"])
    full = F.normalize(clip.net.encode_text(tokens), dim=-1)
    torch.testing.assert_close(clip.encode_text(tokens), full, atol=1e-6, rtol=1e-5)


def text_gradients(clip: Clip, encoded: Tensor, weight: Tensor) -> dict[str, Tensor]:
    named = {
        name: p
        for name, p in clip.net.named_parameters()
        if not name.startswith(("visual", "logit"))
    }
    gradients = torch.autograd.grad((encoded * weight).sum(), list(named.values()))
    return dict(zip(named, gradients, strict=True))


@pytest.mark.parametrize("name", ["vit", "timm"])
@settings(max_examples=8)
@given(ids=st.lists(st.integers(0, 8), min_size=1, max_size=12))
def test_encode_captions__every_text_parameter_gets_the_gradient_of_the_plain_path(
    originals, captions, name, ids
):
    """Each caption once over a short context, against every one over the whole context."""
    clip = originals[name]
    weight = torch.randn(len(ids), 16, generator=torch.Generator().manual_seed(len(ids)))
    once = encode_captions(clip, captions, torch.tensor(ids))
    plain = F.normalize(clip.net.encode_text(captions.tokens[ids]), dim=-1)
    torch.testing.assert_close(once, plain, atol=1e-5, rtol=1e-4)
    mine, theirs = (text_gradients(clip, encoded, weight) for encoded in (once, plain))
    assert len(mine) > 10
    for parameter, gradient in theirs.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(
            mine[parameter], gradient, atol=1e-4 * largest + 1e-6, rtol=1e-3, msg=parameter
        )


def test_captions__are_class_times_template_in_that_order(captions):
    assert len(captions) == 9
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    assert torch.equal(captions.tokens[3 * 2 + 1], tokenizer(["a picture of the red thing."])[0])


def pooled_by(visual: Any, last: str, images: Tensor) -> Tensor:
    """What a tower's last layer is given."""
    seen = []
    handle = visual.get_submodule(last).register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    visual(images)
    handle.remove()
    return seen[0]


def test_image_projection__of_a_vit_maps_pooled_states_to_features(vit):
    vit.eval()
    images = random_batch(vit).images
    expected = vit.net.visual(images)
    w = vit.image_projection()
    assert w.shape == (32, 16)
    headless = copy.deepcopy(vit.net.visual)
    headless.proj = None
    torch.testing.assert_close(headless(images) @ w, expected)


def test_image_projection__of_a_resnet_maps_pooled_states_to_features(resnet):
    resnet.eval()
    images = random_batch(resnet, 3).images
    layer = resnet.net.visual.attnpool.c_proj
    w = resnet.image_projection().detach().clone()
    expected = resnet.net.visual(images).detach()
    assert w.shape == (256, 16)
    hidden = []
    with torch.no_grad():  # read the hidden states sixteen at a time through the layer itself
        bias = layer.bias.clone()
        layer.bias.zero_()
        for first in range(0, 256, 16):
            layer.weight.copy_(torch.eye(256)[first : first + 16])
            hidden.append(resnet.net.visual(images))
    h = torch.cat(hidden, dim=1)
    torch.testing.assert_close(h @ w + bias, expected, atol=1e-5, rtol=1e-4)


def test_image_projection__of_a_timm_tower_maps_pooled_states_to_features(originals):
    clip = copy.deepcopy(originals["timm"]).eval()
    images = random_batch(clip, 3).images
    w = clip.image_projection()
    assert w.shape == (512, 16)
    h = pooled_by(clip.net.visual, "head.proj", images)
    torch.testing.assert_close(h @ w, clip.net.visual(images))


def test_image_projection__a_tower_without_one_is_refused_with_the_reason(vit, tmp_path):
    vit.net.visual.proj = None
    with pytest.raises(UnsupportedTowerError, match="visual.proj is None"):
        vit.image_projection()
    timm = CONFIGS["timm"]
    vision = {**timm["vision_cfg"], "timm_proj": "none"}
    clip = built(tmp_path, {**timm, "embed_dim": 512, "vision_cfg": vision})
    with pytest.raises(UnsupportedTowerError, match="timm image tower ends without a linear"):
        clip.image_projection()


def test_projections__towers_of_an_unknown_kind_are_refused_by_their_type(vit):
    vit.net.visual = nn.Flatten()
    with pytest.raises(UnsupportedTowerError, match="type Flatten; known: VisionTransformer"):
        vit.image_projection()
    vit.net.text_projection = None
    with pytest.raises(UnsupportedTowerError, match="text tower CLIP ends without"):
        vit.text_projection()


def test_zero_shot_weights__are_normalised_means_of_normalised_embeddings(vit, captions):
    vit.train()
    weights = zero_shot_weights(vit, captions, batch_size=4)
    assert vit.training
    expected = []
    for c in range(3):
        rows = [vit.encode_text(captions.tokens[3 * c + p : 3 * c + p + 1])[0] for p in range(3)]
        mean = torch.stack(rows).mean(0)
        expected.append(mean / mean.norm())
    torch.testing.assert_close(weights, torch.stack(expected), atol=1e-6, rtol=1e-5)
    assert not weights.requires_grad


def test_templates__openai_set_has_its_80_and_each_has_one_slot():
    assert len(TEMPLATES["openai_imagenet"]) == 80
    for sentences in TEMPLATES.values():
        assert all(sentence.count("{}") == 1 for sentence in sentences)
    assert resolve_templates(("a {}",)) == ("a {}",)
    with pytest.raises(UnknownNameError, match="Did you mean 'simple'"):
        resolve_templates("simpel")


def test_load_clip__random_weights_depend_on_the_generator_alone(configs):
    def digest(seed):
        generator = torch.Generator().manual_seed(seed)
        return weights_sha256(load_clip(str(configs["vit"]), None, generator=generator).net)

    before = torch.get_rng_state()
    first = digest(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert digest(3) == first
    assert digest(4) != first


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "is not JSON: .* at most 64 levels deep"),
        ("[1]", "embed_dim, vision_cfg and text_cfg"),
        ('{"embed_dim": 4}', "embed_dim, vision_cfg and text_cfg"),
        (
            json.dumps({**VIT, "vision_cfg": {"image_size": 16, "widht": 3}}),
            "open_clip cannot build this config.*widht",
        ),
    ],
    ids=["torn", "deep", "list", "half", "typing mistake"],
)
def test_load_clip__refuses_a_config_and_says_why(tmp_path, text, words):
    path = tmp_path / "model.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=words):
        load_clip(str(path), None)


def test_load_clip__unknown_names_come_with_a_suggestion(tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown model 'ViT-B16'.*Did you mean 'ViT-B-16'"):
        load_clip("ViT-B16", "openai")
    with pytest.raises(UnknownNameError, match=r"weights of ViT-B-16 'opnai'.*mean 'openai'"):
        load_clip("ViT-B-16", "opnai")
    with pytest.raises(ModelUnavailableError, match=r"no weights file at .*here\.safetensors"):
        load_clip("ViT-B-16", str(tmp_path / "here.safetensors"))
    with pytest.raises(ModelUnavailableError, match="cannot read the model config"):
        load_clip(str(tmp_path / "gone.json"), None)


@pytest.mark.parametrize(
    ("name", "tag", "words"),
    [
        ("ViT-B-16", "openai", "weights openai of ViT-B-16"),
        ("hf-hub:calift/nothing", None, "weights of hf-hub:calift/nothing"),
    ],
)
def test_load_clip__weights_of_a_hub_without_a_network_are_unavailable_at_once(
    tmp_path, monkeypatch, name, tag, words
):
    for variable in [v for v in os.environ if v.lower().endswith("_proxy")]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("calift_core.models.hub.in_hub_cache", lambda repository: False)
    with pytest.raises(ModelUnavailableError) as caught:
        load_clip(name, tag)
    assert words in caught.value.message
    assert "not on this machine" in caught.value.message
    assert ".safetensors" in caught.value.hint


def test_load_clip__calift_tiny_that_was_never_pre_trained_says_how(tmp_path):
    with pytest.raises(ModelUnavailableError, match="has not been pre-trained on 'fashion-mnist'"):
        load_clip("calift-tiny", "fashion-mnist", models=tmp_path)
    assert load_clip("calift-tiny", None).image_size == 32


def changed(state: dict[str, Tensor], change: str) -> dict[str, Any]:
    state = dict(state)
    if change == "missing":
        del state["visual.proj"]
    elif change == "unknown":
        state["visual.extra"] = torch.zeros(2)
    elif change == "shape":
        state["visual.proj"] = torch.zeros(3, 4)
    return state


@pytest.mark.parametrize(
    ("suffix", "wrapped"), [(".pt", "state_dict"), (".pt", "plain"), (".safetensors", "module.")]
)
def test_load_weights__every_form_of_a_state_dict_is_read(vit, configs, tmp_path, suffix, wrapped):

    path = tmp_path / f"weights{suffix}"
    state = vit.net.state_dict()
    if wrapped == "module.":
        state = {f"module.{key}": value for key, value in state.items()}
    if suffix == ".pt":
        torch.save({"state_dict": state, "epoch": 3} if wrapped == "state_dict" else state, path)
    else:
        save_file(state, path)
    loaded = load_clip(str(configs["vit"]), str(path))
    assert weights_sha256(loaded.net) == weights_sha256(vit.net)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", r"1 missing \(visual\.proj\)"),
        ("unknown", r"1 unknown \(visual\.extra\)"),
        ("shape", r"visual\.proj is \(3, 4\) and should be \(32, 16\)"),
    ],
)
def test_load_weights__of_another_model_are_refused_and_nothing_is_loaded(
    vit, tmp_path, change, words
):
    path = tmp_path / "weights.safetensors"
    before = weights_sha256(vit.net)
    state = {key: torch.zeros_like(value) for key, value in vit.net.state_dict().items()}
    save_file(changed(state, change), path)
    with pytest.raises(ModelError, match=f"weights of another model.*{words}"):
        load_weights(vit.net, path)
    assert weights_sha256(vit.net) == before


class _Touch:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mknod, (str(self.path),)


def test_load_weights__a_pickled_object_is_never_run_and_a_list_is_no_state_dict(tmp_path):
    made = tmp_path / "made by the pickle"
    net = nn.Linear(2, 2)
    for name, content in (("object.pt", {"weight": _Touch(made)}), ("module.pt", net)):
        torch.save(content, tmp_path / name)
        with pytest.raises(ModelError, match="cannot be read as plain weights.*never pickled"):
            load_weights(net, tmp_path / name)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(_Touch(made)))
    with pytest.raises(ModelError, match="cannot be read as plain weights"):
        load_weights(net, tmp_path / "raw.pt")
    assert not made.exists()
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="mapping of names to tensors"):
        load_weights(nn.Linear(2, 2), tmp_path / "list.pt")


def _bytes_of(kind: str) -> bytes:
    net = nn.Linear(3, 2)
    if kind == "safetensors":
        return save(net.state_dict())
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer, _use_new_zipfile_serialization=kind == "pt")
    return buffer.getvalue()


@settings(max_examples=150)
@given(st.sampled_from(["safetensors", "pt", "old pt"]), st.data())
def test_load_weights__a_damaged_file_is_a_sentence_whatever_the_damage(
    tmp_path_factory, kind, data
):
    content = bytearray(_bytes_of(kind))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 6))):
            at = data.draw(st.integers(0, min(300, len(content) - 1)))
            content[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / ("x.safetensors" if kind == "safetensors" else "x.pt")
    path.write_bytes(content)
    try:
        load_weights(nn.Linear(3, 2), path)
    except ModelError as error:
        assert str(path) in str(error)  # noqa: PT017 - some damage does no harm


def finish(clip: Clip, folder: Path) -> Path:
    save_final(
        folder / "checkpoint",
        clip.net,
        {"weights": torch.eye(3, 16), "bias": torch.zeros(3)},
        {
            "format": 2,
            "name": "tiny",
            "pretrained": None,
            "config": clip.config,
            **clip.model_config.described(),
        },
    )
    return folder


def test_load_finished__gives_back_the_very_model(clip, tmp_path):
    again, tensors, description = load_finished(finish(clip, tmp_path))
    assert weights_sha256(again.net) == weights_sha256(clip.net)
    assert torch.equal(tensors["weights"], torch.eye(3, 16))
    assert description["name"] == "tiny"
    images = random_batch(clip).images
    assert torch.equal(again.eval().encode_image(images), clip.eval().encode_image(images))
    assert again.mean == clip.mean


def test_load_finished__damage_is_an_error(vit, tmp_path):
    for name, content in (("model.json", b"{"), ("model.json", b"{}"), ("model.json", None),
                          ("model.safetensors", b"{}"), ("model.safetensors", None),
                          ("classifier.safetensors", None)):  # fmt: skip
        path = finish(vit, tmp_path) / "checkpoint" / name
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"damaged|no finished run"):
            load_finished(tmp_path)


def test_weights_sha256__sees_names_values_and_types():
    net = nn.Linear(2, 2)
    digests = {weights_sha256(net), weights_sha256(net.double()), weights_sha256(nn.Linear(2, 2))}
    assert len(digests) == 3
