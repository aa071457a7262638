"""Methods on a tiny CLIP: the relations that define them, gradients, the teacher."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calift_core.errors import ModelError, UnsupportedTowerError
from calift_core.methods import METHODS, Batch, Method, RunLength, fitted, make_method
from calift_core.methods.base import zero_shot_classifier
from calift_core.methods.car_ft import context_weights
from calift_core.methods.linear_probe import fit_logistic
from calift_core.methods.teacher import EmaTeacher, TrajectoryTeacher
from calift_core.methods.terms import similarity, to_range
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.models.loading import load_clip, weights_sha256
from calift_core.schema import methods as specs
from calift_core.schema.methods import METHOD_SPECS, MethodBase
from calift_core.schema.methods.contrastive import TRACER_PRESETS
from calift_core.schema.records import MetricsRecord
from calift_core.schema.report import Report
from tests.core.conftest import CONFIGS, PHOTO, TEXT, TIMM, VIT, random_batch
from tests.core.jobs.test_job import assert_equal_runs, at_step, evaluating, go, go_until

TRAINED = sorted(kind for kind, spec in METHOD_SPECS.items() if spec.trains)
#: With these, every term that a method promises is there.
EVERY_TERM: dict[str, dict[str, Any]] = {
    "carot": {"teacher_update_every": 2},
    "coop": {"n_context": 2},  # the tiny text tower has 16 positions
}


def make(spec: MethodBase, clip: Clip, captions: Captions, steps: int = 20, seed: int = 0) -> Any:
    method = make_method(spec, clip, captions, length=RunLength(total_steps=steps, seed=seed))
    if spec.kind == "tip_adapter":  # it begins with features of its training images
        batch = random_batch(clip, 8, seed=99)
        with torch.no_grad():
            shown = clip.encode_image(batch.images)
        list(method.prepare(lambda part: (shown, batch.labels)))
    return method


def of_kind(kind: str) -> MethodBase:
    return METHOD_SPECS[kind](**EVERY_TERM.get(kind, {}))


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


def test_make_method__a_kind_that_merges_is_no_way_to_train(vit, captions):
    for spec in (METHOD_SPECS["wise_ft"](run="a"), METHOD_SPECS["model_stock"](runs=("a", "b"))):
        with pytest.raises(ModelError, match=f"{spec.kind} trains no model.* merges finished"):
            make(spec, vit, captions)


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_method__terms_are_finite_scalars_of_the_promised_names(clip, captions, kind):
    spec = of_kind(kind)
    method = make(spec, clip, captions)
    for half in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            terms = method.terms(random_batch(clip))
        assert set(terms) == set(spec.terms)
        assert set(terms) <= set(method.weights)
        for value in terms.values():
            assert value.shape == ()
            assert value.dtype == torch.float32
            assert value.isfinite()
    assert bool(method.trainable()) == spec.trains


@pytest.mark.parametrize("kind", TRAINED)
def test_method__gradients_arrive_at_what_it_trains_and_nowhere_else(clip, captions, kind):
    method = make(of_kind(kind), clip, captions)
    # The residual branches of a fresh ModifiedResNet are multiplied by 0: not after two steps.
    steps(method, batches_of(clip, 2))
    loss_of(method, random_batch(clip)).backward()
    owned = {id(p) for module in method.trainable().values() for p in module.parameters()}
    for module in method.trainable().values():
        for name, parameter in module.named_parameters():
            assert parameter.grad.isfinite().all(), name
        moved = [p for p in module.parameters() if p.grad is not None and p.grad.abs().max() > 0]
        assert len(moved) > 0.9 * len(list(module.parameters()))
    for name, parameter in clip.net.named_parameters():
        if id(parameter) not in owned:
            assert parameter.grad is None, name


@pytest.mark.parametrize("kind", TRAINED)
def test_method__loss_falls_on_a_batch_that_is_seen_again_and_again(vit, captions, kind):
    method = make(of_kind(kind), vit, captions)
    losses = steps(method, [random_batch(vit)] * 12)
    assert min(losses[-3:]) < losses[0]


@pytest.mark.parametrize("kind", sorted(METHODS))
def test_method__before_training_its_classifier_is_the_zero_shot_one_and_leaves_the_mode(
    vit, captions, kind
):
    features = vit.encode_image(random_batch(vit).images).detach()
    expected = zero_shot_classifier(vit, captions).logits(features)
    method = make(of_kind(kind), vit, captions)
    vit.train()
    classifier = method.classifier()
    assert vit.training
    assert not classifier.weights.requires_grad
    logits = classifier.logits(features)
    assert logits.shape == expected.shape
    if kind not in ("coop", "tip_adapter"):  # which begin with a context, a cache of their own
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


#: SigLIP's text tower: sees all positions, pools the last one, projects with a bias.
SIGLIP_TEXT = TEXT | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
SIGMOID = {"custom_text": True, "init_logit_bias": -10.0, "text_cfg": SIGLIP_TEXT}
TOWERS: dict[str, dict[str, Any]] = {
    **CONFIGS,
    "sigmoid vit": VIT | SIGMOID,
    "sigmoid timm": TIMM | SIGMOID,
}
SIGMOID_TOWERS = [name for name in TOWERS if name.startswith("sigmoid")]
NEED_SOFTMAX = ("carot", "tracer", "anchored", "pretrain")


@pytest.fixture(scope="module")
def towers(tmp_path_factory, originals):
    """One model of each kind of tower with fixed random weights: not to be changed."""
    folder = tmp_path_factory.mktemp("towers")
    made = dict(originals)
    for name in SIGMOID_TOWERS:
        path = folder / f"{name.replace(' ', '_')}.json"
        path.write_text(json.dumps(TOWERS[name]))
        made[name] = load_clip(str(path), None, generator=torch.Generator().manual_seed(7))
    return made


@pytest.mark.parametrize(
    ("kind", "tower"),
    [
        # `clip` is vit and resnet. Of what is refused, each is; else each method and each tower.
        pytest.param(kind, tower, marks=pytest.mark.thorough if dear else ())
        for i, kind in enumerate(TRAINED)
        for j, tower in enumerate(sorted({*TOWERS} - {"vit", "resnet"}))
        for dear in [(i + j) % 2 and kind not in NEED_SOFTMAX and kind != "coop"]
    ],
)
def test_matrix__each_method_trains_each_tower_or_says_why_not(towers, captions, kind, tower):
    clip = copy.deepcopy(towers[tower])
    if tower in SIGMOID_TOWERS and kind in NEED_SOFTMAX:
        before = weights_sha256(clip.net)
        with pytest.raises(ModelError, match=f"^{kind} is defined by softmax.*sigmoid.*logit bias"):
            make(of_kind(kind), clip, captions)
        assert weights_sha256(clip.net) == before
        return
    if kind == "coop":
        with pytest.raises(UnsupportedTowerError, match="in the place of words"):
            make(of_kind(kind), clip, captions)
        return
    method = make(of_kind(kind), clip, captions)
    trained = {n: copy.deepcopy(m.state_dict()) for n, m in method.trainable().items()}
    losses = steps(method, [random_batch(clip, 4)] * 2)
    assert torch.tensor(losses).isfinite().all()
    for name, module in method.trainable().items():
        assert any(not torch.equal(t, trained[name][k]) for k, t in module.state_dict().items())
    assert method.classifier().weights.shape == (3, 16)


def test_flyp__on_a_sigmoid_model_trains_its_bias_too(towers, captions):
    method = make(specs.Flyp(), copy.deepcopy(towers["sigmoid vit"]), captions)
    batch = random_batch(method.clip, 6)
    before = method.clip.net.logit_bias.detach().clone()
    images = method.clip.encode_image(batch.images)
    texts = method.clip.encode_text(captions.tokens[batch.captions])
    z = method.clip.logit_scale * images @ texts.T + before
    signs = 2 * torch.eye(6) - 1
    expected = -torch.nn.functional.logsigmoid(signs * z).sum() / 6
    torch.testing.assert_close(method.terms(batch)["contrastive"], expected)
    losses = steps(method, [batch] * 6)
    assert losses[-1] < losses[0]
    assert not torch.equal(method.clip.net.logit_bias, before)


def test_lipsum_ft__a_tokenizer_that_marks_no_start_and_end_is_refused_with_the_reason(
    towers, captions
):
    clip = copy.deepcopy(towers["sigmoid vit"])
    real = clip.tokenizer
    clip.tokenizer = lambda texts: real(texts)  # as a SentencePiece one: no token ids to read
    with pytest.raises(ModelError, match="between a start and an end token.* has none") as caught:
        make(specs.LipsumFt(), clip, captions)
    assert "car_ft" in caught.value.hint
    make(specs.LipsumFt(lambda_energy=0), clip, captions)


def test_matrix__a_tower_without_projection_is_refused_before_any_training(vit, captions):
    vit.net.visual.proj = None
    for spec in (specs.CaRot(), specs.CaRot(lambda_oc=0.0, lambda_x=0.1), specs.Tracer()):
        with pytest.raises(UnsupportedTowerError, match="no projection"):
            make(spec, vit, captions)


def test_carot__with_every_lambda_zero_is_flyp_step_for_step(clip, captions):
    nothing = specs.CaRot(lambda_oc=0, lambda_sd=0, lambda_x=0)
    carot = make(nothing, copy.deepcopy(clip), captions)
    flyp = make(specs.Flyp(), copy.deepcopy(clip), captions)
    batches = batches_of(clip, 4)
    assert steps(carot, batches) == steps(flyp, batches)
    plain = weights_sha256(flyp.clip.net)
    assert weights_sha256(carot.clip.net) == plain
    assert carot.state() == {}
    for name in ("lambda_oc", "lambda_sd", "lambda_x"):
        changed = nothing.model_copy(update={name: 0.1, "teacher_update_every": 1})
        carot = make(changed, copy.deepcopy(clip), captions)
        steps(carot, batches)
        assert weights_sha256(carot.clip.net) != plain, name


WITHOUT_OWN_TERMS = {
    "tracer": (specs.Tracer(lambda_sd=0, lambda_x=0), specs.Flyp()),
    "pretrain": (specs.Pretrain(multi_positive=False), specs.Flyp()),
    "car_ft": (specs.CarFt(alpha=0), specs.FineTune()),
    "lp_ft without its probe": (specs.LpFt(), specs.FineTune()),
}


@pytest.mark.parametrize("name", WITHOUT_OWN_TERMS)
def test_method__without_its_own_terms_is_another_step_for_step(clip, captions, name):
    method, plain = (make(s, copy.deepcopy(clip), captions) for s in WITHOUT_OWN_TERMS[name])
    assert steps(method, batches_of(clip, 3)) == steps(plain, batches_of(clip, 3))
    for part, module in plain.trainable().items():
        assert weights_sha256(method.trainable()[part]) == weights_sha256(module)


def test_averaged__steps_as_flyp_does_and_ends_as_the_mean_of_its_iterates(vit, captions):
    n, beta = 4, 0.5
    flyp = make(specs.Flyp(), copy.deepcopy(vit), captions)
    mean = make(specs.Averaged(beta=beta), copy.deepcopy(vit), captions, steps=n)
    batches = batches_of(vit, n)
    iterates = [copy.deepcopy(vit.net.state_dict())]
    free = make(specs.Flyp(), copy.deepcopy(vit), captions)

    def keep(step):
        iterates.append(copy.deepcopy(free.clip.net.state_dict()))
        return {}

    free.after_step = keep
    assert steps(free, batches) == steps(flyp, batches) == steps(mean, batches)
    assert weights_sha256(mean.clip.net) == weights_sha256(flyp.clip.net)
    mean.finish()
    weights = scipy.stats.beta(beta, beta).pdf((np.arange(n + 1) + 0.5) / (n + 1))
    weights /= weights.sum()
    for name, tensor in mean.clip.net.state_dict().items():
        expected = sum(w * state[name] for w, state in zip(weights, iterates, strict=True))
        torch.testing.assert_close(tensor, expected.to(tensor.dtype), rtol=1e-4, atol=1e-6)


def test_anchored__without_its_weight_is_flyp_and_at_the_start_pulls_nowhere(clip, captions):
    flyp = make(specs.Flyp(), copy.deepcopy(clip), captions)
    free = make(specs.Anchored(lambda_0=0), copy.deepcopy(clip), captions)
    held = make(specs.Anchored(), copy.deepcopy(clip).eval(), captions)
    first, *batches = batches_of(clip, 4)
    anchor = held.terms(first)["anchor"]
    assert anchor.item() == pytest.approx(0, abs=1e-5)
    anchor.backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-5 for p in held.clip.parameters())
    held.clip.zero_grad()
    before = weights_sha256(held.teacher.clip.net)
    for batch in (first, *batches):
        assert steps(free, [batch]) == steps(flyp, [batch])
    assert weights_sha256(free.clip.net) == weights_sha256(flyp.clip.net)
    steps(held, [first, *batches])
    assert weights_sha256(held.clip.net) != weights_sha256(flyp.clip.net)
    assert weights_sha256(held.teacher.clip.net) == before


@pytest.mark.parametrize("part", ["alpha_fd", "alpha_crd", "alpha_icl", "alpha_cross"])
def test_tracer__each_distillation_can_be_turned_off_and_is_then_not_computed(vit, captions, part):
    names = {"alpha_fd": "feature", "alpha_crd": "relational", "alpha_icl": "interactive",
             "alpha_cross": "cross_distillation"}  # fmt: skip
    method = make(specs.Tracer(**{part: 0}), vit, captions)
    terms = set(method.terms(random_batch(vit)))
    assert terms == set(specs.Tracer.terms) - {names[part]}
    alone = make(specs.Tracer(**({other: 0 for other in names} | {part: 1.0})), vit, captions)
    kept = {"contrastive", "cross_tower", names[part]}
    assert set(alone.terms(random_batch(vit))) == kept
    assert alone.weights[names[part]] == 0.9


@pytest.mark.parametrize(
    ("tower", "preset"), [("vit", "ViT-B-16"), ("resnet", "RN50"), ("timm", "RN50")]
)
def test_tracer__preset_follows_the_tower_and_is_named(originals, captions, tower, preset):
    method = make(specs.Tracer(), copy.deepcopy(originals[tower]), captions)
    script = TRACER_PRESETS[preset]
    alpha = script.alpha_fd * 16 / script.embed_dim
    expected = {"preset": preset, "lambda_sd": script.lambda_sd, "lambda_x": script.lambda_x}
    assert method.resolved() == expected | {"alpha_fd": pytest.approx(alpha)}
    assert method.weights["feature"] == pytest.approx(script.lambda_sd * alpha)
    assert method.weights["cross_tower"] == script.lambda_x
    other = make(specs.Tracer(preset="paper"), copy.deepcopy(originals[tower]), captions)
    assert other.resolved()["preset"] == "paper"
    assert other.resolved()["alpha_fd"] == 1


@pytest.mark.parametrize(("width", "preset"), [(1008, "ViT-B-16"), (1024, "ViT-L-14")])
def test_tracer__a_wide_transformer_takes_the_large_ones_preset(tmp_path, width, preset):
    path = tmp_path / "wide.json"
    vision = {**VIT["vision_cfg"], "width": width, "layers": 1}
    path.write_text(json.dumps({**VIT, "vision_cfg": vision}))
    assert fitted(specs.Tracer(), load_clip(str(path), None)).preset == preset


def test_lipsum_ft__without_its_energies_is_finetune_with_the_scale_outside_and_no_bias(
    clip, captions
):
    method = make(specs.LipsumFt(lambda_energy=0), copy.deepcopy(clip), captions)
    plain = make(specs.FineTune(head_scale="learned"), copy.deepcopy(clip), captions)
    plain.head.bias.requires_grad_(False)
    plain.head.log_scale.requires_grad_(False)
    batches = batches_of(clip, 3)
    assert steps(method, batches) == pytest.approx(steps(plain, batches), rel=1e-4)
    assert [name for name, _ in method.head.named_parameters()] == ["weight"]
    torch.testing.assert_close(method.head.weight, plain.head.weight, atol=1e-5, rtol=1e-4)


def test_pretrain__keeps_the_logit_scale_within_its_bound(vit, captions):
    method = make(specs.Pretrain(), vit, captions)
    with torch.no_grad():
        vit.net.logit_scale.fill_(9.0)
    method.after_step(1)
    assert float(vit.logit_scale.detach()) == pytest.approx(100)


def test_finetune__folded_and_learned_scale_give_the_same_logits_at_the_start(vit, captions):
    batch = random_batch(vit)
    fixed = make(specs.FineTune(), vit, captions)
    learned = make(specs.FineTune(head_scale="learned"), vit, captions)
    torch.testing.assert_close(
        fixed.terms(batch)["cross_entropy"], learned.terms(batch)["cross_entropy"]
    )
    assert fixed.classifier().scale == 1.0
    assert learned.classifier().scale == pytest.approx(float(vit.logit_scale.detach()))
    assert len(list(learned.head.parameters())) == len(list(fixed.head.parameters())) + 1


def test_finetune__classifier_gives_the_heads_logits(vit, captions):
    for scale in ("fixed", "learned"):
        method = make(specs.FineTune(head_scale=scale), vit, captions)
        steps(method, batches_of(vit, 2), lr=1e-2)
        features = vit.encode_image(random_batch(vit).images).detach()
        torch.testing.assert_close(
            method.classifier().logits(features), method.head(features).detach()
        )


def teacher_of(clip: Clip, captions: Captions, **changes: Any) -> EmaTeacher:
    settings = {"update_every": 1, "momentum_start": 0.05, "momentum_end": 0.9,
                                "ramp_steps": 4.0, "follow_buffers": True}  # fmt: skip
    return EmaTeacher(clip, captions, **(settings | changes))


def test_teacher__equal_to_the_student_distils_nothing(vit, captions):
    method = make(specs.CaRot(), vit, captions)
    vit.eval()
    value = method.terms(random_batch(vit))["distillation"]
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    largest = max(float(p.grad.abs().max()) for p in vit.net.parameters() if p.grad is not None)
    assert largest < 5e-5  # float32; the terms next to it give 1e-1 and more


@pytest.mark.parametrize("kind", ["carot", "lipsum_ft", "car_ft", "zs_norm"])
def test_teacher__and_initial_tower_stay_frozen_and_in_eval_through_training(clip, captions, kind):
    method = make(of_kind(kind), clip, captions)
    still = method.teacher.clip if kind == "carot" else method.initial.visual
    before = weights_sha256(still)
    steps(method, batches_of(clip, 3))
    assert clip.training
    assert not any(module.training for module in still.modules())
    assert not any(p.requires_grad or p.grad is not None for p in still.parameters())
    owned = {id(p) for module in method.trainable().values() for p in module.parameters()}
    assert not owned & {id(p) for p in still.parameters()}
    assert kind == "carot" or weights_sha256(still) == before


def test_teacher__average_worked_by_hand(vit, captions):
    """Momentum 0.05 → 0.9 over four steps, updates at steps 2, 4 and 6."""
    assert teacher_of(vit, captions, ramp_steps=0.0).momentum(0) == pytest.approx(0.9)
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


def test_teacher__buffers_follow_the_student_and_only_if_asked(resnet, captions):
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


@pytest.mark.parametrize(
    ("spec", "every"), [(specs.CaRot(teacher_update_every=3), 3), (specs.Tracer(), 1)]
)
def test_teacher__cached_captions_give_the_similarity_of_encoding_anew(clip, captions, spec, every):
    method = make(spec, clip, captions)
    teacher = method.teacher
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
        assert (int(teacher.known.sum()) == 0) == (step % every == 0)
    assert max(seen) > 4 or every == 1


def test_teacher__encodes_each_caption_once_between_updates(vit, captions):
    teacher = teacher_of(vit, captions, update_every=100)
    encoded = 0
    original = teacher.clip.net.token_embedding.register_forward_hook(
        lambda module, inputs, output: count(len(inputs[0]))
    )

    def count(n):
        nonlocal encoded
        encoded += n

    for batch in batches_of(vit, 6):
        teacher.similarity(batch)
    original.remove()
    assert encoded == len({int(c) for b in batches_of(vit, 6) for c in b.captions})


def test_carot__default_interval_gives_about_fifty_updates(vit, captions):
    for total, every in ((25_030, 500), (100, 2), (20, 1), (1, 1)):
        method = make(specs.CaRot(), vit, captions, steps=total)
        assert method.resolved() == {"teacher_update_every": every}
    assert make(specs.CaRot(lambda_sd=0), vit, captions).resolved() == {
        "teacher_update_every": None
    }


def test_carot__a_text_tower_without_projection_is_refused_with_the_way_out(vit, captions):
    vit.net.text_projection = None
    with pytest.raises(UnsupportedTowerError, match="text tower") as caught:
        make(specs.CaRot(), vit, captions)
    assert "lambda_x" in caught.value.hint
    made = make(specs.CaRot(lambda_x=0, lambda_oc=0), vit, captions)
    assert loss_of(made, random_batch(vit)).isfinite()


def test_trajectory_teacher__averages_batch_statistics_with_the_weights_and_only_if_asked(
    resnet, captions
):
    """Two updates with β = 1: each iterate's statistics count a third."""
    for follows in (True, False):
        teacher = TrajectoryTeacher(
            resnet, captions, total_steps=3, beta=1.0, follow_buffers=follows
        )
        student = copy.deepcopy(resnet).train()
        seen = [{name: b.clone() for name, b in student.named_buffers()}]
        for step in (1, 2):
            student.encode_image(random_batch(resnet, seed=step).images)
            teacher.update(student, step)
            seen.append({name: b.clone() for name, b in student.named_buffers()})
        for name, buffer in teacher.clip.named_buffers():
            expected = seen[0][name]
            if follows and buffer.is_floating_point():
                expected = torch.stack([buffers[name] for buffers in seen]).mean(dim=0)
            elif follows:
                expected = seen[2][name]
            torch.testing.assert_close(buffer, expected, msg=name)
        name = "net.visual.bn1.running_mean"
        assert not torch.equal(seen[1][name], seen[2][name])
        assert not torch.equal(seen[1][name], seen[0][name])


