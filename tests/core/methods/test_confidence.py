"""Training-time calibration: which option goes with which method, and what each does."""

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calift_core.errors import ModelError, SpecError
from calift_core.methods import Batch, Method, RunLength, make_method
from calift_core.methods.confidence import mix
from calift_core.methods.terms import cross_entropy, distillation, focal, kl, mmce, similarity
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.models.loading import weights_sha256
from calift_core.models.zeroshot import zero_shot_weights
from calift_core.schema.spec import RunSpec, parse_spec
from tests.core.conftest import random_batch
from tests.core.jobs.test_job import assert_equal_runs, at_step, go, go_until

#: Each option as a user turns it on.
OPTIONS: dict[str, dict[str, Any]] = {
    "label_smoothing": {"label_smoothing": 0.1},
    "focal": {"focal": "flsd53"},
    "mixup": {"mixup_alpha": 0.4},
    "zero_shot_kd": {"zero_shot_kd": 2.0, "zero_shot_kd_temperature": 1.5},
    "mmce": {"mmce": 4.0},
    "entropy": {"entropy": 0.1},
}
#: What an option adds to a method's terms.
ADDS = {
    "zero_shot_kd": {"zero_shot_distillation": 2.0},
    "mmce": {"mmce": 4.0},
    "entropy": {"negative_entropy": 0.1},
}
HEAD = {"label_smoothing", "focal", "mixup", "zero_shot_kd", "mmce", "entropy"}
PAIRS = {"label_smoothing", "zero_shot_kd"}
GOES_WITH: dict[str, set[str]] = {
    kind: options
    for kinds, options in {
        ("linear_probe", "coop", "tip_adapter"): HEAD - {"mixup"},
        ("finetune", "lp_ft", "lipsum_ft", "car_ft", "zs_norm"): HEAD,
        ("flyp", "carot", "tracer", "anchored", "averaged"): PAIRS,
        ("zero_shot", "wise_ft", "model_stock", "vrf", "dawin", "pretrain"): set(),
    }.items()
    for kind in kinds
}
REASONS = {
    "zero_shot": "no loss that this could change",
    "pretrain": "the model that others are compared with",
    **dict.fromkeys(
        ("linear_probe", "coop", "tip_adapter"), "computed once, before any image could be mixed"
    ),
    **dict.fromkeys(("flyp", "carot", "tracer", "anchored", "averaged"), "no class probabilities"),
    **dict.fromkeys(("wise_ft", "vrf", "dawin", "model_stock"), "it trains nothing"),
}
NEEDED: dict[str, dict[str, Any]] = {
    "wise_ft": {"run": "a"},
    "vrf": {"run": "a"},
    "dawin": {"run": "a"},
    "model_stock": {"runs": ["a", "b"]},
    "coop": {"n_context": 4},
    "carot": {},
}
TOGETHER = [
    pair
    for pair in itertools.combinations(sorted(OPTIONS), 2)
    if set(pair) not in ({"focal", "label_smoothing"}, {"focal", "mixup"}, {"mixup", "mmce"})
]
SUPERVISED = [kind for kind, options in GOES_WITH.items() if options == HEAD]


def spec_of(kind: str, *options: str, **more: Any) -> RunSpec:
    confidence = {k: v for option in options for k, v in OPTIONS[option].items()}
    return parse_spec(
        {
            "name": "a run",
            "method": {"kind": kind, **NEEDED.get(kind, {})},
            "train": {"confidence": confidence | more},
        }
    )


def make(spec: RunSpec, clip: Clip, captions: Captions) -> Any:
    length = RunLength(total_steps=20)
    return make_method(spec.method, clip, captions, length=length, confidence=spec.train.confidence)


def batch_for(spec: RunSpec, clip: Clip, seed: int = 0) -> Batch:
    batch = random_batch(clip, 6, seed)
    alpha = spec.train.confidence.mixup_alpha
    return mix(batch, alpha, torch.Generator().manual_seed(seed)) if alpha else batch


