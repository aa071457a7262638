"""Accumulation of losses that look at a whole batch: the same gradient, at a part's memory."""

import copy
import json
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calift_core.errors import OutOfMemoryError, SpecError
from calift_core.jobs.estimate import validate
from calift_core.methods import Batch, Method, RunLength, make_method
from calift_core.models.clip import Clip
from calift_core.models.loading import load_clip
from calift_core.schema.methods import METHOD_SPECS, CaRot, FineTune, Flyp
from calift_core.schema.records import LogRecord
from calift_core.schema.train import ConfidenceSpec
from calift_core.training.gradcache import backward_whole
from calift_core.training.loop import train
from calift_core.training.step import make_optimizer
from tests.core.conftest import TEXT, VIT, random_batch
from tests.core.training.test_loop import Run, plan

#: Options with which each contrastive method has every term that it can have.
OPTIONS: dict[str, dict[str, Any]] = {
    "flyp": {},
    "carot": {"teacher_update_every": 2},
    "tracer": {"preset": "ViT-B-16"},
    "anchored": {},
    "averaged": {},
    "pretrain": {},
}
#: Confidence options beside the method: both of a contrastive one, and the head's that couples.
CONFIDENCE = {
    "alone": ConfidenceSpec(),
    "smoothed and distilled": ConfidenceSpec(label_smoothing=0.1, zero_shot_kd=0.5),
}
B = 8


def freeze_batch_norm(clip: Clip) -> None:
    clip.train()
    for module in clip.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def made(kind, clip, captions, confidence=None):
    """A method two steps into its run, so that the teacher is another model than the student."""
    spec = METHOD_SPECS[kind](**OPTIONS.get(kind, {}))
    method = make_method(
        spec, copy.deepcopy(clip), captions, length=RunLength(total_steps=20), confidence=confidence
    )
    freeze_batch_norm(method.clip)
    optimizer = make_optimizer(method, plan(lr=3e-3))
    for step in (1, 2, 3):
        loss_of(method, method.terms(random_batch(clip, B, seed=step))).backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step)
    return method


def loss_of(method: Method, terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([method.weights[name] * value for name, value in terms.items()]).sum()


def gradients(method: Method) -> dict[str, Tensor]:
    """Every gradient by name; they are cleared."""
    found = {}
    for module_name, module in method.trainable().items():
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                found[f"{module_name}.{name}"] = parameter.grad
                parameter.grad = None
    return found


def whole(method: Method, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    terms = method.terms(batch)
    loss_of(method, terms).backward()
    return terms, gradients(method)


def cached(method, batch, parts, scale=1.0):
    terms = backward_whole(
        method, batch, parts, backward=lambda loss: (loss * scale).backward(), autocast=nullcontext
    )
    return terms, gradients(method)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    whole_norm = torch.stack([g.norm() for g in one.values()]).norm()
    gap = torch.stack([(one[name] - other[name]).norm() for name in one]).norm()
    assert float(gap / whole_norm) < tolerance


@pytest.mark.parametrize(
    ("kind", "confidence", "tower", "parts"),
    [
        ("flyp", "smoothed and distilled", "timm", 3),
        ("carot", "alone", "resnet", 8),
        ("carot", "smoothed and distilled", "vit", 3),
        ("tracer", "smoothed and distilled", "resnet", 3),
        ("tracer", "alone", "timm", 8),
        ("anchored", "alone", "vit", 3),
        ("averaged", "smoothed and distilled", "vit", 8),
        ("pretrain", "alone", "vit", 8),
    ],
)
def test_parts__gradient_and_terms_are_those_of_the_whole_batch(
    originals, captions, kind, confidence, tower, parts
):
    method = made(kind, originals[tower], captions, CONFIDENCE[confidence])
    batch = random_batch(originals[tower], B, seed=50)
    terms, expected = whole(method, batch)
    again, found = cached(method, batch, parts)
    for name, value in terms.items():
        torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-6)
    assert len(expected) > 20
    assert_same(expected, found)


def test_parts__of_the_sigmoid_form_too(tmp_path, captions):
    config = VIT | {"init_logit_bias": -10.0, "custom_text": True}
    config |= {"text_cfg": TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}}
    path = tmp_path / "sigmoid.json"
    path.write_text(json.dumps(config))
    clip = load_clip(str(path), None, generator=torch.Generator().manual_seed(7))
    method = made("flyp", clip, captions)
    batch = random_batch(clip, B, seed=50)
    _, expected = whole(method, batch)
    assert "clip.logit_bias" in expected
    assert_same(expected, cached(method, batch, 4)[1])


@pytest.mark.parametrize("kind", ["lipsum_ft", "linear_probe"])
def test_parts__of_a_head_whose_samples_are_compared_too(vit, captions, kind):
    """MMCE is a kernel over pairs of a batch; LipSum-FT's random texts must be the same ones."""
    method = made(kind, vit, captions, ConfidenceSpec(mmce=4.0, zero_shot_kd=0.5))
    assert method.couples_samples
    state = {name: tensor.clone() for name, tensor in method.state().items()}
    batch = random_batch(vit, B, seed=50)
    _, expected = whole(method, batch)
    method.load_state(state)
    assert_same(expected, cached(method, batch, 4)[1])