def test_trajectory_teacher__its_text_tower_still_hides_what_comes_later(vit, captions):
    """An attention mask is a buffer and holds −∞, and −∞ − −∞ is no number."""
    teacher = TrajectoryTeacher(vit, captions, total_steps=3, beta=0.5, follow_buffers=True)
    for step in (1, 2):
        teacher.update(vit, step)
    assert torch.equal(teacher.clip.net.attn_mask, vit.net.attn_mask)
    images, texts = teacher.embed(random_batch(vit))
    assert images.isfinite().all()
    assert texts.isfinite().all()


@pytest.mark.parametrize("spec", [specs.Tracer(), specs.CaRot(teacher_update_every=2)])
def test_teacher__state_brings_every_kind_back_bit_for_bit(clip, captions, spec):
    method = make(spec, clip, captions)
    steps(method, batches_of(clip, 2))
    other = make(spec, copy.deepcopy(clip), captions)
    other.load_state({name: t.clone() for name, t in method.state().items()})
    for step, batch in enumerate(batches_of(clip, 2), start=3):
        for one, two in zip(method.teacher.embed(batch), other.teacher.embed(batch), strict=True):
            assert torch.equal(one, two)
        for each in (method, other):
            each.after_step(step)
    for name, tensor in method.state().items():
        assert torch.equal(other.state()[name], tensor), name