def loss_of(method: Method, terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([method.weights[name] * value for name, value in terms.items()]).sum()


def train(method: Method, spec: RunSpec, n: int = 2, lr: float = 1e-3) -> list[dict[str, float]]:
    parameters = [p for module in method.trainable().values() for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    method.clip.train()
    curve = []
    for step in range(1, n + 1):
        terms = method.terms(batch_for(spec, method.clip, step))
        loss_of(method, terms).backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step)
        curve.append({name: float(value.detach()) for name, value in terms.items()})
    return curve


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("kind", GOES_WITH)
def test_option__trains_with_its_terms_or_is_refused_with_the_reason(vit, captions, kind, option):
    if option not in GOES_WITH[kind]:
        with pytest.raises(SpecError) as caught:
            spec_of(kind, option)
        sentence = caught.value.message
        assert f"{kind} does not go with {option}" in sentence
        assert REASONS[kind] in sentence
        for other in GOES_WITH[kind]:
            assert other in sentence
        return
    spec = spec_of(kind, option)
    method = make(spec, vit, captions)
    promised = set(spec.method.terms) | set(ADDS.get(option, {}))
    for terms in train(method, spec):
        assert set(terms) == promised
        assert np.isfinite(list(terms.values())).all()
    for name, weight in ADDS.get(option, {}).items():
        assert method.weights[name] == weight


# Each pair with one method: every option goes with every one of them by itself, as seen above.
@pytest.mark.parametrize(
    ("kind", "pair"),
    [(SUPERVISED[at % len(SUPERVISED)], pair) for at, pair in enumerate(TOGETHER)]
    + [("carot", tuple(sorted(PAIRS)))],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_options__that_make_sense_together_train_together(vit, captions, kind, pair):
    spec = spec_of(kind, *pair)
    promised = set(spec.method.terms).union(*(ADDS.get(option, ()) for option in pair))
    for terms in train(make(spec, vit, captions), spec, n=1):
        assert set(terms) == promised
        assert np.isfinite(list(terms.values())).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("focal", "label_smoothing", "mixup"), "true class, and label_smoothing and mixup spread"),
        (("mmce", "mixup"), "mmce asks whether .*; a mixed image has no answer"),
    ],
    ids="+".join,
)
def test_options__that_contradict_each_other_are_refused(options, words):
    with pytest.raises(SpecError, match=f"#/train/confidence: .*{words}"):
        spec_of("finetune", *options)


def test_option__lbfgs_takes_none():
    method = {"kind": "linear_probe", "solver": "lbfgs"}
    for option, values in OPTIONS.items():
        words = f"train.confidence .*{option}.*lbfgs solver minimises plain cross-entropy.*adamw"
        with pytest.raises(SpecError, match=words):
            parse_spec({"name": "a run", "method": method, "train": {"confidence": values}})


@pytest.mark.parametrize("kind", ["linear_probe", "finetune", "flyp"])
def test_option__all_off_is_the_method_alone_bit_for_bit(vit, captions, kind):
    spec = spec_of(kind)
    with_options = make(spec, copy.deepcopy(vit), captions)
    length = RunLength(total_steps=20)
    alone = make_method(spec.method, copy.deepcopy(vit), captions, length=length)
    assert train(with_options, spec) == train(alone, spec)
    assert weights_sha256(with_options.clip.net) == weights_sha256(alone.clip.net)


@pytest.mark.parametrize("option", sorted(PAIRS))
def test_option__with_flyps_sigmoid_form_is_refused_with_the_reason(vit, captions, option):
    vit.net.logit_bias = torch.nn.Parameter(torch.tensor(-10.0))
    with pytest.raises(ModelError, match="train.confidence with flyp is defined by softmax"):
        make(spec_of("flyp", option), vit, captions)
    make(spec_of("flyp"), vit, captions)
    spec = spec_of("finetune", option)
    assert train(make(spec, vit, captions), spec)


def logits_of(method: Any, batch: Batch) -> Tensor:
    logits = method.head(method.clip.encode_image(batch.images))
    return logits.detach()


def test_supervised__each_option_is_its_equation_on_the_heads_logits(vit, captions):
    def term(name, *options, **more):
        spec = spec_of("finetune", *options, **more)
        method = make(spec, vit, captions)
        batch = batch_for(spec, vit)
        return method.terms(batch)[name].detach(), logits_of(method, batch), batch

    value, z, batch = term("cross_entropy", "label_smoothing")
    torch.testing.assert_close(value, cross_entropy(z, batch.labels, smoothing=0.1))
    value, z, batch = term("cross_entropy", "focal")
    torch.testing.assert_close(value, focal(z, batch.labels, None))
    value, z, batch = term("cross_entropy", focal="constant", focal_gamma=2.0)
    torch.testing.assert_close(value, focal(z, batch.labels, 2.0))
    value, z, batch = term("mmce", "mmce")
    torch.testing.assert_close(value, mmce(z, batch.labels))
    value, z, batch = term("cross_entropy", "mixup", "label_smoothing")
    assert batch.mixed_with is not None
    assert 0 < batch.share < 1
    parts = [cross_entropy(z, y, smoothing=0.1) for y in (batch.labels, batch.mixed_with)]
    torch.testing.assert_close(value, batch.share * parts[0] + (1 - batch.share) * parts[1])


