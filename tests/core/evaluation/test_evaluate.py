"""Evaluation at scale: one pass for many models, heads made once, and no way of ending it counts.

A stopped or killed evaluation, gone on with, must leave the very bytes of one left alone.
"""

import copy
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from calift_core.calibration import CALIBRATORS, accuracy, score_probs, softmax
from calift_core.data.images import ImageSet
from calift_core.data.loader import Normalise, eval_batches
from calift_core.data.noise import perturbed
from calift_core.data.preprocess import Preprocess
from calift_core.data.sources import ArraySource
from calift_core.data.suites.load import load_suite
from calift_core.errors import CheckpointError, InterruptedRunError, ModelError, SpecError
from calift_core.evaluation import evaluate as evaluate_module
from calift_core.evaluation import noise_levels, progress
from calift_core.evaluation import path as weight_path
from calift_core.evaluation.forward import ForwardSettings, PlacedModel, forward_all, predict
from calift_core.evaluation.partial import EVALUATING, Shards, adopt_shards
from calift_core.evaluation.spectrum import Covariance
from calift_core.evaluation.subjects import (
    TowerSwitcher,
    load_like,
    load_trained,
    name_of,
    run_folder_of,
)
from calift_core.jobs.evaluate import Evaluated, evaluate_finished, evaluate_many
from calift_core.jobs.folder import run_in_folder
from calift_core.methods.base import zero_shot_classifier
from calift_core.models import zeroshot_cache
from calift_core.models.captions import Captions
from calift_core.models.clip import Clip
from calift_core.models.finished import load_finished
from calift_core.models.loading import weights_sha256
from calift_core.models.zeroshot import zero_shot_weights
from calift_core.predictions.read import read_predictions
from calift_core.schema.records import ProgressRecord, Record
from calift_core.schema.report import Report
from calift_core.schema.spec import RunSpec
from tests.core.conftest import PHOTO

CPU = torch.device("cpu")
few = settings(max_examples=25)


def images_of(n: int = 10, *, side: int = 20, name: str = "made") -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    ids = tuple(f"i{i}" for i in range(n))
    return ImageSet(name, ArraySource(pixels, "k"), ids, np.arange(n) % 3, np.arange(n))


@pytest.fixture
def decoded(monkeypatch):
    """How many images of each set were asked for, while the test runs."""
    seen = {}
    read = ImageSet.image

    def counted(self, index):
        seen[self.name] = seen.get(self.name, 0) + 1
        return read(self, index)

    monkeypatch.setattr(ImageSet, "image", counted)
    return seen


@pytest.fixture
def encoded(monkeypatch):
    """How many prompts each call of `encode_text` had, while the test runs."""
    calls = []
    encode = Clip.encode_text

    def counted(self, tokens):
        calls.append(len(tokens))
        return encode(self, tokens)

    monkeypatch.setattr(Clip, "encode_text", counted)
    return calls


