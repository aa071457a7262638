"""Runs that several processes share: the same loss, gradient, weights and predictions as alone."""

import json
import logging
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from calift_core.data.ranks import Ranks
from calift_core.errors import InterruptedRunError, ModelError, RankLostError, SpecError
from calift_core.evaluation.forward import share_of_batches
from calift_core.evaluation.spectrum import Covariance
from calift_core.jobs.several import run_on_several
from calift_core.models.shared import share_batch_norm
from calift_core.schema.records import RECORD, LogRecord, MetricsRecord
from calift_core.schema.spec import RunSpec
from tests.conftest import free_port, until
from tests.core.conftest import VIT, environment, tiny_spec
from tests.core.jobs.test_job import go, report_in
from tests.support.on_ranks import CASES, one_rank

log = logging.getLogger(__name__)

Spec = Callable[..., RunSpec]

#: 4 steps an epoch. AdamW divides by the size of a gradient: one that is zero but for rounding
#: (that of a key's bias, which a softmax does not see) would move its weight by whole steps of
#: noise, so epsilon is above that noise here. The tolerance is of the norm of all weights.
STEPS, TOLERANCE = 12, 2e-5
TRAIN = {"epochs": 3, "batch_size": 15, "lr": 1e-3, "eps": 1e-5, "checkpoint_every_steps": 4}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def apart(one: Path, other: Path) -> float:
    """The norm of the difference of two finished models' weights, as a share of their norm."""
    a, b = weights(one), weights(other)
    gap = sum(float((a[name] - b[name]).double().square().sum()) for name in a)
    return float((gap / sum(float(t.double().square().sum()) for t in a.values())) ** 0.5)