@pytest.mark.parametrize("kind", ["flyp", "tracer"])
def test_contrastive__smoothing_is_over_the_pairs_of_the_batch(vit, captions, kind):
    batch = random_batch(vit, 6)
    sharp = make(spec_of(kind), vit, captions).terms(batch)["contrastive"]
    soft = make(spec_of(kind, "label_smoothing"), vit, captions).terms(batch)["contrastive"]
    texts = vit.encode_text(captions.tokens[batch.captions])
    z = similarity(vit.encode_image(batch.images), texts, vit.logit_scale)
    uniform = -(z.log_softmax(1).mean() + z.T.log_softmax(1).mean()) / 2
    torch.testing.assert_close(soft, 0.9 * sharp + 0.1 * uniform)


#: What CoOp and Tip-Adapter train is made of cached features, which these methods have not seen.
KD_KINDS = [
    kind
    for kind, options in GOES_WITH.items()
    if "zero_shot_kd" in options and kind not in ("coop", "tip_adapter")
]


@pytest.mark.parametrize("kind", KD_KINDS)
def test_kd__of_the_initial_model_is_zero_with_gradient_zero_and_rises_as_it_moves(
    vit, captions, kind
):
    spec = spec_of(kind, "zero_shot_kd")
    method = make(spec, vit, captions)
    vit.eval()
    batch = random_batch(vit, 6)
    value = method.terms(batch)["zero_shot_distillation"]
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    value.backward()
    gradients = [
        p.grad.abs().max()
        for module in method.trainable().values()
        for p in module.parameters()
        if p.grad is not None
    ]
    assert gradients
    assert float(torch.stack(gradients).max()) < 1e-4
    for module in method.trainable().values():
        module.zero_grad()
    train(method, spec, n=4, lr=1e-2)
    assert float(method.terms(batch)["zero_shot_distillation"].detach()) > 1e-4


@pytest.mark.parametrize("kind", ["finetune", "lp_ft", "lipsum_ft", "car_ft", "linear_probe"])
def test_kd__of_a_head_is_the_divergence_from_the_initial_zero_shot_model(vit, captions, kind):
    initial = copy.deepcopy(vit).eval()
    spec = spec_of(kind, "zero_shot_kd")
    method = make(spec, vit, captions)
    train(method, spec, n=3, lr=1e-2)
    batch = random_batch(vit, 6, seed=9)
    with torch.no_grad():
        teacher = initial.encode_image(batch.images) @ zero_shot_weights(initial, captions).T
        expected = kl(logits_of(method, batch), initial.logit_scale * teacher, temperature=1.5)
    value = method.terms(batch)["zero_shot_distillation"].detach()
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-6)


def test_kd__of_pairs_is_the_distillation_from_the_initial_similarities(vit, captions):
    initial = copy.deepcopy(vit).eval()
    spec = spec_of("flyp", "zero_shot_kd")
    method = make(spec, vit, captions)
    train(method, spec, n=3)
    batch = random_batch(vit, 6, seed=9)

    def z(clip):
        texts = clip.encode_text(captions.tokens[batch.captions])
        return similarity(clip.encode_image(batch.images), texts, clip.logit_scale).detach()

    expected = distillation(z(vit), z(initial), temperature=1.5)
    value = method.terms(batch)["zero_shot_distillation"].detach()
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-6)
    assert float(value) > 1e-4


def test_kd__texts_of_the_initial_model_are_all_encoded_before_the_first_step(vit, captions):
    """Which captions share a forward pass changes last bits, and a resumed run starts elsewhere."""
    methods = [make(spec_of("flyp", "zero_shot_kd"), vit, captions) for _ in range(2)]
    late, early = (random_batch(vit, 6, seed) for seed in (5, 1))
    methods[0].extra.initial.embed(early)
    for method in methods:
        assert method.extra.initial.known.all()
    texts = [method.extra.initial.embed(late)[1] for method in methods]
    assert torch.equal(*texts)
    plain = vit.encode_text(captions.tokens[late.captions]).detach()
    torch.testing.assert_close(texts[0], plain)


