"""The loop: bit-exact repetition and resumption, accumulation, faults, full disks."""

import copy
import errno
import itertools
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from calift_core.data.images import ImageSet
from calift_core.data.loader import Normalise, TrainView, train_batches
from calift_core.data.ranks import ALONE
from calift_core.data.sources import ArraySource
from calift_core.errors import (
    CheckpointError,
    DiskFullError,
    InterruptedRunError,
    ModelError,
    NanLossError,
    StorageError,
)
from calift_core.methods import Batch, RunLength, make_method
from calift_core.methods.confidence import mix
from calift_core.models.clip import Clip
from calift_core.models.loading import load_clip, weights_sha256
from calift_core.schema.methods import METHOD_SPECS, CaRot, FineTune
from calift_core.schema.records import MetricsRecord
from calift_core.training.checkpoint import TrainState, load_state, newest_state, save_state
from calift_core.training.loop import _restore, train
from calift_core.training.plan import TrainingPlan
from calift_core.training.step import make_optimizer
from tests.core.conftest import VIT
from tests.support.disks import small_disk

CPU = torch.device("cpu")
SPEC_SHA = "a" * 64


def plan(**changes: Any) -> TrainingPlan:
    base = TrainingPlan(
        total_steps=8, steps_per_epoch=4, lr=1e-3, min_lr=0.0, weight_decay=0.1,
        betas=(0.9, 0.999), eps=1e-8, warmup_steps=2, clip_grad_norm=1.0, accumulation_steps=1,
        precision="fp32", log_every_steps=1, checkpoint_every_steps=4, keep_checkpoints=1,
        spec_sha256=SPEC_SHA,
    )  # fmt: skip
    return replace(base, **changes)