def on_ranks(n: int, folder: Path, home: Path, **changes: str) -> None:
    """`on_ranks.py` on n ranks, forked from a process that has loaded torch already."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["tests.support.on_ranks"])
    port = str(free_port())
    shared = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    here = environment(home, **shared, **changes)
    ranks = [
        forks.Process(target=one_rank, args=(folder, here | {"RANK": str(r), "LOCAL_RANK": str(r)}))
        for r in range(n)
    ]
    for rank in ranks:
        rank.start()
    try:
        for rank in ranks:
            rank.join(300)
        assert [rank.exitcode for rank in ranks] == [0] * n, (folder / "faults").read_text()
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
            rank.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def shared_spec(configs, photos):
    def make(kind, n=1, **train):
        return tiny_spec(kind, configs, photos, train=TRAIN | train, resources={"cpu_processes": n})

    return make


def lay_out(folder: Path, specs: dict[str, RunSpec]) -> Path:
    (folder / "specs").mkdir(parents=True)
    (folder / "vit.json").write_text(json.dumps(VIT))
    for name, spec in specs.items():
        (folder / "specs" / f"{name}.json").write_text(spec.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def specs(shared_spec):
    """What two ranks run, one after the other."""
    return {
        "carot": shared_spec("carot", 2, accumulation_steps=3),
        "lp_ft": shared_spec("lp_ft", 2, epochs=1),
        "linear_probe": shared_spec("linear_probe", 2, epochs=1),
        "left_alone": shared_spec("carot", 2),
    }


@pytest.fixture(scope="module")
def two(specs, tmp_path_factory, home):
    """What two ranks left, see `on_ranks.py`."""
    folder = lay_out(tmp_path_factory.mktemp("ranks") / "two", specs)
    on_ranks(2, folder, home)
    return folder


def test_two_ranks__losses_and_gradients_are_those_of_one_process(two):
    gaps = json.loads((two / "gradients.json").read_text())
    assert gaps.keys() == CASES.keys()
    for case, by_name in gaps.items():
        assert max(by_name.values()) < 1e-5, (case, by_name)


@pytest.mark.parametrize("name", ["carot", "lp_ft", "linear_probe"])
def test_two_ranks__weights_curves_and_numbers_are_those_of_one_process(two, specs, tmp_path, name):
    alone, together = tmp_path / name, two / "runs" / name
    go(specs[name], alone)
    distance = apart(alone, together)
    log.info("%s: weights apart by %.1e of their norm", name, distance)
    assert distance < TOLERANCE
    a, b = report_in(alone), report_in(together)
    assert a.summary.model_dump() == pytest.approx(b.summary.model_dump(), abs=1e-3)
    assert b.resolved["processes"] == 2
    curves = [
        [json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (alone, together)
    ]
    assert [line["step"] for line in curves[0]] == [line["step"] for line in curves[1]]
    for one, other in zip(*curves, strict=True):
        assert one == pytest.approx(other, abs=1e-3)
    if name == "carot":
        assert b.resolved["total_steps"] == STEPS
    if distance == 0:
        files = [e.relative_to(alone) for e in sorted((alone / "predictions").rglob("*.parquet"))]
        assert files
        for file in files:
            assert (alone / file).read_bytes() == (together / file).read_bytes()


def at_work_on(folder: Path, word: bytes = b"") -> list[int]:
    """Process ids that a folder, and a word, is among the arguments of; zombies left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in words and (not word or word in words):
            found.append(int(path.parent.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_killed_and_stopped__no_process_stays_and_the_run_ends_in_the_same_weights(
    specs, two, tmp_path, monkeypatch, home
):
    for name, value in environment(home).items():
        monkeypatch.setenv(name, value)
    spec, folder = specs["left_alone"], tmp_path / "stopped"
    output = []

    def follow(stop):
        output.clear()
        for record in run_on_several(spec, folder, stop=stop):
            output.append(record)  # at once: `stop` looks at it

    def kill(module, which):
        def once_a_rank_is_there():
            if at_work_on(folder, b"calift_core.jobs"):
                # A rank that was forked this moment still has the launcher's arguments.
                for process in sorted(at_work_on(folder, module))[which]:
                    os.kill(process, signal.SIGKILL)
            return False

        return once_a_rank_is_there

    def stop_late():
        return any(isinstance(record, MetricsRecord) and record.step >= 9 for record in output)

    def result():
        found = json.loads((folder / "result.json").read_text())
        return found["outcome"], found["code"]

    with pytest.raises(RankLostError, match="the launcher ended with status -9"):
        follow(kill(b"calift_core.jobs.launch", slice(0, 1)))
    until(lambda: not at_work_on(folder), what="the ranks of a killed launcher to be gone")
    with pytest.raises(RankLostError, match=r"rank \d .*signal 9"):
        follow(kill(b"calift_core.jobs", slice(-1, None)))
    assert at_work_on(folder) == []
    assert result() == ("lost", "RANK_LOST")

    # A quick machine has trained to the end, and evaluates, before the ranks hear of it.
    with pytest.raises(InterruptedRunError, match="its checkpoint is saved|they are kept"):
        follow(stop_late)  # in good order
    assert at_work_on(folder) == []
    assert result()[0] == "interrupted"
    shutil.copytree(folder, tmp_path / "moved")
    again = lay_out(tmp_path / "again", {"run": spec})
    folder = shutil.copytree(folder, again / "runs" / "run")
    at = (folder / "records.jsonl").stat().st_size
    on_ranks(2, again, home, CASES="none")
    answer = (folder / "records.jsonl").read_bytes()[at:].splitlines()
    (resumed,) = [r for r in map(RECORD.validate_json, answer) if r.kind == "resumed"]
    assert resumed.step >= 9
    left_alone = two / "runs" / "left_alone"
    assert apart(folder, left_alone) == 0.0
    assert (folder / "metrics.jsonl").read_text() == (left_alone / "metrics.jsonl").read_text()
    # What two have left is gone on with by one, which says so.
    notes = [r.message for r in go(spec, tmp_path / "moved") if isinstance(r, LogRecord)]
    assert any("on 2 processes" in note for note in notes)
    assert apart(tmp_path / "moved", left_alone) < TOLERANCE


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares__cover_everything_once_in_order(world):
    for n in (7, 8, 23):
        shares = [Ranks(rank, world).share(np.arange(n)) for rank in range(world)]
        assert np.concatenate(shares).tolist() == list(range(n))
        whole = [share_of_batches(n, 4, Ranks(rank, world)) for rank in range(world)]
        assert [i for start, stop in whole for i in range(start, stop)] == list(range(n))
        assert all(start % 4 == 0 or start == n for start, _ in whole)
    with pytest.raises(SpecError, match="cannot be shared among"):
        Ranks(0, 8).share(np.arange(7))


def test_covariance__merged_from_parts_is_that_of_all():
    x = np.random.default_rng(0).normal(3.0, 1.0, size=(50, 4))
    whole, parts = Covariance(4), [Covariance(4), Covariance(4), Covariance(4)]
    whole.add(x)
    for part, rows in zip(parts, (x[:20], x[20:45], x[45:]), strict=True):
        part.add(rows)
    merged = Covariance(4)
    merged.merge([part.state() for part in parts])
    assert merged.n == 50
    np.testing.assert_allclose(merged.correlation()[0], whole.correlation()[0], rtol=1e-12)


def test_batch_norm__on_the_cpu_is_refused_with_what_to_do(resnet, vit):
    with pytest.raises(ModelError, match="SyncBatchNorm") as caught:
        share_batch_norm(resnet, torch.device("cpu"))
    assert "batch_norm: frozen" in caught.value.hint
    share_batch_norm(vit, torch.device("cpu"))


@pytest.mark.parametrize(
    ("resources", "train", "kind", "says"),
    [
        ({"gpus": 2}, {}, "flyp", "needs train.device: cuda"),
        ({"cpu_processes": 2}, {"device": "auto"}, "flyp", "needs train.device: cpu"),
        ({"gpus": 2, "cpu_processes": 2}, {"device": "cuda"}, "flyp", "not on both"),
        ({"cpu_processes": 8}, {"batch_size": 8, "accumulation_steps": 2}, "flyp", "batch_size"),
        ({"cpu_processes": 2}, {}, "wise_ft", "merges finished runs"),
    ],
)
def test_resources__that_make_no_sense_are_refused(run_spec, resources, train, kind, says):
    method = {"run": "x"} if kind == "wise_ft" else {}
    with pytest.raises(SpecError, match=says):
        run_spec(kind, method=method, train=train, resources=resources)


def test_resources__do_not_make_another_run(run_spec):
    alone, shared = run_spec("flyp"), run_spec("flyp", resources={"cpu_processes": 2})
    assert alone.content_hash() == shared.content_hash()