def test_parts__a_scaled_loss_has_a_scaled_gradient(vit, captions):
    """As under fp16, whose scaler multiplies the loss once."""
    method = made("carot", vit, captions)
    batch = random_batch(vit, B, seed=50)
    _, expected = cached(method, batch, 2)
    _, found = cached(method, batch, 2, scale=2.0**10)
    assert_same(expected, {name: g / 2.0**10 for name, g in found.items()}, tolerance=1e-6)


def test_parts__under_half_precision_differ_by_its_rounding(vit, captions):
    method = made("tracer", vit, captions)
    batch = random_batch(vit, B, seed=50)

    def half():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    with half():
        terms = method.terms(batch)
    loss_of(method, terms).backward()
    expected = gradients(method)
    backward_whole(method, batch, 4, backward=lambda loss: loss.backward(), autocast=half)
    assert_same(expected, gradients(method), tolerance=0.05)


@pytest.mark.parametrize("kind", ["carot", "averaged"])
def test_accumulation__of_contrastive_losses_trains_as_the_whole_batch(
    vit, captions, tmp_path, kind
):
    """Through the loop, teacher and clipping included; with this ε steps follow the gradient."""
    spec = METHOD_SPECS[kind](**OPTIONS[kind])
    runs = [
        Run(spec, vit, captions, tmp_path / str(n), the_plan=plan(eps=0.01, accumulation_steps=n))
        for n in (1, 4)
    ]
    one, four = (run.go() for run in runs)
    assert four.losses() == pytest.approx(one.losses(), rel=1e-4)
    for a, b in zip(one.clip.parameters(), four.clip.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["carot", "tracer", "averaged", "pretrain"])
def test_parts__no_tower_sees_more_than_a_part_at_once(vit, captions, kind):
    confidence = CONFIDENCE["alone" if kind == "pretrain" else "smoothed and distilled"]
    method = made(kind, vit, captions, confidence)
    seen = []

    def watch(name, module):
        def hook(_module, inputs):
            seen.append((name, len(inputs[0]), torch.is_grad_enabled()))

        module.register_forward_pre_hook(hook)

    models = {"student": method.clip}
    for name, owner in (("teacher", method), ("initial", method.extra)):
        kept = getattr(owner, "teacher" if name == "teacher" else "initial")
        if kept is not None and (kind, name) != ("averaged", "teacher"):  # it teaches nobody
            kept.known.zero_()
            models[name] = kept.clip
    for name, clip in models.items():
        watch(f"{name} images", clip.net.visual)
        watch(f"{name} texts", clip.net.transformer)
    cached(method, random_batch(vit, B, seed=50), 4)
    assert {name for name, _, _ in seen} == {
        f"{m} {t}" for m in models for t in ("images", "texts")
    }
    assert max(n for _, n, _ in seen) == B // 4
    with_graph = [(name, n) for name, n, graph in seen if graph]
    assert with_graph.count(("student images", 2)) == 4
    assert not [name for name, _ in with_graph if not name.startswith("student")]