def view_for(clip: Clip, n: int = 32, seed: int = 0) -> TrainView:
    """Images whose colour tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    pixels = torch.randint(0, 90, (n, 18, 18, 3), generator=generator)
    pixels[torch.arange(n), :, :, labels] += 150
    images = ImageSet(
        "train",
        ArraySource(pixels.to(torch.uint8).numpy(), "k"),
        tuple(map(str, range(n))),
        labels.numpy(),
        torch.arange(n).numpy(),
    )
    return TrainView(images, clip.preprocess, 3, seed, (0.6, 1.0), True)


class Run:
    """A method, its batches and where it trains."""

    def __init__(self, spec, clip, captions, folder, *, the_plan=None, workers=0):
        self.plan = the_plan or plan()
        self.clip = copy.deepcopy(clip)
        length = RunLength(total_steps=self.plan.total_steps)
        self.method = make_method(spec, self.clip, captions, length=length)
        self.folder = folder
        self.view = view_for(clip)
        self.workers = workers
        self.records = []

    def batches(self, start: int) -> Iterator[Batch]:
        return train_batches(
            self.view,
            batch_size=8,
            start_step=start,
            total_steps=self.plan.total_steps,
            workers=self.workers,
            normalise=Normalise(self.clip.mean, self.clip.std, CPU),
        )

    def go(self, *, stop=lambda: False, batches=None, **options):
        torch.manual_seed(0)
        state, problems = newest_state(self.folder / "checkpoint", spec_sha256=SPEC_SHA)
        assert not problems
        for record in train(
            self.method,
            batches or self.batches,
            self.plan,
            device=CPU,
            folder=self.folder,
            resume=state,
            stop=stop,
            **options,
        ):
            self.records.append(record)
        return self

    def metrics(self) -> list[MetricsRecord]:
        return [r for r in self.records if isinstance(r, MetricsRecord)]

    def losses(self) -> list[float]:
        return [m.values["loss"] for m in self.metrics()]

    def digest(self) -> str:
        state = {f"m/{k}": v for k, v in self.method.state().items()}
        for name, module in self.method.trainable().items():
            state |= {f"{name}/{k}": v for k, v in module.state_dict().items()}
        holder = nn.Module()
        for index, key in enumerate(sorted(state)):
            holder.register_buffer(f"b{index}", state[key])
        return weights_sha256(holder)


def stop_at(*steps: int) -> Callable[[], bool]:
    """`stop` is asked once a step."""
    requested = itertools.count(1)
    return lambda: next(requested) in steps


CAROT = CaRot(teacher_update_every=3, lambda_x=0.05)


@pytest.mark.parametrize(
    ("kind", "tower"), [("carot", "vit"), ("carot", "resnet"), ("lipsum_ft", "vit")]
)
def test_train__a_method_learns_and_repeats_itself_bit_for_bit(
    originals, captions, tmp_path, kind, tower
):
    clip = copy.deepcopy(originals[tower])
    spec = METHOD_SPECS[kind]()
    long = plan(total_steps=12, checkpoint_every_steps=100)
    first = Run(spec, clip, captions, tmp_path / "a", the_plan=long).go()
    second = Run(spec, clip, captions, tmp_path / "b", the_plan=long).go()
    losses = first.losses()
    assert len(losses) == 12
    assert sum(losses[-4:]) < sum(losses[:4])
    assert first.metrics() == second.metrics()
    assert first.digest() == second.digest()
    main = "cross_entropy" if spec.family == "supervised" else "contrastive"
    assert set(first.metrics()[0].values) >= {"loss", "lr", "logit_scale", main}


def test_train__loader_processes_change_no_bit_and_the_loss_is_the_weighted_sum_of_its_terms(
    vit, captions, tmp_path
):
    plain = Run(CAROT, vit, captions, tmp_path / "a").go()
    spread = Run(CAROT, vit, captions, tmp_path / "b", workers=2).go()
    assert spread.digest() == plain.digest()
    weights = {"contrastive": 1, "orthogonality": 0.2, "distillation": 1.5, "cross_tower": 0.05}
    for metrics in plain.metrics():
        v = metrics.values
        expected = sum(weight * v[name] for name, weight in weights.items())
        assert v["loss"] == pytest.approx(expected, rel=1e-5)
        assert v["grad_norm"] > 0
    free = Run(CAROT, vit, captions, tmp_path / "c", the_plan=plan(clip_grad_norm=None)).go()
    assert all("grad_norm" not in m.values for m in free.metrics())


def test_train__weight_decay_reaches_every_parameter(vit, captions, tmp_path):
    """With a rate of 0.1, decay 0.5 and no gradient to speak of, everything shrinks by 5 %."""
    run = Run(FineTune(), vit, captions, tmp_path, the_plan=plan(total_steps=1, warmup_steps=0))
    run.plan = replace(run.plan, lr=0.1, weight_decay=0.5, eps=1e12, steps_per_epoch=1)
    before = {k: v.clone() for k, v in run.method.trainable()["visual"].state_dict().items()}
    run.go()
    for name, parameter in run.method.trainable()["visual"].named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * 0.95)


def test_train__asks_for_the_epochs_end_after_each_epoch(vit, captions, tmp_path):
    seen = []

    def at_end(step):
        seen.append(step)
        vit.eval()
        return []

    run = Run(FineTune(), vit, captions, tmp_path).go(at_epoch_end=at_end)
    assert seen == [4, 8]
    assert run.clip.training


METHODS_TO_STOP = {"carot": CAROT, "finetune": FineTune(head_scale="learned")}


@pytest.mark.parametrize(
    ("tower", "kind", "stops"),
    [("vit", "carot", (2, 3)), ("vit", "finetune", (3,)), ("resnet", "carot", (5,))],
)
def test_resume__ends_where_a_run_left_alone_ends_bit_for_bit(
    originals, captions, tmp_path, tower, kind, stops
):
    spec, clip = METHODS_TO_STOP[kind], originals[tower]
    whole = Run(spec, clip, captions, tmp_path / "whole").go()
    metrics = []
    for stop in stops:
        run = Run(spec, clip, captions, tmp_path / "stopped")
        with pytest.raises(InterruptedRunError, match="its checkpoint is saved"):
            run.go(stop=stop_at(stop))
        metrics += run.metrics()
    last = Run(spec, clip, captions, tmp_path / "stopped").go()
    assert last.records[0].kind == "resumed"
    assert last.records[0].step == sum(stops)
    assert metrics + last.metrics() == whole.metrics()
    assert last.digest() == whole.digest()


def test_resume__a_stop_adds_nothing_to_curves_that_are_logged_seldom(vit, captions, tmp_path):
    seldom = plan(log_every_steps=3, checkpoint_every_steps=100)
    whole = Run(CAROT, vit, captions, tmp_path / "whole", the_plan=seldom).go()
    first = Run(CAROT, vit, captions, tmp_path / "stopped", the_plan=seldom)
    with pytest.raises(InterruptedRunError):
        first.go(stop=stop_at(4))
    second = Run(CAROT, vit, captions, tmp_path / "stopped", the_plan=seldom).go()
    assert [m.step for m in whole.metrics()] == [3, 6, 8]
    assert first.metrics() + second.metrics() == whole.metrics()


def test_resume__dropout_goes_on_where_it_was(configs, captions, tmp_path):
    vision = {**VIT["vision_cfg"], "patch_dropout": 0.5}
    path = tmp_path / "dropout.json"
    path.write_text(json.dumps({**VIT, "vision_cfg": vision}))
    clip = load_clip(str(path), None, generator=torch.Generator().manual_seed(1))
    whole = Run(CAROT, clip, captions, tmp_path / "whole").go()
    other_seed = Run(CAROT, clip, captions, tmp_path / "other")
    with pytest.raises(InterruptedRunError):
        Run(CAROT, clip, captions, tmp_path / "stopped").go(stop=stop_at(3))
    assert Run(CAROT, clip, captions, tmp_path / "stopped").go().digest() == whole.digest()
    other_seed.view = view_for(clip, seed=1)
    assert other_seed.go().digest() != whole.digest()


def test_resume__a_stop_at_the_last_step_is_an_end_after_which_nothing_is_trained(
    vit, captions, tmp_path
):
    whole = Run(CAROT, vit, captions, tmp_path).go(stop=stop_at(8))
    assert whole.metrics()[-1].step == 8
    again = Run(CAROT, vit, captions, tmp_path).go()
    assert [r.kind for r in again.records] == ["resumed"]
    assert again.digest() == whole.digest()


def test_checkpoints__are_kept_as_many_as_asked(vit, captions, tmp_path):
    often = plan(checkpoint_every_steps=2, keep_checkpoints=2)
    run = Run(FineTune(), vit, captions, tmp_path, the_plan=often).go()
    assert [r.step for r in run.records if r.kind == "checkpoint"] == [2, 4, 6, 8]
    steps = tmp_path / "checkpoint" / "steps"
    assert sorted(p.name for p in steps.iterdir()) == ["00000006", "00000008"]
    for record in run.records:
        if record.kind == "checkpoint" and record.step == 8:
            assert (tmp_path / record.path).is_dir()
            assert record.size_bytes > 1000


def test_accumulation__of_a_loss_per_sample_equals_the_whole_batch(vit, captions, tmp_path):
    """Three parts of eight samples are 3, 3 and 2: each must count by its size."""
    # With this ε a step is in proportion to the gradient: none of rounding noise is a step of 1.
    whole = Run(FineTune(), vit, captions, tmp_path / "a", the_plan=plan(eps=0.01)).go()
    cut = plan(eps=0.01, accumulation_steps=3)
    split = Run(FineTune(), vit, captions, tmp_path / "b", the_plan=cut).go()
    assert split.losses() == pytest.approx(whole.losses(), rel=1e-5)
    for name, module in whole.method.trainable().items():
        other = split.method.trainable()[name]
        for a, b in zip(module.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_accumulation__more_parts_than_samples_in_a_short_batch_still_count_to_one(
    vit, captions, tmp_path
):
    def short(start):
        for batch in Run(FineTune(), vit, captions, tmp_path).batches(start):
            yield Batch(batch.images[:3], batch.labels[:3], batch.captions[:3])

    whole = Run(FineTune(), vit, captions, tmp_path / "a").go(batches=short)
    four = plan(accumulation_steps=4)
    split = Run(FineTune(), vit, captions, tmp_path / "b", the_plan=four).go(batches=short)
    assert split.losses() == pytest.approx(whole.losses(), rel=1e-3)


def test_accumulation__terms_of_the_weights_count_once(vit, captions, tmp_path):
    only = plan(total_steps=1, accumulation_steps=2)
    split = Run(CAROT, vit, captions, tmp_path / "a", the_plan=only).go()
    whole = Run(CAROT, vit, captions, tmp_path / "b", the_plan=plan(total_steps=1)).go()
    for name in ("orthogonality", "cross_tower"):
        assert split.metrics()[0].values[name] == pytest.approx(
            whole.metrics()[0].values[name], rel=1e-5
        )


def poisoned(run: Run, at: int) -> Callable[[int], Iterator[Batch]]:
    def batches(start):
        for step, batch in enumerate(run.batches(start), start=start + 1):
            bad = batch.images.clone()
            bad[0] = float("nan")
            yield replace(batch, images=bad) if step == at else batch

    return batches


@pytest.mark.parametrize("log_every", [1, 100])
def test_nan__is_an_error_and_never_saved(vit, captions, tmp_path, log_every):
    seldom = plan(log_every_steps=log_every, clip_grad_norm=None)
    run = Run(CAROT, vit, captions, tmp_path, the_plan=seldom)
    with pytest.raises(NanLossError, match=r"at step .* not finite: loss = nan") as caught:
        run.go(batches=poisoned(run, at=6))
    assert "learning rate" in caught.value.hint
    state, problems = newest_state(tmp_path / "checkpoint", spec_sha256=SPEC_SHA)
    assert not problems
    assert state.step == 4
    for tensors in state.modules.values():
        assert all(t.isfinite().all() for t in tensors.values())
    again = Run(CAROT, vit, captions, tmp_path, the_plan=seldom).go()
    whole = Run(CAROT, vit, captions, tmp_path / "whole", the_plan=seldom).go()
    assert again.digest() == whole.digest()


def test_nan__in_the_weights_after_a_finite_loss_is_not_saved(vit, captions, tmp_path):
    """A gradient can overflow where the loss does not; here a hook stands for that."""
    run = Run(FineTune(), vit, captions, tmp_path, the_plan=plan(clip_grad_norm=None))
    backward = itertools.count(1)

    def overflow(gradient):
        return gradient * (float("inf") if next(backward) == 4 else 1)

    run.clip.net.visual.proj.register_hook(overflow)
    with pytest.raises(NanLossError, match="after step 4 the weights of proj are not finite"):
        run.go()
    assert not (tmp_path / "checkpoint").exists()


def state_of(step: int = 3, n: int = 1000) -> TrainState:
    net = nn.Linear(n, 2)
    optimizer = torch.optim.AdamW(net.parameters(), betas=(0.9, 0.98))
    net(torch.randn(1, n)).sum().backward()
    optimizer.step()
    return TrainState(
        step=step,
        spec_sha256=SPEC_SHA,
        modules={"net": dict(net.state_dict())},
        method={"teacher": torch.arange(3)},
        optimizer=optimizer.state_dict(),
        model_config={},
        rng={"cpu": torch.get_rng_state()},
    )


def test_checkpoint__reads_back_every_tensor_and_setting_and_holds_nothing_pickled(tmp_path):
    state = state_of()
    again = load_state(save_state(tmp_path, state, keep=1))
    assert again.step == 3
    for key, tensor in state.modules["net"].items():
        assert torch.equal(again.modules["net"][key], tensor)
    assert torch.equal(again.method["teacher"], state.method["teacher"])
    assert torch.equal(again.rng["cpu"], state.rng["cpu"])
    for index, entry in state.optimizer["state"].items():
        for key, value in entry.items():
            assert torch.equal(again.optimizer["state"][index][key], torch.as_tensor(value))
    (group,) = again.optimizer["param_groups"]
    assert tuple(group["betas"]) == (0.9, 0.98)
    folder = save_state(tmp_path, state_of(), keep=1)
    assert {p.suffix for p in folder.iterdir()} == {".safetensors", ".json"}
    for path in folder.glob("*.safetensors"):
        load_file(path)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_checkpoint__any_changed_byte_is_noticed(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damage")
    path = save_state(folder, state_of(n=4), keep=1)
    victim = data.draw(st.sampled_from(sorted(p.name for p in path.iterdir())))
    content = bytearray((path / victim).read_bytes())
    # Nothing is lost with the manifest's last newline: it still names and hashes every file.
    at = data.draw(st.integers(0, len(content) - (2 if victim == "manifest.json" else 1)))
    if data.draw(st.booleans()):
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        content = content[:at]
    (path / victim).write_bytes(content)
    with pytest.raises(CheckpointError):
        load_state(path)
    assert newest_state(folder, spec_sha256=SPEC_SHA)[0] is None


def test_checkpoint__a_missing_file_and_a_manifest_of_another_kind_are_damage(tmp_path):
    path = save_state(tmp_path, state_of(), keep=1)
    (path / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00000003 cannot be read.*optimizer\.safetensors"):
        load_state(path)
    for text in ("", "[]", "null", "3", '{"model.safetensors": 1}', "{}"):
        (path / "manifest.json").write_text(text)
        with pytest.raises(CheckpointError):
            load_state(path)


def test_newest__half_a_checkpoint_of_a_killed_process_is_not_looked_at(tmp_path):
    path = save_state(tmp_path, state_of(2), keep=1)
    shutil.copytree(path, path.with_name(".00000004.tmp"))
    state, problems = newest_state(tmp_path, spec_sha256=SPEC_SHA)
    assert state.step == 2
    assert not problems
    save_state(tmp_path, state_of(4), keep=1)
    assert sorted(p.name for p in path.parent.iterdir()) == ["00000004"]


def test_disk_full__is_an_error_and_the_earlier_checkpoint_stays(tmp_path):
    with small_disk(tmp_path / "disk", mib=12) as disk:  # for one checkpoint of 8 MB, not two
        first = state_of(1, n=350_000)  # 2.8 MB of weights, twice that of moments
        save_state(disk, first, keep=1)
        with pytest.raises(DiskFullError, match="no space is left") as caught:
            save_state(disk, state_of(2, n=350_000), keep=1)
        assert caught.value.code == "DISK_FULL"
        state, problems = newest_state(disk, spec_sha256=SPEC_SHA)
        assert not problems
        assert torch.equal(state.modules["net"]["weight"], first.modules["net"]["weight"])
        assert [p.name for p in (disk / "steps").iterdir()] == ["00000001"]
        del state  # it maps the files, whose space is free only when nobody does
        shutil.rmtree(disk / "steps" / "00000001")
        save_state(disk, state_of(2, n=350_000), keep=1)


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError),
                          (errno.EIO, StorageError)],
)  # fmt: skip
def test_no_tensor_file__an_error_of_the_disk_is_an_error_too(tmp_path, monkeypatch, number, error):
    save_state(tmp_path, state_of(1), keep=1)
    write_text = Path.write_text

    def refuse(path, *args, **kwargs):
        if path.name == "state.json":
            raise OSError(number, os.strerror(number))
        return write_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(error, match="checkpoint of step 2") as caught:
        save_state(tmp_path, state_of(2), keep=1)
    assert isinstance(caught.value, DiskFullError) == (error is DiskFullError)
    assert [p.name for p in (tmp_path / "steps").iterdir()] == ["00000001"]


def test_file_size_limit__is_a_storage_error_and_the_earlier_checkpoint_stays(tmp_path):
    save_state(tmp_path, state_of(1), keep=1)
    larger = state_of(2, n=50_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match="cannot write model.safetensors") as caught:
            save_state(tmp_path, larger, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.strerror(errno.EFBIG) in str(caught.value)
    state, problems = newest_state(tmp_path, spec_sha256=SPEC_SHA)
    assert not problems
    assert state.step == 1
    assert [p.name for p in (tmp_path / "steps").iterdir()] == ["00000001"]


def test_save_state__a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "steps").write_text("a file in the way")
    with pytest.raises(StorageError, match="cannot write the checkpoint of step 3"):
        save_state(tmp_path, state_of(), keep=1)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_train__in_half_precision_learns(vit, captions, tmp_path, precision):
    half = plan(total_steps=16, precision=precision)
    losses = Run(CAROT, vit, captions, tmp_path, the_plan=half).go().losses()
    assert sum(losses[-4:]) < sum(losses[:4])


def test_train__a_step_that_overflows_in_fp16_is_skipped_and_the_run_goes_on(
    vit, captions, tmp_path
):
    run = Run(FineTune(), vit, captions, tmp_path, the_plan=plan(precision="fp16"))
    backward = itertools.count(1)
    run.clip.net.visual.proj.register_hook(
        lambda gradient: gradient * (float("inf") if next(backward) == 4 else 1)
    )
    metrics = run.go().metrics()
    skipped = [m.step for m in metrics if "grad_norm" not in m.values]
    assert 4 in skipped  # and those in which the scaler came down to its scale
    assert len(skipped) < 8
    assert torch.tensor(run.losses()).isfinite().all()


def test_resume__of_fp16_takes_the_scaler_along(vit, captions, tmp_path):
    half = plan(precision="fp16")
    whole = Run(CAROT, vit, captions, tmp_path / "whole", the_plan=half).go()
    with pytest.raises(InterruptedRunError):
        Run(CAROT, vit, captions, tmp_path / "stopped", the_plan=half).go(stop=stop_at(3))
    again = Run(CAROT, vit, captions, tmp_path / "stopped", the_plan=half).go()
    assert again.digest() == whole.digest()


def test_clip__an_infinite_gradient_in_full_precision_is_an_error(vit, captions, tmp_path):
    run = Run(FineTune(), vit, captions, tmp_path)
    run.clip.net.visual.proj.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NanLossError, match="at step 1 these are not finite: grad_norm"):
        run.go()


def running_statistics(clip: Clip) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in clip.net.named_buffers() if "running_" in name}


@pytest.mark.parametrize("tower", ["resnet", "timm"])
def test_batch_norm__frozen_statistics_keep_every_bit_while_the_weights_move(
    originals, captions, tmp_path, tower
):
    before = running_statistics(originals[tower])
    assert before
    still = plan(freeze_batch_norm=True)
    # FT trains the image tower of any model; the epoch's end leaves everything in training mode.
    run = Run(FineTune(), originals[tower], captions, tmp_path / "a", the_plan=still)
    run.go(at_epoch_end=lambda step: run.clip.train() and ())
    after = running_statistics(run.clip)
    assert all(torch.equal(after[name], before[name]) for name in before)
    weights = dict(run.clip.net.visual.named_parameters())
    moved = dict(originals[tower].net.visual.named_parameters())
    assert any(not torch.equal(weights[name], moved[name]) for name in weights)
    usual = Run(FineTune(), originals[tower], captions, tmp_path / "b").go()
    moving = running_statistics(usual.clip)
    assert all(not torch.equal(moving[name], before[name]) for name in before if "var" in name)


def test_batch_norm__frozen_changes_no_bit_of_a_tower_without_it(vit, captions, tmp_path):
    still = Run(CAROT, vit, captions, tmp_path / "a", the_plan=plan(freeze_batch_norm=True)).go()
    usual = Run(CAROT, vit, captions, tmp_path / "b").go()
    assert still.metrics() == usual.metrics()
    assert still.digest() == usual.digest()


def test_channels_last__is_for_convolutions_and_changes_no_more_than_rounding(originals):
    assert not originals["vit"].channels_last
    for tower in ("resnet", "timm"):
        fast = copy.deepcopy(originals[tower]).double().train()
        assert fast.channels_last
        plain = copy.deepcopy(fast)
        plain.channels_last = False
        for parameter in plain.net.visual.parameters():
            parameter.data = parameter.data.contiguous()
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
        last = images.contiguous(memory_format=torch.channels_last)
        for clip, shown in ((fast, last), (plain, images)):
            clip.net.encode_image(shown).square().mean().backward()
        for (name, one), other in zip(
            fast.net.visual.named_parameters(), plain.net.visual.parameters(), strict=True
        ):
            assert one.grad is not None, name
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-9)


def test_resume__moments_get_back_the_strides_of_their_weights(resnet, captions, tmp_path):
    """AdamW's fused form walks weights, gradients and moments in the order of their memory."""
    with pytest.raises(InterruptedRunError):
        Run(FineTune(), resnet, captions, tmp_path).go(stop=stop_at(2))
    state, _ = newest_state(tmp_path / "checkpoint", spec_sha256=SPEC_SHA)
    assert state is not None
    again = Run(FineTune(), resnet, captions, tmp_path)
    optimizer = make_optimizer(again.method, again.plan)
    _restore(again.method, optimizer, torch.amp.GradScaler("cpu", enabled=False), state, ALONE)
    kernels = 0
    for parameter, values in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            assert values[name].stride() == parameter.stride()
        kernels += parameter.ndim == 4 and not parameter.is_contiguous()
    assert kernels > 0