def test_linear_probe__on_cached_features_equals_through_the_tower_step_for_step(clip, captions):
    images = batches_of(clip, 4)
    frozen = copy.deepcopy(clip).eval()
    with torch.no_grad():
        cached = [Batch(frozen.encode_image(b.images), b.labels, b.captions) for b in images]
    runs = [make(specs.LinearProbe(), copy.deepcopy(clip), captions) for _ in range(2)]
    assert steps(runs[0], images) == steps(runs[1], cached)
    for method in runs:
        assert weights_sha256(method.clip.net) == weights_sha256(clip.net)
    assert weights_sha256(runs[0].head) == weights_sha256(runs[1].head)


def features_of(n, seed, noise=0.6, flip=0.0, d=16):
    """Unit vectors around three centres, a share of whose labels is wrong."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, d, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % 3
    x = centres[labels] + noise * 4 * torch.randn(n, d, generator=generator)
    wrong = torch.rand(n, generator=generator) < flip
    labels = torch.where(wrong, torch.randint(3, (n,), generator=generator), labels)
    return torch.nn.functional.normalize(x, dim=1), labels


def scikit(x: Tensor, y: Tensor, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(x.double(), y)


@pytest.mark.parametrize(
    ("strength", "start"), [(0.01, "zero_shot"), (1.0, "zeros"), (100.0, "zero_shot")]
)
def test_lbfgs__finds_scikit_learns_optimum_wherever_it_starts(vit, captions, strength, start):
    x, y = features_of(90, 0)
    method = make(specs.LinearProbe(solver="lbfgs", head_start=start), vit, captions)
    loss = fit_logistic(method.head, x, y, strength, max_iterations=1000)
    theirs = scikit(x, y, strength)
    mine = method.classifier()
    largest = float(abs(theirs.coef_).max())
    assert mine.weights.double().numpy() == pytest.approx(theirs.coef_, abs=1e-4 * largest)
    probabilities = mine.logits(x).double().softmax(dim=1).numpy()
    expected = theirs.predict_proba(x.double())
    assert probabilities == pytest.approx(expected, abs=1e-4)
    assert loss == pytest.approx(float(-np.log(expected[np.arange(90), y]).mean()), rel=1e-4)


def test_lbfgs__takes_the_strength_that_is_best_on_validation_not_on_train(vit, captions):
    """Few, noisy, mislabelled training features: the weakest penalty fits them best."""
    parts = {"train": features_of(30, 0, flip=0.3), "validation": features_of(300, 1)}
    spec = specs.LinearProbe(solver="lbfgs")
    method = make(spec, vit, captions, steps=0)
    records = list(method.prepare(lambda part: parts[part]))
    curve = [r.values | {"step": r.step} for r in records if isinstance(r, MetricsRecord)]
    assert [point["strength"] for point in curve] == sorted(spec.strengths)
    assert [point["step"] for point in curve] == list(range(1, len(curve) + 1))
    on_train = min(curve, key=lambda point: point["cross_entropy"])["strength"]
    x, y = parts["validation"]
    theirs = {c: scikit(*parts["train"], c) for c in spec.strengths}
    nll = {
        c: float(-np.log(model.predict_proba(x.double())[np.arange(300), y]).mean())
        for c, model in theirs.items()
    }
    best = min(nll, key=nll.__getitem__)
    assert on_train == max(spec.strengths)
    assert best < on_train
    assert method.resolved() == {"strength": best, "selected_on": "id_val"}
    assert {p["strength"]: p["val_nll"] for p in curve} == pytest.approx(nll, rel=1e-3)
    made = method.classifier().logits(x).double().softmax(dim=1).numpy()
    assert made == pytest.approx(theirs[best].predict_proba(x.double()), abs=1e-4)
    accuracy = {p["strength"]: p["val_accuracy"] for p in curve}[best]
    assert accuracy == pytest.approx(theirs[best].score(x.double(), y))


@pytest.mark.parametrize("kind", ["linear_probe", "lp_ft"])
def test_head_start__zeros_know_nothing(vit, captions, kind):
    method = make(METHOD_SPECS[kind](head_start="zeros"), vit, captions)
    loss = method.terms(random_batch(vit))["cross_entropy"]
    assert float(loss.detach()) == pytest.approx(math.log(3))


def only(features: tuple[Tensor, Tensor]) -> Callable[[str], tuple[Tensor, Tensor]]:
    def of(part):
        assert part == "train"
        return features

    return of


def test_lp_ft__its_probe_is_the_linear_probe_and_leaves_the_tower(vit, captions):
    """60 features fit in one batch of the probe, whose order then counts only in rounding."""
    x, y = features_of(60, 0)
    spec = specs.LpFt(lp_epochs=7, lp_lr=1e-2)
    method = make(spec, copy.deepcopy(vit), captions)
    (record,) = method.prepare(only((x, y)))
    assert "7 epochs on 60 cached features" in record.message
    assert weights_sha256(method.clip.net) == weights_sha256(vit.net)
    probe = make(specs.LinearProbe(), copy.deepcopy(vit), captions)
    before = probe.head.weight.detach().clone()
    optimizer = torch.optim.AdamW(probe.head.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(7):
        loss_of(probe, Batch(x, y, y)).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(method.head.weight, probe.head.weight, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(method.head.bias, probe.head.bias, atol=1e-4, rtol=1e-4)
    assert float((method.head.weight - before).abs().max().detach()) > 0.03


def test_lp_ft__after_its_probe_is_finetune_from_that_head(vit, captions):
    method = make(specs.LpFt(), copy.deepcopy(vit), captions)
    list(method.prepare(only(features_of(40, 0))))
    plain = make(specs.FineTune(), copy.deepcopy(vit), captions)
    plain.head.load_state_dict(method.head.state_dict())
    assert steps(method, batches_of(vit, 3)) == steps(plain, batches_of(vit, 3))
    assert weights_sha256(method.clip.net) == weights_sha256(plain.clip.net)


def test_lipsum_ft__random_texts_stand_between_start_and_end_token(vit, captions):
    method = make(specs.LipsumFt(n_texts=200, text_length=5), vit, captions)
    tokens = method.random_texts()
    start, end = vit.tokenizer.sot_token_id, vit.tokenizer.eot_token_id
    assert tokens.shape == (200, 16)
    assert (tokens[:, 0] == start).all()
    assert (tokens[:, 6] == end).all()
    assert (tokens[:, 7:] == 0).all()
    words = tokens[:, 1:6]
    assert not ((words == start) | (words == end)).any()
    # Uniform over 49,406 words: the mean of 1000 is within five standard errors of the middle.
    assert abs(float(words.double().mean()) - 49405 / 2) < 5 * 49406 / math.sqrt(12 * 1000)
    assert (tokens.argmax(dim=1) == 6).all()


def test_lipsum_ft__texts_are_new_each_step_and_their_state_brings_them_back(vit, captions):
    method = make(specs.LipsumFt(n_texts=4), vit, captions, seed=3)
    first = method.random_texts()
    state = {name: t.clone() for name, t in method.state().items()}
    second = method.random_texts()
    assert not torch.equal(first, second)
    resumed = make(specs.LipsumFt(n_texts=4), vit, captions, seed=3)
    assert torch.equal(resumed.random_texts(), first)
    resumed.load_state(state)
    assert torch.equal(resumed.random_texts(), second)
    other = make(specs.LipsumFt(n_texts=4), vit, captions, seed=4)
    assert not torch.equal(other.random_texts(), first)


def test_lipsum_ft__energy_gap_of_a_moved_tower_computed_anew(vit, captions):
    initial = copy.deepcopy(vit)
    method = make(specs.LipsumFt(n_texts=10), vit, captions)
    steps(method, batches_of(vit, 2), lr=1e-2)
    batch = random_batch(vit)
    again = make(specs.LipsumFt(n_texts=10), copy.deepcopy(initial), captions)
    again.load_state(method.state())
    texts = initial.net.encode_text(again.random_texts())
    texts = torch.nn.functional.normalize(texts, dim=-1)
    gap = (vit.encode_image(batch.images) - initial.encode_image(batch.images)) @ texts.T
    gap = float(initial.logit_scale.detach()) * gap
    expected = (gap.square().sum(dim=1) / 20).mean()
    torch.testing.assert_close(method.terms(batch)["energy_gap"], expected, rtol=1e-3, atol=1e-5)


def test_lipsum_ft__texts_that_do_not_fit_in_the_context_are_refused(vit, captions):
    make(specs.LipsumFt(text_length=14), vit, captions)
    with pytest.raises(ModelError, match="15 random tokens and end token do not fit in the 16"):
        make(specs.LipsumFt(text_length=15), vit, captions)


def test_car_ft__contexts_are_unit_means_over_classes_per_template(vit, captions):
    vit.train()
    contexts = context_weights(vit, captions, batch_size=2)
    assert vit.training
    for p in range(3):
        rows = [vit.encode_text(captions.tokens[3 * c + p][None])[0] for c in range(3)]
        mean = torch.stack(rows).mean(dim=0).detach()
        torch.testing.assert_close(contexts[p], mean / mean.norm(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(contexts.norm(dim=1), torch.ones(3))
    assert not contexts.requires_grad


def test_car_ft__at_the_start_the_contexts_agree_and_later_they_do_not(vit, captions):
    initial = copy.deepcopy(vit)
    method = make(specs.CarFt(), vit, captions)
    assert float(method.terms(random_batch(vit))["context"].detach()) == pytest.approx(0, abs=1e-7)
    steps(method, batches_of(vit, 3), lr=1e-2)
    batch = random_batch(vit)
    contexts = context_weights(initial, captions)

    def log_contexts(clip):
        logits = clip.logit_scale * clip.encode_image(batch.images) @ contexts.T
        return logits.log_softmax(dim=1).detach()

    before, now = log_contexts(initial), log_contexts(vit)
    expected = float((before.exp() * (before - now)).sum(dim=1).mean())
    assert expected > 1e-5
    value = float(method.terms(batch)["context"].detach())
    assert value == pytest.approx(expected, rel=1e-3)


def test_car_ft__one_template_has_no_context_and_is_refused_unless_it_does_not_count(vit, captions):
    one = Captions.make(captions.class_names, PHOTO[:1], vit.tokenizer)
    with pytest.raises(ModelError, match="there is one template") as caught:
        make(specs.CarFt(), vit, one)
    assert "suite.templates" in caught.value.hint
    make(specs.CarFt(alpha=0), vit, one)


def test_zs_norm__begins_as_finetune_and_no_stretching_of_the_head_changes_its_loss(clip, captions):
    method = make(specs.ZsNorm(), copy.deepcopy(clip), captions)
    plain = make(specs.FineTune(), copy.deepcopy(clip), captions)
    batch = random_batch(clip)
    for one in (method, plain):
        one.clip.eval()  # the initial tower sees running statistics of a BatchNorm
    torch.testing.assert_close(method.terms(batch), plain.terms(batch), rtol=1e-4, atol=1e-5)
    steps(method, batches_of(clip, 2))
    before = method.terms(batch)["cross_entropy"].detach()
    with torch.no_grad():
        method.head.weight.mul_(7)
        method.head.bias.mul_(7).add_(3)
    torch.testing.assert_close(method.terms(batch)["cross_entropy"].detach(), before)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6))
def test_to_range__keeps_the_order_takes_the_ends_and_is_nothing_for_equal_logits(seed, n_classes):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, n_classes, generator=generator, dtype=torch.float64)
    initial = 3 * torch.randn(5, n_classes, generator=generator, dtype=torch.float64)
    found = to_range(logits, initial)
    torch.testing.assert_close(found.amax(dim=1), initial.amax(dim=1))
    torch.testing.assert_close(found.amin(dim=1), initial.amin(dim=1))
    assert torch.equal(found.argsort(dim=1), logits.argsort(dim=1))
    torch.testing.assert_close(to_range(initial, initial), initial)
    flat = to_range(torch.ones(1, n_classes), initial[:1].float())
    torch.testing.assert_close(flat, initial[:1].float().amin().expand(1, n_classes))


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def report_in(folder: Path) -> Report:
    return Report.model_validate_json((folder / "report.json").read_bytes())


def test_run__of_lp_ft_has_its_curves_and_a_stop_repeats_no_probe_and_changes_no_bit(
    run_spec, home, tmp_path
):
    spec = run_spec("lp_ft", method={"lp_epochs": 2})
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    records = go(spec, alone)
    report = report_in(alone)
    total = report.resolved["total_steps"]
    assert total > 4
    curve = [line for line in lines_of(alone) if "loss" in line]
    assert [line["step"] for line in curve] == list(range(1, total + 1))
    every = {"step", "epoch", "loss", "lr", "logit_scale", *specs.LpFt.terms}
    assert all(set(line) - {"grad_norm"} == every for line in curve)
    validated = [line for line in lines_of(alone) if "loss" not in line]
    assert len(validated) == 2
    for line in validated:
        assert set(line) >= {"val_accuracy", "val_nll", "val_ece", "effective_rank"}
    go_until(spec, stopped, at_step(2))
    resumed = go(spec, stopped)
    assert [r.step for r in resumed if r.kind == "resumed"] == [3]
    prepared = [[r for r in seen if r.kind == "log"] for seen in (records, resumed)]
    assert [len(logs) for logs in prepared] == [1, 0]
    assert_equal_runs(stopped, alone)
    assert report_in(stopped).resolved == report.resolved
    classifier = "checkpoint/classifier.safetensors"
    assert (alone / classifier).read_bytes() == (stopped / classifier).read_bytes()


def test_run__lbfgs_is_solved_before_the_first_step_and_again_after_a_stop(
    run_spec, home, tmp_path
):
    strengths = [0.1, 10.0, 1000.0]
    spec = run_spec("linear_probe", method={"solver": "lbfgs", "strengths": strengths})
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    go(spec, alone)
    report = report_in(alone)
    assert report.resolved["total_steps"] == 0
    assert report.resolved["selected_on"] == "id_val"
    curve = lines_of(alone)
    assert [line["strength"] for line in curve] == strengths
    best = min(curve, key=lambda line: line["val_nll"])
    assert report.resolved["strength"] == best["strength"]
    assert report.selection["validation"]["val_nll"] == pytest.approx(best["val_nll"], rel=1e-4)
    assert report.model["sha256"] == report.model["start_sha256"]
    go_until(spec, stopped, evaluating)
    go(spec, stopped)
    assert_equal_runs(stopped, alone)


def test_run__tracer_without_a_rate_takes_its_presets_and_the_report_names_it(
    run_spec, home, tmp_path
):
    train_changes = {"epochs": 1, "lr": None, "weight_decay": None}
    go(run_spec("tracer", train=train_changes), tmp_path / "run")
    resolved = report_in(tmp_path / "run").resolved
    script = TRACER_PRESETS["ViT-B-16"]
    assert resolved["preset"] == "ViT-B-16"
    assert (resolved["lr"], resolved["weight_decay"]) == (script.lr, script.weight_decay)
    assert resolved["alpha_fd"] == pytest.approx(script.alpha_fd * 16 / script.embed_dim)