def test_parts__a_caption_that_many_samples_have_is_encoded_once_in_a_pass(vit, captions):
    """Equal captions come into the same part, or into two neighbours."""
    method = made("flyp", vit, captions)
    batch = random_batch(vit, 16, seed=50)
    ids = torch.tensor([0, 4] * 8)
    encoded = 0

    def count(_module, inputs):
        nonlocal encoded
        encoded += len(inputs[0])

    method.clip.net.transformer.register_forward_pre_hook(count)
    cached(method, replace(batch, captions=ids, labels=ids // 3), 4)
    assert encoded == 2 * 4  # two passes, four parts of one caption each
    encoded = 0
    whole(method, replace(batch, captions=ids, labels=ids // 3))
    assert encoded == 2


@pytest.fixture(scope="module")
def dropping(tmp_path_factory):
    """A ViT that drops a random half of its patches while it trains."""
    config = copy.deepcopy(VIT)
    config["vision_cfg"] |= {"patch_dropout": 0.5, "patch_size": 4}
    path = tmp_path_factory.mktemp("dropping") / "dropping.json"
    path.write_text(json.dumps(config))
    return load_clip(str(path), None, generator=torch.Generator().manual_seed(7))


def test_dropout__both_passes_of_a_part_drop_the_same_and_parts_drop_different_ones(
    dropping, captions
):
    method = made("flyp", dropping, captions)
    features = []
    method.clip.net.visual.register_forward_hook(
        lambda _module, _inputs, output: features.append(output.detach())
    )
    batch = random_batch(dropping, B, seed=50)
    same = replace(batch, images=batch.images[:1].expand_as(batch.images).clone())
    torch.manual_seed(3)
    cached(method, same, 4)
    first, second = features[:4], features[4:]
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(first[0], first[1])


def test_dropout__the_generator_ends_where_one_pass_would_leave_it(dropping, captions):
    method = made("flyp", dropping, captions)
    batch = random_batch(dropping, B, seed=50)
    torch.manual_seed(3)
    for rows in batch.captions.argsort(stable=True).chunk(4):
        method.clip.encode_image(batch.images[rows])
    expected = torch.get_rng_state()
    torch.manual_seed(3)
    cached(method, batch, 4)
    assert torch.equal(torch.get_rng_state(), expected)


def test_accumulation__batch_statistics_of_a_contrastive_tower_are_refused_before_the_first_step(
    resnet, captions, tmp_path
):
    cut = plan(accumulation_steps=2)
    run = Run(CaRot(), resnet, captions, tmp_path / "a", the_plan=cut)
    before = copy.deepcopy(run.clip.state_dict())
    with pytest.raises(SpecError, match=r"accumulation_steps.*BatchNorm.*part") as caught:
        run.go()
    assert "batch_norm: frozen" in caught.value.hint
    assert "batch_size" not in caught.value.hint
    for name, tensor in run.clip.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    frozen = plan(accumulation_steps=2, freeze_batch_norm=True, eps=0.01)
    whole_plan = plan(freeze_batch_norm=True, eps=0.01)
    split = Run(CaRot(), resnet, captions, tmp_path / "b", the_plan=frozen).go()
    whole_run = Run(CaRot(), resnet, captions, tmp_path / "c", the_plan=whole_plan).go()
    assert split.losses() == pytest.approx(whole_run.losses(), rel=1e-3)


@pytest.mark.parametrize(("tower", "warned"), [("vit", 0), ("resnet", 1)])
def test_accumulation__batch_statistics_of_a_head_are_warned_of(
    originals, captions, tmp_path, tower, warned
):
    run = Run(FineTune(), originals[tower], captions, tmp_path, the_plan=plan(accumulation_steps=2))
    logs = [r for r in run.go().records if isinstance(r, LogRecord)]
    assert len(logs) == warned
    for record in logs:
        assert record.level == "warning"
        assert "BatchNorm" in record.message
        assert "batch_norm: frozen" in record.message


def test_dry_run__says_that_batch_statistics_and_parts_do_not_go_together(run_spec):
    for tower, norm, good in (("resnet", "train", False), ("resnet", "frozen", True),
                              ("vit", "train", True)):  # fmt: skip
        cut = {"accumulation_steps": 4, "batch_norm": norm}
        found = validate(run_spec("flyp", tower=tower, train=cut))
        assert found.valid == good
        for error in found.errors:
            assert error["pointer"] == "#/train/accumulation_steps"
            assert "batch_norm: frozen" in error["message"]
        assert (found.estimate.seconds is not None) == good


@pytest.mark.parametrize(("kind", "parts"), [("flyp", 1), ("carot", 2), ("finetune", 2)])
def test_oom__is_an_error_and_no_hint_shrinks_the_negatives_of_a_contrastive_loss(
    vit, captions, tmp_path, kind, parts
):
    spec = METHOD_SPECS[kind]()
    run = Run(spec, vit, captions, tmp_path, the_plan=plan(accumulation_steps=parts))

    def encode(batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    run.method.encode = encode
    with pytest.raises(OutOfMemoryError, match="at step 1: CUDA out of memory.*GiB") as caught:
        run.go()
    assert "more" not in caught.value.message
    assert "train.accumulation_steps" in caught.value.hint
    assert ("batch_size" in caught.value.hint) != (spec.family == "contrastive")


class Clock:
    """Time that passes only where a test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_speed__counts_neither_validation_nor_checkpoints_nor_who_listens(vit, captions, tmp_path):
    clock = Clock()
    the_plan = plan(total_steps=8, checkpoint_every_steps=2)
    run = Run(Flyp(), vit, captions, tmp_path, the_plan=the_plan)

    def batches(start):
        for batch in run.batches(start):
            clock.now += 0.5  # a step, its batch included
            yield batch

    def at_epoch_end(step):
        clock.now += 1000
        yield LogRecord(message="validated")

    answer = []
    options = {"device": torch.device("cpu"), "folder": tmp_path, "clock": clock}
    for record in train(run.method, batches, the_plan, at_epoch_end=at_epoch_end, **options):
        clock.now += 10  # the listener writes it down
        if record.kind == "checkpoint":
            clock.now += 100
        elif record.kind == "progress":
            answer.append(record)
    assert [record.samples_per_s for record in answer] == pytest.approx([8 / 0.5] * 8)
    # What is left is expected to take as long as what was done, listener and all.
    assert answer[0].eta_s == pytest.approx(7 * 0.5)
    assert answer[1].eta_s == pytest.approx(6 * (0.5 + 20 + 0.5) / 2)
    assert answer[4].eta_s > 3 * 1000 / 5
    assert answer[-1].eta_s == 0