def test_restore__a_state_of_another_make_of_the_method_is_refused_in_a_sentence(
    vit, captions, tmp_path
):
    with pytest.raises(InterruptedRunError):
        Run(FineTune(), vit, captions, tmp_path).go(stop=stop_at(2))
    state, _ = newest_state(tmp_path / "checkpoint", spec_sha256=SPEC_SHA)
    del state.modules["head"]["bias"]
    again = Run(FineTune(), vit, captions, tmp_path / "b")
    optimizer = make_optimizer(again.method, again.plan)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    with pytest.raises(CheckpointError, match="step 2 does not fit.*bias") as caught:
        _restore(again.method, optimizer, scaler, state, ALONE)
    assert "new folder" in caught.value.hint


def test_accumulation__of_mixed_images_keeps_what_they_are_mixed_with(vit, captions, tmp_path):
    def mixed(start):
        for step, batch in enumerate(Run(FineTune(), vit, captions, tmp_path).batches(start)):
            yield mix(batch, 1.0, torch.Generator().manual_seed(step))

    whole = Run(FineTune(), vit, captions, tmp_path / "a", the_plan=plan(eps=0.01))
    halves = plan(eps=0.01, accumulation_steps=2)
    split = Run(FineTune(), vit, captions, tmp_path / "b", the_plan=halves)
    assert split.go(batches=mixed).losses() == pytest.approx(
        whole.go(batches=mixed).losses(), rel=1e-5
    )


