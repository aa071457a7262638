"""Methods on a tiny CLIP: the relations that define them, gradients, the teacher."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from calift_core.clip import Captions, Clip, load_clip, weights_sha256
from calift_core.errors import ModelError, UnsupportedTowerError
from calift_core.methods import METHODS, Batch, Method, RunLength, make_method
from calift_core.methods.base import zero_shot_classifier
from calift_core.methods.carot import CaRot
from calift_core.methods.teacher import EmaTeacher
from calift_core.methods.terms import similarity
from calift_core.schema.methods import METHOD_SPECS, MethodBase
from calift_core.schema.methods import CaRot as CaRotSpec
from calift_core.schema.methods import FineTune as FineTuneSpec
from calift_core.schema.methods import Flyp as FlypSpec
from calift_core.schema.methods import Pretrain as PretrainSpec
from tests.core.conftest import CONFIGS, random_batch

TRAINED = sorted(kind for kind, spec in METHOD_SPECS.items() if spec.trains)
LENGTH = RunLength(total_steps=20)
EVERY_TERM = {"lambda_x": 0.05, "teacher_update_every": 2}


def make(spec: MethodBase, clip: Clip, captions: Captions, steps: int = 20) -> Any:
    return make_method(spec, clip, captions, length=RunLength(total_steps=steps))


def of_kind(kind: str) -> MethodBase:
    return METHOD_SPECS[kind](**(EVERY_TERM if kind == "carot" else {}))


def loss_of(method: Method, batch: Batch) -> Tensor:
    terms = method.terms(batch)
    return torch.stack([method.weights[name] * value for name, value in terms.items()]).sum()


def steps(method: Method, batches: list[Batch], lr: float = 1e-3) -> list[float]:
    parameters = [p for module in method.trainable().values() for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    method.clip.train()
    losses = []
    for step, batch in enumerate(batches, start=1):
        loss = loss_of(method, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step)
        losses.append(float(loss.detach()))
    return losses


def batches_of(clip: Clip, n: int, size: int = 8) -> list[Batch]:
    return [random_batch(clip, size, seed) for seed in range(n)]


# ------------------------------------------------------------------------- every method alike


def test_registry__every_spec_has_its_method_and_every_method_its_spec() -> None:
    assert METHODS.keys() == METHOD_SPECS.keys()


@pytest.mark.parametrize("kind", sorted(METHOD_SPECS))
def test_method__terms_are_finite_scalars_of_the_promised_names(
    clip: Clip, captions: Captions, kind: str
) -> None:
    spec = of_kind(kind)
    method = make(spec, clip, captions)
    terms = method.terms(random_batch(clip))
    assert set(terms) == set(spec.terms)
    assert set(terms) <= set(method.weights)
    for value in terms.values():
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert value.isfinite()


@pytest.mark.parametrize("kind", TRAINED)
def test_method__gradients_arrive_at_what_it_trains_and_nowhere_else(
    clip: Clip, captions: Captions, kind: str
) -> None:
    method = make(of_kind(kind), clip, captions)
    # The residual branches of a fresh ModifiedResNet are multiplied by 0: not after two steps.
    steps(method, batches_of(clip, 2))
    loss_of(method, random_batch(clip)).backward()
    owned = {id(p) for module in method.trainable().values() for p in module.parameters()}
    for module in method.trainable().values():
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
        moved = [p for p in module.parameters() if p.grad is not None and p.grad.abs().max() > 0]
        assert len(moved) > 0.9 * len(list(module.parameters()))
    for name, parameter in clip.net.named_parameters():
        if id(parameter) not in owned:
            assert parameter.grad is None, name


@pytest.mark.parametrize("kind", TRAINED)
def test_method__loss_falls_on_a_batch_that_is_seen_again_and_again(
    clip: Clip, captions: Captions, kind: str
) -> None:
    method = make(of_kind(kind), clip, captions)
    losses = steps(method, [random_batch(clip)] * 12)
    assert min(losses[-3:]) < losses[0]


@pytest.mark.parametrize("kind", TRAINED)
def test_method__two_runs_are_equal_bit_for_bit(clip: Clip, captions: Captions, kind: str) -> None:
    digests = set()
    for _ in range(2):
        method = make(of_kind(kind), copy.deepcopy(clip), captions)
        steps(method, batches_of(clip, 3))
        digests.add(weights_sha256(method.clip.net))
    assert len(digests) == 1


@pytest.mark.parametrize("kind", sorted(METHOD_SPECS))
def test_method__classifier_has_a_row_per_class_and_leaves_the_mode(
    clip: Clip, captions: Captions, kind: str
) -> None:
    method = make(of_kind(kind), clip, captions)
    clip.train()
    classifier = method.classifier()
    assert clip.training
    assert classifier.weights.shape == (3, 16)
    assert not classifier.weights.requires_grad
    features = clip.encode_image(random_batch(clip).images).detach()
    assert classifier.logits(features).shape == (8, 3)


@pytest.mark.parametrize("kind", sorted(METHOD_SPECS))
def test_method__before_training_every_classifier_is_the_zero_shot_one(
    vit: Clip, captions: Captions, kind: str
) -> None:
    features = vit.encode_image(random_batch(vit).images).detach()
    expected = zero_shot_classifier(vit, captions).logits(features)
    made = make(of_kind(kind), vit, captions).classifier().logits(features)
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", TRAINED)
def test_method__trains_under_half_precision(clip: Clip, captions: Captions, kind: str) -> None:
    method = make(of_kind(kind), clip, captions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = method.terms(random_batch(clip))
    for value in terms.values():
        assert value.dtype == torch.float32
        assert value.isfinite()


@pytest.mark.parametrize("kind", TRAINED)
def test_method__trains_a_timm_tower_with_a_custom_text_tower(
    originals: dict[str, Clip], captions: Captions, kind: str
) -> None:
    clip = copy.deepcopy(originals["timm"])
    losses = steps(make(of_kind(kind), clip, captions), [random_batch(clip, 4)] * 2)
    assert torch.tensor(losses).isfinite().all()


# --------------------------------------------------------------------------------- relations


def test_carot__with_every_lambda_zero_is_flyp_step_for_step(
    clip: Clip, captions: Captions
) -> None:
    nothing = CaRotSpec(lambda_oc=0, lambda_sd=0, lambda_x=0)
    carot = make(nothing, copy.deepcopy(clip), captions)
    flyp = make(FlypSpec(), copy.deepcopy(clip), captions)
    for batch in batches_of(clip, 4):
        assert steps(carot, [batch]) == steps(flyp, [batch])
        assert weights_sha256(carot.clip.net) == weights_sha256(flyp.clip.net)
    assert carot.state() == {}


@pytest.mark.parametrize(
    "change", [{"lambda_oc": 0.1}, {"lambda_sd": 0.1}, {"lambda_x": 0.1}], ids=str
)
def test_carot__each_lambda_alone_changes_the_run(
    vit: Clip, captions: Captions, change: dict[str, float]
) -> None:
    zero = {"lambda_oc": 0.0, "lambda_sd": 0.0, "lambda_x": 0.0, "teacher_update_every": 1}
    carot = make(CaRotSpec(**(zero | change)), copy.deepcopy(vit), captions)
    flyp = make(FlypSpec(), copy.deepcopy(vit), captions)
    steps(carot, batches_of(vit, 3))
    steps(flyp, batches_of(vit, 3))
    assert weights_sha256(carot.clip.net) != weights_sha256(flyp.clip.net)


def test_pretrain__without_shared_targets_is_flyp_step_for_step(
    vit: Clip, captions: Captions
) -> None:
    pretrain = make(PretrainSpec(multi_positive=False), copy.deepcopy(vit), captions)
    flyp = make(FlypSpec(), copy.deepcopy(vit), captions)
    assert steps(pretrain, batches_of(vit, 3)) == steps(flyp, batches_of(vit, 3))


def test_pretrain__keeps_the_logit_scale_within_its_bound(vit: Clip, captions: Captions) -> None:
    method = make(PretrainSpec(), vit, captions)
    with torch.no_grad():
        vit.net.logit_scale.fill_(9.0)
    method.after_step(1)
    assert float(vit.logit_scale.detach()) == pytest.approx(100)


def test_zero_shot__trains_nothing(vit: Clip, captions: Captions) -> None:
    method = make(METHOD_SPECS["zero_shot"](), vit, captions)
    assert method.trainable() == {}
    assert method.terms(random_batch(vit)) == {}


def test_finetune__leaves_text_tower_and_scale_alone(vit: Clip, captions: Captions) -> None:
    before = copy.deepcopy(vit.net)
    steps(make(FineTuneSpec(), vit, captions), batches_of(vit, 2))
    for name, parameter in vit.net.named_parameters():
        same = torch.equal(parameter, before.get_parameter(name))
        assert same != name.startswith("visual."), name


def test_finetune__folded_and_learned_scale_give_the_same_logits_at_the_start(
    vit: Clip, captions: Captions
) -> None:
    batch = random_batch(vit)
    fixed = make(FineTuneSpec(), vit, captions)
    learned = make(FineTuneSpec(head_scale="learned"), vit, captions)
    torch.testing.assert_close(
        fixed.terms(batch)["cross_entropy"], learned.terms(batch)["cross_entropy"]
    )
    assert fixed.classifier().scale == 1.0
    assert learned.classifier().scale == pytest.approx(float(vit.logit_scale.detach()))
    assert len(list(learned.head.parameters())) == len(list(fixed.head.parameters())) + 1


def test_finetune__classifier_gives_the_heads_logits(vit: Clip, captions: Captions) -> None:
    for scale in ("fixed", "learned"):
        method = make(FineTuneSpec(head_scale=scale), vit, captions)
        steps(method, batches_of(vit, 2), lr=1e-2)
        features = vit.encode_image(random_batch(vit).images).detach()
        torch.testing.assert_close(
            method.classifier().logits(features), method.head(features).detach()
        )


# ----------------------------------------------------------------------------------- teacher


def teacher_of(clip: Clip, captions: Captions, **changes: Any) -> EmaTeacher:
    settings: dict[str, Any] = {
        "update_every": 1,
        "momentum_start": 0.05,
        "momentum_end": 0.9,
        "ramp_steps": 4.0,
        "follow_buffers": True,
    }
    return EmaTeacher(clip, captions, **(settings | changes))


def test_teacher__equal_to_the_student_distils_nothing(vit: Clip, captions: Captions) -> None:
    method = make(CaRotSpec(), vit, captions)
    vit.eval()
    value = method.terms(random_batch(vit))["distillation"]
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    largest = max(float(p.grad.abs().max()) for p in vit.net.parameters() if p.grad is not None)
    assert largest < 1e-5


def test_teacher__that_differs_from_the_student_distils_something(
    vit: Clip, captions: Captions
) -> None:
    method = make(CaRotSpec(), vit, captions)
    with torch.no_grad():
        for parameter in vit.net.visual.parameters():
            parameter.mul_(1.3)
    value = method.terms(random_batch(vit))["distillation"]
    value.backward()
    assert float(value.detach()) > 1e-4
    assert max(float(p.grad.abs().max()) for p in vit.net.visual.parameters()) > 1e-5


def test_teacher__stays_frozen_and_in_eval_through_training(clip: Clip, captions: Captions) -> None:
    method = make(CaRotSpec(teacher_update_every=2), clip, captions)
    assert method.teacher is not None
    steps(method, batches_of(clip, 5))
    assert not any(module.training for module in method.teacher.clip.modules())
    assert clip.training
    for parameter in method.teacher.clip.parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
    owned = {id(p) for module in method.trainable().values() for p in module.parameters()}
    assert not owned & {id(p) for p in method.teacher.clip.parameters()}


def test_teacher__average_worked_by_hand(vit: Clip, captions: Captions) -> None:
    """Momentum 0.05 → 0.9 over four steps, updates at steps 2, 4 and 6."""
    teacher = teacher_of(vit, captions, update_every=2)
    expected = [p.detach().double().clone() for p in vit.net.parameters()]
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 7):
        with torch.no_grad():
            for parameter in vit.net.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        did = teacher.update(vit, step)
        assert did == (step % 2 == 0)
        if did:
            m = {2: 0.05 + 0.85 * 0.5, 4: 0.9, 6: 0.9}[step]
            assert teacher.momentum(step) == pytest.approx(m)
            student = [p.detach().double() for p in vit.net.parameters()]
            expected = [m * a + (1 - m) * b for a, b in zip(expected, student, strict=True)]
        for mine, want in zip(teacher.clip.net.parameters(), expected, strict=True):
            torch.testing.assert_close(mine.double(), want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("step", "momentum"), [(0, 0.05), (1, 0.2625), (2, 0.475), (4, 0.9), (5, 0.9), (1000, 0.9)]
)
def test_teacher__momentum_rises_linearly_then_stays(
    vit: Clip, captions: Captions, step: int, momentum: float
) -> None:
    assert teacher_of(vit, captions).momentum(step) == pytest.approx(momentum)
    assert teacher_of(vit, captions, ramp_steps=0.0).momentum(step) == pytest.approx(0.9)


def test_teacher__buffers_follow_the_student_and_only_if_asked(
    resnet: Clip, captions: Captions
) -> None:
    follows = teacher_of(resnet, captions)
    stays = teacher_of(resnet, captions, follow_buffers=False)
    before = {name: b.clone() for name, b in stays.clip.net.named_buffers()}
    resnet.train()
    resnet.encode_image(random_batch(resnet).images)
    for teacher in (follows, stays):
        teacher.update(resnet, 1)
    changed = 0
    for name, buffer in resnet.net.named_buffers():
        assert torch.equal(follows.clip.net.get_buffer(name), buffer), name
        assert torch.equal(stays.clip.net.get_buffer(name), before[name]), name
        changed += not torch.equal(buffer, before[name])
    assert changed > 10


def test_teacher__cached_captions_give_the_similarity_of_encoding_anew(
    clip: Clip, captions: Captions
) -> None:
    method = make(CaRotSpec(teacher_update_every=3), clip, captions)
    teacher = method.teacher
    assert teacher is not None
    seen = []
    for step, batch in enumerate(batches_of(clip, 8), start=1):
        with torch.no_grad():
            plain = similarity(
                teacher.clip.encode_image(batch.images),
                teacher.clip.encode_text(captions.tokens[batch.captions]),
                teacher.clip.logit_scale,
            )
        torch.testing.assert_close(teacher.similarity(batch), plain, atol=1e-4, rtol=1e-4)
        seen.append(int(teacher.known.sum()))
        loss = loss_of(method, batch)
        loss.backward()
        with torch.no_grad():
            for parameter in clip.net.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.05 * parameter.grad)
                parameter.grad = None
        method.after_step(step)
        assert (int(teacher.known.sum()) == 0) == (step % 3 == 0)
    assert max(seen) > 4


def test_teacher__encodes_each_caption_once_between_updates(vit: Clip, captions: Captions) -> None:
    teacher = teacher_of(vit, captions, update_every=100)
    encoded = 0
    original = teacher.clip.net.token_embedding.register_forward_hook(
        lambda module, inputs, output: count(len(inputs[0]))
    )

    def count(n: int) -> None:
        nonlocal encoded
        encoded += n

    for batch in batches_of(vit, 6):
        teacher.similarity(batch)
    original.remove()
    assert encoded == len({int(c) for b in batches_of(vit, 6) for c in b.captions})


def test_carot__default_interval_gives_about_fifty_updates(vit: Clip, captions: Captions) -> None:
    for total, every in ((25_030, 500), (100, 2), (20, 1), (1, 1)):
        method = make(CaRotSpec(), vit, captions, steps=total)
        assert method.resolved() == {"teacher_update_every": every}
    assert make(CaRotSpec(lambda_sd=0), vit, captions).resolved() == {"teacher_update_every": None}


def test_carot__state_brings_the_teacher_back_bit_for_bit(clip: Clip, captions: Captions) -> None:
    spec = CaRotSpec(teacher_update_every=2)
    method = make(spec, clip, captions)
    steps(method, batches_of(clip, 3))
    other: CaRot = make(spec, copy.deepcopy(clip), captions)
    other.load_state({name: t.clone() for name, t in method.state().items()})
    batch = random_batch(clip, seed=50)
    assert other.teacher is not None
    assert torch.equal(other.teacher.similarity(batch), method.teacher.similarity(batch))
    for name, tensor in method.state().items():
        assert torch.equal(other.state()[name], tensor), name


# -------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("kind", ["flyp", "carot", "pretrain"])
def test_contrastive_methods__refuse_a_model_made_for_the_sigmoid_loss(
    vit: Clip, captions: Captions, kind: str
) -> None:
    vit.net.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))
    with pytest.raises(ModelError, match=f"{kind} is defined by the softmax.*logit bias"):
        make(of_kind(kind), vit, captions)
    make(FineTuneSpec(), vit, captions)


def test_is_sigmoid__is_read_from_the_config(tmp_path: Path) -> None:
    path = tmp_path / "siglip.json"
    path.write_text(json.dumps({**CONFIGS["vit"], "init_logit_bias": -10.0}))
    assert load_clip(str(path), None).is_sigmoid


@pytest.mark.parametrize("change", [{}, {"lambda_oc": 0.0, "lambda_x": 0.1}], ids=str)
def test_carot__refuses_a_tower_without_projection_before_any_training(
    vit: Clip, captions: Captions, change: dict[str, float]
) -> None:
    vit.net.visual.proj = None
    with pytest.raises(UnsupportedTowerError, match="no projection"):
        make(CaRotSpec(**change), vit, captions)