@pytest.mark.parametrize("kind", ["finetune", "lipsum_ft"])
def test_kd__encodes_the_batch_with_the_initial_tower_once(vit, captions, kind):
    method = make(spec_of(kind, "zero_shot_kd"), vit, captions)
    calls = []
    method.initial.visual.register_forward_hook(lambda *_: calls.append(1))
    method.terms(random_batch(vit, 4))
    assert len(calls) == 1


def test_kd__of_cached_features_needs_no_tower(vit, captions):
    spec = spec_of("linear_probe", "zero_shot_kd")
    method = make(spec, vit, captions)
    batch = random_batch(vit, 6)
    through = method.terms(batch)
    with torch.no_grad():
        features = vit.eval().encode_image(batch.images)
    towers = [vit.net.visual, *([method.initial.visual] if method.initial else [])]
    calls = []
    for tower in towers:
        tower.register_forward_hook(lambda *_: calls.append(1))
    cached = method.terms(Batch(features, batch.labels, batch.captions))
    assert not calls
    for name, value in through.items():
        torch.testing.assert_close(cached[name], value)


@settings(max_examples=25)
@given(st.integers(1, 9), st.floats(0.05, 5), st.integers(0, 2**40))
def test_mix__images_and_labels_are_mixed_alike_and_linearly(n, alpha, seed):
    """Image i is the i-th unit vector: what is mixed stands in it to be read."""
    images = torch.eye(n)[:, None, None, :].expand(n, 3, 1, n).contiguous()
    batch = Batch(images, torch.arange(n), torch.arange(n))
    mixed = mix(batch, alpha, torch.Generator().manual_seed(seed))
    assert 0 <= mixed.share <= 1
    assert sorted(mixed.mixed_with.tolist()) == list(range(n))
    assert torch.equal(mixed.labels, batch.labels)
    expected = mixed.share * torch.eye(n) + (1 - mixed.share) * torch.eye(n)[mixed.mixed_with]
    for channel in range(3):
        torch.testing.assert_close(mixed.images[:, channel, 0], expected)
    again = mix(batch, alpha, torch.Generator().manual_seed(seed))
    assert torch.equal(again.images, mixed.images)
    assert again.share == mixed.share


@pytest.mark.parametrize("alpha", [0.2, 4.0])
def test_mix__its_share_is_drawn_from_the_beta_distribution(alpha):
    batch = Batch(torch.zeros(2, 3, 1, 1), torch.arange(2), torch.arange(2))
    generator = torch.Generator().manual_seed(0)
    shares = [mix(batch, alpha, generator).share for _ in range(500)]
    assert scipy.stats.kstest(shares, scipy.stats.beta(alpha, alpha).cdf).pvalue > 0.01


def curve_of(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def test_run__with_options_logs_their_terms_and_a_stop_changes_no_bit(run_spec, home, tmp_path):
    spec = run_spec("finetune", train={"confidence": {"mixup_alpha": 1.0, "zero_shot_kd": 1.0}})
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    go(spec, alone)
    for line in curve_of(alone):
        expected = line["cross_entropy"] + line["zero_shot_distillation"]
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
    go_until(spec, stopped, at_step(2))
    (resumed,) = [r for r in go(spec, stopped) if r.kind == "resumed"]
    assert resumed.step == 3
    assert_equal_runs(stopped, alone)


def test_run__mixup_is_seen_by_the_first_step_and_drawn_from_the_seed(run_spec, home, tmp_path):
    """A hair more of α gives the same draw but for a hair: nothing else was drawn from."""
    first = {}
    for alpha in (0.0, 1.0, 1.00001):
        spec = run_spec("finetune", train={"epochs": 1, "confidence": {"mixup_alpha": alpha}})
        go(spec, tmp_path / str(alpha))
        first[alpha] = curve_of(tmp_path / str(alpha))[0]["cross_entropy"]
    assert first[1.0] != pytest.approx(first[0.0], rel=1e-3)
    assert first[1.00001] == pytest.approx(first[1.0], rel=1e-3)