#: What PyTorch warns itself of while it compiles.
OWN_WARNINGS = (
    "ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",
)


@pytest.mark.filterwarnings(*OWN_WARNINGS)
def test_compile__changes_neither_the_weights_names_nor_the_losses(vit, captions, tmp_path):
    """With a back end that traces, but writes no C++: that takes long."""
    short = plan(total_steps=3, checkpoint_every_steps=100)
    usual = Run(CAROT, vit, captions, tmp_path / "a", the_plan=short)
    fast = Run(CAROT, vit, captions, tmp_path / "b", the_plan=short)
    fast.clip.compile_towers(backend="eager")
    length = RunLength(total_steps=3)
    fast.method = make_method(CAROT, fast.clip, captions, length=length)
    assert fast.method.teacher.clip.compiled_with == "eager"
    assert list(fast.clip.net.state_dict()) == list(usual.clip.net.state_dict())
    assert fast.go().losses() == pytest.approx(usual.go().losses(), rel=1e-4)


@pytest.mark.thorough
@pytest.mark.filterwarnings(*OWN_WARNINGS)
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler (g++) on this machine")
def test_compile__with_the_real_compiler_encodes_the_same(tmp_path):
    vision = {**VIT["vision_cfg"], "layers": 1}
    path = tmp_path / "one_layer.json"
    path.write_text(json.dumps({**VIT, "vision_cfg": vision}))
    clip = load_clip(str(path), None, generator=torch.Generator().manual_seed(1)).eval()
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = clip.encode_image(images)
        clip.compile_towers()
        torch.testing.assert_close(clip.encode_image(images), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings(*OWN_WARNINGS)
def test_compile__without_a_compiler_is_refused_in_a_sentence(vit):
    import torch._inductor.config as settings_of_inductor

    torch.compiler.reset()
    absent = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with (
        settings_of_inductor.patch(absent),
        pytest.raises(ModelError, match="cannot be compiled for cpu on this machine") as caught,
    ):
        vit.compile_towers()
    assert "C++ compiler" in caught.value.hint
    assert vit.compiled_with is None
    assert vit.net.visual._compiled_call_impl is None
