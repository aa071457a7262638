"""A run that goes on from a finished one's model: the same weights, later batches, its source."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from calift_core.errors import CheckpointError, ModelError, SpecError
from calift_core.schema.methods import METHOD_SPECS
from calift_core.schema.records import MetricsRecord
from calift_core.schema.spec import RunSpec, parse_spec, with_more_epochs
from tests.core.jobs.test_every_method import OPTIONS, made, run
from tests.core.jobs.test_job import at_step, go, go_until, report_in

__all__ = ["made", "run"]

Run = Callable[..., Path]
#: No step of this rate moves a weight of float32.
STILL = 1e-30


def more(folder: Path, epochs: int = 1, **train: Any) -> RunSpec:
    spec = with_more_epochs(report_in(folder).spec, str(folder), epochs)
    return parse_spec({**spec, "train": spec["train"] | train})


def losses(records: Any) -> list[float]:
    return [
        r.values["loss"] for r in records if isinstance(r, MetricsRecord) and "loss" in r.values
    ]


@pytest.mark.parametrize(
    ("kind", "adapt"),
    [(kind, "full") for kind, spec in METHOD_SPECS.items() if spec.trains and spec.keeps_trained]
    + [("flyp", "lora"), ("finetune", "lora"), ("finetune", "head"), ("carot", "head")],
)
def test_more_epochs__begin_with_the_weights_of_the_run(run, tmp_path, kind, adapt):
    """At a rate that moves nothing the end is the beginning, of tower, head and teacher alike."""
    source = run(kind)
    go(more(source, lr=STILL, adapt=adapt, log_every_steps=1), tmp_path / "more")
    before, after = report_in(source), report_in(tmp_path / "more")
    assert after.model["start_sha256"] == before.model["start_sha256"]
    assert after.model["sha256"] == before.model["sha256"]
    digests = [[e.predictions_sha256 for e in r.evaluations] for r in (before, after)]
    assert digests[0] == digests[1]
    assert after.resolved["epochs_before"] == 1
    (given,) = after.resolved["inputs"]
    assert given == {
        "run": str(source), "name": before.name, "method": kind, "sha256": before.model["sha256"]
    }  # fmt: skip
    assert after.spec["train"]["initial_run"] == str(source)
    assert after.name == f"{before.name} (1 more epoch)"


def test_more_epochs__go_on_learning_on_later_batches_and_through_a_stop(run, tmp_path):
    source = run("carot")
    spec = more(source, 2, lr=1e-3, log_every_steps=1)
    answer = go(spec, tmp_path / "more")
    assert report_in(tmp_path / "more").model["sha256"] != report_in(source).model["sha256"]
    # The first step is on the weights of the source and on a batch that it has not seen.
    again = go(spec.model_copy(update={"train": spec.train.model_copy(update={"lr": STILL})}),
               tmp_path / "still")  # fmt: skip
    assert losses(answer)[0] == losses(again)[0]
    assert len(set(losses(again))) == len(losses(again))
    go_until(spec, tmp_path / "stopped", at_step(2))
    go(spec, tmp_path / "stopped")
    ends = [report_in(tmp_path / name).model["sha256"] for name in ("more", "stopped")]
    assert ends[0] == ends[1]
    # Two epochs more are one and one: the batches are those of the epochs after.
    one, two = tmp_path / "one", tmp_path / "two"
    apart = [losses(go(more(folder, lr=STILL, log_every_steps=1), out))
             for folder, out in ((source, one), (one, two))]  # fmt: skip
    assert losses(again) == apart[0] + apart[1]
    assert report_in(two).resolved["epochs_before"] == 2


def test_more_epochs__what_does_not_fit_is_refused_by_its_name(run, tmp_path):
    source = run("flyp")
    spec = more(source)
    for method, error, words in (
        ("finetune", SpecError, "goes on from a classifier of the kind linear"),
        ("linear_probe", SpecError, "is prompts"),
    ):
        other = spec.model_copy(update={"method": METHOD_SPECS[method]()})
        with pytest.raises(error, match=words):
            go(other, tmp_path / method)
    with pytest.raises(ModelError, match="must have started from"):
        go(more(source, seed=99), tmp_path / "model")  # whose initial weights are random
    with pytest.raises(CheckpointError, match="holds no finished run"):
        go(more(source, initial_run=str(tmp_path / "gone")), tmp_path / "gone-out")


@pytest.mark.parametrize(
    "method",
    [{"kind": "zero_shot"}, {"kind": "linear_probe", "solver": "lbfgs"}]
    + [{"kind": kind} | OPTIONS[kind] for kind in ("coop", "tip_adapter")],
)
def test_spec__names_no_run_where_nothing_would_go_on(method):
    body = {"name": "r", "method": method}
    plain = RunSpec.model_validate(body)
    with pytest.raises(ValidationError, match="cannot go on from a finished run's model"):
        RunSpec.model_validate({**body, "train": {"initial_run": "abc"}})
    assert "initial_run" in plain.model_dump()["train"]


def test_hash__changes_with_the_run_alone():
    plain = {"name": "r", "method": {"kind": "flyp"}, "train": {"initial_run": None}}
    named = [{**plain, "train": {"initial_run": name}} for name in ("a", "b")]
    hashes = [RunSpec.model_validate(one).content_hash() for one in (plain, *named)]
    assert len(set(hashes)) == 3
    # As it was before a spec could name one: checkpoints know it.
    assert hashes[0] == "b998a185a8887b1a582b147aaf885fb5d709a070d0d28402b7bcc88ba94cb2e6"
