"""`train.adapt`: what of a model is trained, and that what is not stays bit for bit."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from calift_core.errors import CheckpointError, SpecError
from calift_core.methods import METHODS, Method, RunLength, finish_training, make_method
from calift_core.methods.teacher import average_into
from calift_core.methods.terms import orthogonality
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.models.finished import load_finished
from calift_core.models.loading import weights_sha256
from calift_core.schema.methods import METHOD_SPECS
from calift_core.schema.train import TrainSpec
from calift_core.training.checkpoint import load_state
from calift_core.training.loop import prepare_for_training
from calift_core.training.step import parameters_of
from tests.core.conftest import random_batch
from tests.core.jobs.test_job import assert_equal_runs, at_step, go, go_until, report_in
from tests.core.methods.test_methods import batches_of, loss_of, of_kind

ADAPTED = sorted(kind for kind in METHODS if "lora" in METHOD_SPECS[kind].adapts)
CONTRASTIVE = [kind for kind in ADAPTED if METHOD_SPECS[kind].family == "contrastive"]
#: Matrices of the tiny ViT that LoRA is laid over: four a block, and the projection.
IMAGE, TEXT = 2 * 4 + 1, 1 * 4 + 1


#: Of it, only how BatchNorm is put is asked.
PLAN: Any = SimpleNamespace(freeze_batch_norm=True, accumulation_steps=1)


def made(kind: str, clip: Clip, captions: Captions, adapt: str, **train: Any) -> Any:
    spec = TrainSpec.model_validate({"adapt": adapt, **train})
    length = RunLength(total_steps=20)
    return make_method(of_kind(kind), clip, captions, length=length, train=spec)


def take_steps(method: Method, n: int = 3) -> None:
    list(prepare_for_training(method, PLAN))
    parameters = [p for module in method.trainable().values() for p in module.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for step, batch in enumerate(batches_of(method.clip, n), start=1):
        loss_of(method, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step)


def features_of(clip: Clip, captions: Captions) -> tuple[torch.Tensor, torch.Tensor]:
    clip.eval()
    with torch.no_grad():
        return clip.encode_image(random_batch(clip).images), clip.encode_text(captions.tokens)


def frozen_tensors(clip: Clip) -> dict[str, torch.Tensor]:
    """Every tensor of the network that no optimiser owns, under its first name."""
    state = {
        name.replace("parametrizations.", "").removesuffix(".original"): tensor
        for name, tensor in clip.net.state_dict().items()
        if not name.endswith((".down", ".up"))
    }
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.mark.parametrize("kind", ADAPTED)
def test_lora__at_the_start_every_output_is_the_initial_models_bit_for_bit(clip, captions, kind):
    before = features_of(clip, captions)
    digest = weights_sha256(clip.net)
    method = made(kind, clip, captions, "lora")
    for one, other in zip(before, features_of(method.clip, captions), strict=True):
        assert torch.equal(one, other)
    finish_training(method)
    if kind != "averaged":  # whose mean of one iterate has been through an addition
        assert weights_sha256(clip.net) == digest


@pytest.mark.parametrize("kind", ADAPTED)
def test_lora__the_optimiser_owns_the_adapter_and_the_head_and_nothing_else_moves(
    vit, captions, kind
):
    contrastive = kind in CONTRASTIVE
    method = made(kind, vit, captions, "lora", lora_rank=2)
    before = frozen_tensors(vit)
    take_steps(method)
    moved = {name for name, tensor in frozen_tensors(vit).items() if (tensor != before[name]).any()}
    assert moved == ({"logit_scale"} if contrastive else set())
    assert len(method.adapter.factors) == IMAGE + (TEXT if contrastive else 0)
    for name, factor in method.adapter.factors.items():
        assert factor.up.abs().max() > 0, name
    owned = {id(p) for module in method.trainable().values() for p in module.parameters()}
    for name, parameter in vit.net.named_parameters():
        assert parameter.requires_grad == (id(parameter) in owned), name


@pytest.mark.parametrize("kind", ADAPTED)
def test_lora__merged_equals_unmerged_and_has_the_initial_models_names(clip, captions, kind):
    shapes = {name: t.shape for name, t in clip.net.state_dict().items()}
    method = made(kind, clip, captions, "lora")
    take_steps(method)
    before = features_of(clip, captions)
    method.adapter.merge()
    for one, other in zip(before, features_of(clip, captions), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert {name: t.shape for name, t in clip.net.state_dict().items()} == shapes


@pytest.mark.parametrize("kind", ADAPTED)
def test_head__moves_no_tensor_below_the_last_layer(clip, captions, kind):
    below = frozen_tensors(clip)
    method = made(kind, clip, captions, "head")
    take_steps(method)
    finish_training(method)
    after = clip.net.state_dict()
    moved = {name for name, tensor in after.items() if (tensor != below[name]).any()}
    if kind not in CONTRASTIVE:
        assert moved == set()
        return
    allowed = {"logit_scale", "text_projection", "visual.proj", "visual.attnpool.c_proj.weight"}
    if kind == "averaged":  # the frozen ones have been averaged with themselves
        for name in moved - allowed:
            torch.testing.assert_close(after[name], below[name])
    else:
        assert moved <= allowed
    assert {"logit_scale", "text_projection"} <= moved


@pytest.mark.parametrize("adapt", ["lora", "head"])
def test_carot__l_oc_is_of_the_adapted_projection_and_pulls_at_what_is_trained(
    vit, captions, adapt
):
    method = made("carot", vit, captions, adapt)
    take_steps(method)
    weight = vit.image_projection()
    term = method.terms(random_batch(vit))["orthogonality"]
    torch.testing.assert_close(term, orthogonality(weight, "norm"))
    term.backward()
    pulled = {n for n, p in vit.net.named_parameters() if p.grad is not None and p.grad.any()}
    if adapt == "head":
        assert pulled == {"visual.proj"}
    else:
        assert pulled == {f"visual.parametrizations.proj.0.{side}" for side in ("up", "down")}


def test_teacher__averages_the_adapted_matrices_not_the_factors(vit, captions):
    adapted, merged = copy.deepcopy(vit), copy.deepcopy(vit)
    method = made("carot", vit, captions, "lora")
    take_steps(method)
    average_into(adapted, vit, 0.25, buffer_share=1.0)
    method.adapter.merge()
    average_into(merged, vit, 0.25, buffer_share=1.0)
    for one, two in zip(adapted.net.parameters(), merged.net.parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-7, rtol=0)


def test_run__adapted_then_stopped_then_gone_on_with_is_a_run_left_alone(run_spec, tmp_path):
    spec = run_spec("carot", train={"adapt": "lora", "checkpoint_every_steps": 2, "lora_rank": 2})
    go(spec, tmp_path / "whole")
    go_until(spec, tmp_path / "parts", at_step(5))
    go(spec, tmp_path / "parts")
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    resolved = report_in(tmp_path / "whole").resolved
    clip, _, _ = load_finished(tmp_path / "whole")  # plain weights, like those of any run
    assert 0 < resolved["trained_parameters"] < sum(p.numel() for p in clip.net.parameters()) / 4


def test_run__its_checkpoint_holds_the_adapter_alone_and_refuses_another_model_below_it(
    run_spec, tmp_path, vit
):
    weights = tmp_path / "start.pt"
    torch.save(vit.net.state_dict(), weights)
    model = {"name": run_spec("flyp").model.name, "pretrained": str(weights)}
    spec = run_spec("flyp", train={"adapt": "lora", "checkpoint_every_steps": 1}, model=model)
    go_until(spec, tmp_path / "run", at_step(2))
    (step,) = (tmp_path / "run" / "checkpoint" / "steps").iterdir()
    assert set(load_state(step).modules) == {"adapter"}
    with torch.no_grad():
        vit.net.visual.class_embedding.add_(1)
    torch.save(vit.net.state_dict(), weights)
    with pytest.raises(CheckpointError, match="other weights"):
        go(spec, tmp_path / "run")


@pytest.mark.parametrize("kind", ["flyp", "finetune"])
def test_estimate__lora_trains_fewer_numbers_than_full_and_head_fewer_still(vit, captions, kind):
    counts = [
        parameters_of(made(kind, copy.deepcopy(vit), captions, adapt, lora_rank=1))
        for adapt in ("full", "lora", "head")
    ]
    assert counts[0] > 4 * counts[1]
    assert counts[1] != counts[2]


def test_spec__adapt_is_refused_where_there_is_nothing_to_choose(run_spec):
    for kind, reason in {
        "zero_shot": "it trains nothing",
        "linear_probe": "towers that stay",
        "pretrain": "random weights",
    }.items():
        with pytest.raises(SpecError, match=reason):
            run_spec(kind, train={"adapt": "lora"})


def test_wise_ft__of_an_adapted_run_ends_at_its_merged_weights(run_spec, tmp_path):
    go(run_spec("finetune", train={"adapt": "lora", "epochs": 1}), tmp_path / "run")
    options = {"run": str(tmp_path / "run"), "alpha": 1.0, "sweep": [0.0, 1.0]}
    go(run_spec("wise_ft", method=options), tmp_path / "path")
    ends = [load_finished(tmp_path / name)[0].net.state_dict() for name in ("run", "path")]
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[0].items():
        assert torch.equal(tensor, ends[1][name]), name
    zero, one = report_in(tmp_path / "path").frontier or ()
    assert one.id_nll == pytest.approx(report_in(tmp_path / "run").evaluations[0].nll, rel=1e-4)
    assert zero.id_nll != one.id_nll