@pytest.mark.parametrize("start", [0, 4, 8, 10])
def test_eval_batches__from_a_start_on_are_the_tail_of_all(start):
    normalise = Normalise((0.5,) * 3, (0.5,) * 3, CPU)
    options = {"preprocess": Preprocess(8), "batch_size": 4, "workers": 0, "normalise": normalise}
    whole = list(eval_batches(images_of(), **options))
    tail = list(eval_batches(images_of(), start=start, **options))
    assert len(tail) == len(whole) - -(-start // 4)
    for one, other in zip(tail, whole[-(-start // 4) :], strict=True):
        assert torch.equal(one, other)


def test_normalise__channels_last_changes_the_layout_and_no_value():
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    plain = Normalise((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), CPU)(pixels)
    last = Normalise((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), CPU, channels_last=True)(pixels)
    assert torch.equal(plain, last)
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)


def shaken(clip: Clip, seed: int) -> Clip:
    """Another model of the same architecture."""
    other = copy.deepcopy(clip)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.net.visual.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return other.eval()


SETTINGS = ForwardSettings(batch_size=4, workers=0, device=CPU, precision="fp32")


def placed(clip: Clip, captions: Captions) -> PlacedModel:
    return PlacedModel(lambda: clip, zero_shot_classifier(clip, captions))


def one_pass(models: list[PlacedModel], images: ImageSet, **options: Any) -> list[np.ndarray]:
    """Logits of each model; batches must come in the set's order."""
    parts = [[] for _ in models]
    ends = list(options.get("starts") or [0] * len(models))
    for batch in forward_all(models, images, SETTINGS, **options):
        assert batch.start == ends[batch.model]
        ends[batch.model] += len(batch.logits)
        parts[batch.model].append(batch.logits)
    assert ends == [len(images)] * len(models)
    return [np.concatenate(p) if p else np.zeros((0, 3), np.float32) for p in parts]


def test_forward_all__many_models_give_what_each_gives_alone_and_decode_once(
    vit, captions, decoded
):
    models = [placed(shaken(vit, seed), captions) for seed in range(4)]
    together = one_pass(models, images_of())
    assert decoded == {"made": 10}
    for model, logits in zip(models, together, strict=True):
        np.testing.assert_array_equal(one_pass([model], images_of())[0], logits)
    assert not np.array_equal(together[0], together[1])


def test_forward_all__does_not_decode_what_all_have_seen(vit, captions, decoded):
    models = [placed(shaken(vit, seed), captions) for seed in range(3)]
    whole = one_pass(models, images_of())
    decoded.clear()
    rest = one_pass(models, images_of(), starts=[8, 10, 4])
    assert decoded == {"made": 6}
    for some, all_, start in zip(rest, whole, (8, 10, 4), strict=True):
        np.testing.assert_array_equal(some, all_[start:])
    assert one_pass(models[:1], images_of(), starts=[10])[0].shape == (0, 3)
    assert decoded == {"made": 6}


def test_predict__in_bf16_logits_are_float32_and_near_those_of_fp32(vit, captions):
    classifier = zero_shot_classifier(vit, captions)
    exact = predict(vit, classifier, images_of(), SETTINGS)
    rounded = predict(vit, classifier, images_of(), replace(SETTINGS, precision="bf16"))
    assert rounded.dtype == np.float32
    assert not np.array_equal(exact, rounded)
    # A bfloat16 has 8 significant bits, and the logit scale multiplies cosines.
    np.testing.assert_allclose(rounded, exact, atol=classifier.scale * 2**-5)


@few
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 5))
def test_shards__come_back_in_order_up_to_the_first_gap(tmp_path_factory, sizes, missing):
    shards = Shards(tmp_path_factory.mktemp("shards"), {"a": 1})
    rows = torch.randn(sum(sizes), 3)
    ends = np.cumsum([0, *sizes]).tolist()
    for start, stop in zip(ends[:-1], ends[1:], strict=True):
        shards.save(start, stop, {"logits": rows[start:stop]})
    if missing < len(sizes):
        sorted(shards.folder.iterdir())[missing].unlink()
    kept = ends[min(missing, len(sizes))]
    for _ in range(2):  # what lies behind the gap is gone
        found = shards.load()
        assert [s.start for s in found] == ends[: len(found)]
        got = torch.cat([torch.zeros(0, 3), *(s.tensors["logits"] for s in found)])
        assert torch.equal(got, rows[:kept])


@pytest.mark.parametrize("damage", ["cut", "flipped", "renamed", "empty"])
def test_shards__a_damaged_one_is_not_taken(tmp_path, damage):
    shards = Shards(tmp_path, {"a": 1})
    for start in (0, 2, 4):
        shards.save(start, start + 2, {"logits": torch.full((2, 3), float(start))})
    second = sorted(shards.folder.iterdir())[1]
    data = bytearray(second.read_bytes())
    if damage == "cut":
        second.write_bytes(data[:-1])
    elif damage == "flipped":
        data[-1] ^= 1
        second.write_bytes(data)
    elif damage == "empty":
        second.write_bytes(b"")
    else:
        second.rename(second.with_name(second.name.replace("00000004-", "00000003-", 1)))
    assert [(s.start, s.stop) for s in shards.load()] == [(0, 2)]


def test_shards__of_another_key_are_others(tmp_path):
    one, other = Shards(tmp_path, {"model": "a"}), Shards(tmp_path, {"model": "b"})
    one.save(0, 2, {"logits": torch.zeros(2, 3)})
    one.finish({"x": 1})
    assert other.load() == []
    assert other.finished() is None
    assert Shards(tmp_path, {"model": "a"}).finished() == {"x": 1}
    assert one.load() == []  # finished: parts are gone
    (one.folder / "done.json").write_text("{")
    assert one.finished() is None


def test_adopt__takes_finished_files_and_never_over_what_is_here(tmp_path):
    source, target = tmp_path / "1", tmp_path / "2"
    shards = Shards(source, {"a": 1})
    shards.save(0, 2, {"logits": torch.ones(2, 3)})
    (shards.folder / ".half.tmp").write_bytes(b"torn")
    adopt_shards(source, target)
    assert len(Shards(target, {"a": 1}).load()) == 1
    assert not list(target.rglob(".half.tmp"))
    shards.save(2, 4, {"logits": torch.ones(2, 3)})
    adopt_shards(source, target)
    assert len(Shards(target, {"a": 1}).load()) == 1
    adopt_shards(tmp_path / "none", target)


@few
@given(st.integers(0, 6), st.integers(0, 2**32 - 1))
def test_covariance__taken_back_in_the_middle_is_as_without_a_break(cut, seed):
    batches = np.random.default_rng(seed).normal(5, 1, size=(6, 4, 3)).astype(np.float32)
    whole, first, second = Covariance(3), Covariance(3), Covariance(3)
    for batch in batches:
        whole.add(batch)
    for batch in batches[:cut]:
        first.add(batch)
    second.load_state(first.state())
    for batch in batches[cut:]:
        second.add(batch)
    for name, array in whole.state().items():
        np.testing.assert_array_equal(second.state()[name], array)


def cached_captions(captions: Captions, folder: Path) -> Captions:
    return Captions(captions.class_names, captions.templates, captions.tokens, folder)


def test_heads__an_equal_text_tower_encodes_prompts_once(vit, captions, tmp_path, encoded):
    plain = zero_shot_weights(vit, captions)
    cached = cached_captions(captions, tmp_path)
    encoded.clear()
    first = zero_shot_weights(vit, cached)
    assert sum(encoded) == 9
    encoded.clear()
    again = zero_shot_weights(shaken(vit, 1), cached)  # another image tower
    with torch.no_grad():
        vit.net.logit_scale.add_(1)
    rescaled = zero_shot_weights(vit, cached)
    assert encoded == []
    for weights in (first, again, rescaled):
        assert torch.equal(weights, plain)


def change_weights(clip: Clip, captions: Captions) -> Captions:
    with torch.no_grad():
        clip.net.text_projection[0, 0] += 1e-6
    return captions


def change_templates(clip: Clip, captions: Captions) -> Captions:
    made = Captions.make(captions.class_names, PHOTO[:2], clip.tokenizer)
    return cached_captions(made, captions.cache or Path())


def change_tokens(clip: Clip, captions: Captions) -> Captions:
    tokens = captions.tokens.clone()
    tokens[0, 2] += 1
    return Captions(captions.class_names, captions.templates, tokens, captions.cache)


def change_activation(clip: Clip, captions: Captions) -> Captions:
    clip.net.transformer.resblocks[0].mlp.gelu = torch.nn.ReLU()
    return captions


@pytest.mark.parametrize(
    "change", [change_weights, change_templates, change_tokens, change_activation]
)
def test_heads__whatever_decides_the_weights_is_in_the_key(
    vit, captions, tmp_path, encoded, change
):
    cached = cached_captions(captions, tmp_path)
    zero_shot_weights(vit, cached)
    changed = change(vit, cached)
    encoded.clear()
    got = zero_shot_weights(vit, changed)
    assert sum(encoded) == len(changed)
    fresh = Captions(changed.class_names, changed.templates, changed.tokens)
    assert torch.equal(got, zero_shot_weights(vit, fresh))


def test_heads__a_damaged_file_is_made_again(vit, captions, tmp_path, encoded):
    cached = cached_captions(captions, tmp_path)
    expected = zero_shot_weights(vit, cached)
    (file,) = tmp_path.glob("*/*")
    data = file.read_bytes()
    for damaged in (data[:-1] + bytes([data[-1] ^ 1]), data[:-8], b""):
        file.write_bytes(damaged)
        for again in (True, False):
            encoded.clear()
            assert torch.equal(zero_shot_weights(vit, cached), expected)
            assert bool(encoded) == again


def test_heads__a_cache_that_cannot_be_written_costs_time_only(vit, captions, tmp_path):
    (tmp_path / "file").write_text("in the way")
    weights = zero_shot_weights(vit, cached_captions(captions, tmp_path / "file"))
    assert torch.equal(weights, zero_shot_weights(vit, captions))


def test_heads__those_used_longest_ago_go_first(vit, captions, tmp_path, monkeypatch):
    cached = cached_captions(captions, tmp_path)
    zero_shot_weights(vit, cached)
    (first,) = tmp_path.glob("*/*")
    monkeypatch.setattr(zeroshot_cache, "CACHE_LIMIT_BYTES", 2.5 * first.stat().st_size)
    os.utime(first, (1, 1))
    for i in range(2):
        with torch.no_grad():
            vit.net.text_projection[0, 0] += 1
        zero_shot_weights(vit, cached)
        assert first.exists() == (i == 0)
    assert len(list(tmp_path.glob("*/*"))) == 2


def report_in(folder: Path) -> Report:
    return Report.model_validate_json((folder / "report.json").read_bytes())


def timeless(folder: Path) -> dict[str, Any]:
    """A report without what depends on the clock."""
    report = json.loads((folder / "report.json").read_text())
    report["timings_s"] = sorted(report["timings_s"])
    assert report.pop("run_id")  # each folder's own
    report.pop("speeds", None)  # of what this attempt itself has done
    for evaluation in report["evaluations"]:
        evaluation["seconds"] = 0
    return dict(report)


def assert_same_bytes(one: Path, other: Path) -> None:
    names = sorted(p.name for p in (one / "predictions").iterdir())
    assert names == sorted(p.name for p in (other / "predictions").iterdir())
    for name in names:
        a, b = (folder / "predictions" / name for folder in (one, other))
        assert a.read_bytes() == b.read_bytes(), name
    assert timeless(one) == timeless(other)
    assert not (one / EVALUATING).exists()
    assert not (other / EVALUATING).exists()


@pytest.fixture(scope="module")
def base_home(tmp_path_factory):
    return tmp_path_factory.mktemp("base-home")


@pytest.fixture
def at_home(base_home, home, monkeypatch):
    """The home of the finished runs; nothing else from outside."""
    monkeypatch.setenv("CALIFT_HOME", str(base_home))
    return base_home


@pytest.fixture(scope="module")
def runs(tmp_path_factory, configs, photos, paintings, base_home):
    """Finished runs: three of random weights, and one with a trained head, which has a bias."""
    root = tmp_path_factory.mktemp("runs")
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALIFT_HOME", str(base_home))
        for name, kind, seed in (
            ("one", "zero_shot", 1),
            ("two", "zero_shot", 2),
            ("three", "zero_shot", 3),
            ("tuned", "finetune", 1),
        ):
            spec = RunSpec.model_validate(
                {
                    "name": name,
                    "model": {"name": str(configs["vit"]), "pretrained": None},
                    "method": {"kind": kind},
                    "suite": {
                        "id": f"folder:{photos}",
                        "shifts": {"art": f"folder:{paintings}"},
                        "corruptions": {"names": ["contrast"], "severities": [5], "limit": 9},
                        "templates": list(PHOTO),
                    },
                    "train": {"epochs": 1, "batch_size": 16, "device": "cpu", "seed": seed}
                    | {"spectrum_every_epochs": 0},
                    "evaluation": {"n_resamples": 20, "batch_size": 4},
                }
            )
            made[name] = root / name
            for _ in run_in_folder(spec, made[name]):
                pass
    return made


def spec_of(run: Path, **evaluation: Any) -> RunSpec:
    data = json.loads((run / "spec.json").read_text())
    data["evaluation"] |= evaluation
    return RunSpec.model_validate(data)


def evaluate(run: Path, folder: Path, **evaluation: Any) -> Path:
    for _ in evaluate_finished(spec_of(run, **evaluation), run, folder):
        pass
    return folder


class Stopper:
    """`stop` that turns true at the n-th question, or ends everything there like a SIGKILL."""

    def __init__(self, n: int, *, kill: bool = False) -> None:
        self.left, self.kill = n, kill

    def __call__(self) -> bool:
        self.left -= 1
        if self.left < 0 and self.kill:
            raise KeyboardInterrupt  # nothing is saved on the way out
        return self.left < 0


def once(decoded: dict[str, int]) -> dict[str, int]:
    """Counts of the sets that every attempt could decode again; corrupted ones are cached."""
    return {name: decoded[name] for name in ("validation", "calibration", "photos/test", "art")}


def go(source: Iterator[Record]) -> bool:
    """Whether it came to its end."""
    try:
        for _ in source:
            pass
    except InterruptedRunError:
        return False
    return True


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(evaluate_module, "SHARD_BATCHES", 2)


def test_kill__then_again_leaves_the_bytes_of_an_evaluation_left_alone(
    runs, at_home, tmp_path, small_shards, decoded
):
    """Killed in the middle of the ID set, whose covariance must go on, and of a later one."""
    alone = evaluate(runs["one"], tmp_path / "alone")
    whole = dict(decoded)
    stored = {path.stem: read_predictions(path) for path in (alone / "predictions").iterdir()}
    batches = {name: -(-len(p) // 4) for name, p in stored.items()}
    before = batches["validation"] + batches["calibration"]
    spec, folder = spec_of(runs["one"]), tmp_path / "killed"
    # The first one leaves two batches of the ID set; finished sets ask no question.
    for question in (before + 4, batches["photos_test"] - 2 + 4):
        stop = Stopper(question - 1, kill=True)
        with pytest.raises(KeyboardInterrupt):
            go(evaluate_finished(spec, runs["one"], folder, stop=stop))
        assert not (folder / "report.json").exists()
        assert list((folder / EVALUATING).glob("*/*"))
    decoded.clear()
    evaluate(runs["one"], folder)
    assert_same_bytes(folder, alone)
    assert "validation" not in decoded
    assert "calibration" not in decoded
    assert sum(decoded.values()) < sum(whole.values())


def test_resume__takes_nothing_of_another_model_or_another_way(
    runs, at_home, tmp_path, small_shards
):
    alone = evaluate(runs["two"], tmp_path / "alone")
    folder = tmp_path / "mixed"
    assert not go(evaluate_finished(spec_of(runs["one"]), runs["one"], folder, stop=Stopper(9)))
    other = spec_of(runs["two"], batch_size=5)
    assert not go(evaluate_finished(other, runs["two"], folder, stop=Stopper(9)))
    evaluate(runs["two"], folder)
    assert_same_bytes(folder, alone)


def test_resume__predictions_that_somebody_changed_are_made_again(
    runs, at_home, tmp_path, small_shards
):
    alone = evaluate(runs["one"], tmp_path / "alone")
    folder, spec = tmp_path / "changed", spec_of(runs["one"])
    assert not go(evaluate_finished(spec, runs["one"], folder, stop=Stopper(12)))
    (folder / "predictions" / "validation.parquet").write_bytes(b"torn")
    (folder / "predictions" / "calibration.parquet").unlink()
    evaluate(runs["one"], folder)
    assert_same_bytes(folder, alone)


def test_zero_shot__a_second_run_of_the_same_tower_encodes_no_prompt(
    run_spec, home, tmp_path, encoded
):
    assert go(run_in_folder(run_spec("zero_shot"), tmp_path / "one"))
    assert encoded[0] == 9  # then what other prompts would make of the tower
    encoded.clear()
    assert go(run_in_folder(run_spec("zero_shot"), tmp_path / "two"))
    # Fine-tuning starts from the zero-shot head and leaves the text tower as it is.
    assert go(run_in_folder(run_spec("finetune", train={"epochs": 1}), tmp_path / "three"))
    assert encoded == []
    assert_same_bytes(tmp_path / "one", tmp_path / "two")
    other = run_spec("zero_shot", suite={"templates": ["a sketch of {}"]})
    assert go(run_in_folder(other, tmp_path / "four"))
    assert encoded == [3]


def test_progress__tells_phase_set_share_speed_and_rest(runs, at_home, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SAY_EVERY_S", -1.0)
    spec, folder = spec_of(runs["one"]), tmp_path / "out"
    assert not go(evaluate_finished(spec, runs["one"], folder, stop=Stopper(12)))
    records = list(evaluate_finished(spec, runs["one"], folder))
    answer = [r for r in records if isinstance(r, ProgressRecord)]
    report = report_in(folder)
    total = sum(e.n for e in report.evaluations)
    total += sum(report.selection[part]["n"] for part in ("validation", "calibration"))
    assert {r.total_steps for r in answer} == {total}
    steps = [r.step for r in answer]
    assert steps == sorted(steps)
    assert steps[-1] == total
    assert answer[-1].eta_s == 0
    assert answer[-1].samples_per_s is not None
    assert {r.detail for r in answer} >= {"photos/test", "art", "contrast/5"}
    assert len(answer) > 10
    assert answer[0].samples_per_s is None  # all of it is an earlier attempt's
    first = next(r for r in answer if r.detail == "photos/test")
    assert first.step > sum(report.selection[p]["n"] for p in ("validation", "calibration")) + 16


def test_precision__of_the_evaluation_is_its_own_and_reported(runs, at_home, tmp_path):
    folder = evaluate(runs["one"], tmp_path / "bf16", precision="bf16")
    answer = report_in(folder).environment
    assert (answer["precision"], answer["evaluation_precision"]) == ("fp32", "bf16")
    rounded, exact = (
        read_predictions(f / "predictions" / "art.parquet").logits for f in (folder, runs["one"])
    )
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded, exact, atol=1.0)


def evaluated(runs: dict[str, Path], *names: str, **evaluation: Any) -> dict[str, Evaluated]:
    return {name: Evaluated(runs[name], spec_of(runs[name], **evaluation)) for name in names}


def test_many__stopped_again_and_again_end_in_the_same_bytes(
    runs, at_home, tmp_path, small_shards, decoded
):
    models = evaluated(runs, "one", "tuned")
    assert go(evaluate_many(models, tmp_path / "alone"))
    whole = dict(decoded)
    decoded.clear()
    attempts = 1
    while not go(evaluate_many(models, tmp_path / "stopped", stop=Stopper(14))):
        attempts += 1
    assert attempts > 2
    for name in models:
        assert_same_bytes(tmp_path / "stopped" / name, tmp_path / "alone" / name)
    # One model may be a batch ahead when both are stopped; that batch is decoded for the other.
    assert sum(decoded.values()) <= sum(whole.values()) + 4 * attempts


def test_many__towers_that_take_turns_leave_each_other_alone(runs, at_home):
    suite = load_suite(spec_of(runs["one"]).suite)
    first = load_trained(runs["one"], suite, CPU)
    models = {name: load_like(runs[name], first, ("one", name), suite) for name in runs}
    turns = TowerSwitcher(first.clip)
    places = {name: turns.add(model) for name, model in models.items()}
    for name in ("two", "one", "one", "tuned", "three", "two"):
        state = places[name]().net.visual.state_dict()
        whole, _, _ = load_finished(runs[name])
        for key, tensor in whole.net.visual.state_dict().items():
            assert torch.equal(state[key], tensor)
        assert models[name].sha256 == weights_sha256(whole.net)


@pytest.mark.parametrize("damage", ["cut", "other", "gone"])
def test_many__a_damaged_model_is_a_sentence(runs, at_home, tmp_path, damage):
    shutil.copytree(runs["two"], tmp_path / "two")
    file = tmp_path / "two" / "checkpoint" / "model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "other":
        save_file({"visual.x": torch.zeros(3)}, file)
    else:
        file.unlink()
    models = evaluated(runs, "one") | {
        "two": Evaluated(tmp_path / "two", spec_of(tmp_path / "two"))
    }
    with pytest.raises(CheckpointError, match=r"the model in '.*two' is damaged"):
        go(evaluate_many(models, tmp_path / "out"))


def test_many__refuses_other_architectures_suites_and_ways(runs, run_spec, at_home, tmp_path):
    models = evaluated(runs, "one")
    resnet = run_spec("zero_shot", tower="resnet")
    assert go(run_in_folder(resnet, tmp_path / "resnet"))
    like = resnet.model_copy(
        update={"suite": models["one"].spec.suite, "evaluation": models["one"].spec.evaluation}
    )
    both = models | {"other": Evaluated(tmp_path / "resnet", like)}
    with pytest.raises(
        ModelError, match=r"one and other cannot be evaluated .* image size \(16 and"
    ):
        go(evaluate_many(both, tmp_path / "out"))
    both = models | {"other": Evaluated(runs["two"], spec_of(runs["two"], batch_size=5))}
    with pytest.raises(SpecError, match="must have the same evaluation, those of 'one' and 'oth"):
        go(evaluate_many(both, tmp_path / "out"))
    suite = models["one"].spec.suite.model_copy(update={"shifts": {}})
    other = models["one"].spec.model_copy(update={"suite": suite})
    with pytest.raises(SpecError, match="must have the same suite"):
        go(evaluate_many(models | {"other": Evaluated(runs["two"], other)}, tmp_path / "out"))
    (tmp_path / "own" / "one").mkdir(parents=True)
    (tmp_path / "own" / "one" / "spec.json").write_text("{}")
    with pytest.raises(SpecError, match="a folder of its own"):
        go(evaluate_many(models, tmp_path / "own"))


@pytest.mark.parametrize(
    ("kind", "suite", "last"), [("carot", {}, 8), ("pretrain", {"fractions": {"pretrain": 0.5}}, 6)]
)
def test_many__checkpoints_of_one_run_and_the_last_is_the_finished_model(
    run_spec, home, tmp_path, kind, suite, last
):
    train = {"checkpoint_every_steps": 4, "keep_checkpoints": 9}
    spec = run_spec(kind, suite=suite, train=train)
    source = run_in_folder(spec, tmp_path / "run")
    for record in source:
        if record.kind == "phase" and record.phase == "evaluating":
            break
    source.close()
    steps = sorted((tmp_path / "run" / "checkpoint" / "steps").iterdir())
    assert [name_of(p) for p in steps] == ["run-step-4", f"run-step-{last}"]
    assert {run_folder_of(p) for p in steps} == {tmp_path / "run"}
    models = {name_of(p): Evaluated(p, spec) for p in steps}
    assert go(evaluate_many(models, tmp_path / "out"))
    assert go(run_in_folder(spec, tmp_path / "run"))
    hashes = [report_in(tmp_path / "out" / name).model["sha256"] for name in models]
    assert hashes[0] != hashes[1] == report_in(tmp_path / "run").model["sha256"]
    for name in ("photos_test", "validation"):
        evaluated, own = (
            f / "predictions" / f"{name}.parquet"
            for f in (tmp_path / "out" / f"run-step-{last}", tmp_path / "run")
        )
        assert evaluated.read_bytes() == own.read_bytes()


def test_sweep__stopped_again_and_again_measures_the_same_path(
    runs, run_spec, at_home, tmp_path, monkeypatch, decoded
):
    monkeypatch.setattr(weight_path, "SHARD_BATCHES", 2)
    base = spec_of(runs["tuned"])
    data = base.model_dump(mode="json")
    data["method"] = {"kind": "wise_ft", "run": str(runs["tuned"]), "sweep": [0.0, 0.5, 1.0]}
    data["train"]["keep_features"] = 0  # a pass that keeps no part of itself: 8 questions end it
    spec = RunSpec.model_validate(data)
    assert go(run_in_folder(spec, tmp_path / "alone"))
    whole = dict(decoded)
    decoded.clear()
    attempts = 1
    while not go(run_in_folder(spec, tmp_path / "stopped", stop=Stopper(8))):
        attempts += 1
    assert attempts > 2
    assert_same_bytes(tmp_path / "stopped", tmp_path / "alone")
    assert once(decoded) == once(whole)


@few
@given(st.floats(0, 4), st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_noise__is_gaussian_of_the_image_alone_and_clipped(sigma, seed, index):
    base = images_of(5, side=16)
    images = perturbed(base, preprocess=Preprocess(16), sigma=sigma, seed=seed, name="n")
    swapped = perturbed(
        base.take([index], "s"), preprocess=Preprocess(16), sigma=sigma, seed=seed, name="n"
    )
    np.testing.assert_array_equal(images.image(index), swapped.image(0))
    if sigma == 0:
        np.testing.assert_array_equal(images.image(index), base.image(index))
    assert images.ids == base.ids


def test_noise__has_the_standard_deviation_it_says():
    grey = np.full((4, 64, 64, 3), 128, dtype=np.uint8)
    base = ImageSet("g", ArraySource(grey, "g"), tuple("abcd"), np.zeros(4, int), np.arange(4))
    noisy = perturbed(base, preprocess=Preprocess(64), sigma=0.05, seed=0, name="n")
    values = np.stack([noisy.image(i) for i in range(4)]).astype(float) - 128
    # 49,152 values: the standard deviation's own is 0.3 %; rounding adds 1/12 to the variance.
    assert values.std() == pytest.approx(255 * 0.05, rel=0.02)
    assert abs(values.mean()) < 0.3
    double = perturbed(base, preprocess=Preprocess(64), sigma=0.1, seed=0, name="n").image(0)
    assert np.corrcoef(double.ravel(), values[0].ravel())[0, 1] > 0.99
    assert not np.array_equal(noisy.image(0), noisy.image(1))
    with pytest.raises(SpecError, match="sigma must be ≥ 0, got -1"):
        perturbed(base, preprocess=Preprocess(64), sigma=-1, seed=0, name="n")


def test_perturbed_calibration__is_stored_for_tsp_and_in_no_mean(
    run_spec, home, tmp_path, monkeypatch
):
    monkeypatch.setattr(noise_levels, "NOISE_STEPS", 6)
    train = {"epochs": 3, "lr": 3e-3, "spectrum_every_epochs": 0}
    evaluation = {"n_resamples": 20, "batch_size": 64}
    spec = run_spec("finetune", train=train, evaluation=evaluation)
    assert go(run_in_folder(spec, tmp_path / "run"))
    noisy = spec_of(tmp_path / "run", perturbed_calibration=True)
    assert not go(evaluate_finished(noisy, tmp_path / "run", tmp_path / "o", stop=Stopper(14)))
    assert go(evaluate_finished(noisy, tmp_path / "run", tmp_path / "o"))
    plain, report = report_in(tmp_path / "run"), report_in(tmp_path / "o")
    assert report.summary == plain.summary
    assert [e.dataset for e in report.evaluations] == [e.dataset for e in plain.evaluations]

    copies = report.selection["perturbed_calibration"]
    clean = read_predictions(tmp_path / "o" / report.selection["calibration"]["predictions"])
    assert clean.metadata.role == "calibration"
    assert len(copies) >= 2
    assert [c["noise"] for c in copies] == sorted({c["noise"] for c in copies})
    assert copies[0]["noise"] > 0
    stored = [read_predictions(tmp_path / "o" / c["predictions"]) for c in copies]
    for one, answer in zip(stored, copies, strict=True):
        assert (
            one.metadata.dataset == answer["dataset"] == f"calibration+noise/{answer['noise']:.4f}"
        )
        assert one.metadata.role == "calibration"
        assert one.metadata.source_dataset == "calibration"
        np.testing.assert_array_equal(one.ids, clean.ids)
        np.testing.assert_array_equal(one.clusters, clean.ids)
        np.testing.assert_array_equal(one.labels, clean.labels)
    falls = [accuracy(score_probs(softmax(p.logits), p.labels)) for p in (clean, *stored)]
    assert falls[0] > 0.6
    assert falls[-1] < falls[0]

    union = np.concatenate([p.logits for p in (clean, *stored)])
    labels = np.concatenate([p.labels for p in (clean, *stored)])
    fitted = CALIBRATORS["tsp"]().fit(union, labels, split=clean.metadata.split, role="id")
    assert not fitted.oracle
