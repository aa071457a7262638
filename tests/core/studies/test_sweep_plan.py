"""The plan of a sweep: deterministic, within its cap, the same after any interruption."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calift_core.errors import CaliftError, SpecError
from calift_core.schema.sweep import COMPARED, SweepSpec, default_ladder, parse_sweep
from calift_core.sweeps.arms import Arms, make_arms
from calift_core.sweeps.ladder import ChosenRate, LadderRun, choose, climb_ladder, extended
from calift_core.sweeps.plan import Outcome, PlannedRun, make_plan


def test_climb__goes_up_one_by_one_until_the_score_has_fallen():
    rates = (1.0, 2.0, 3.0, 4.0)
    known = {}

    def reached():
        found = climb_ladder(rates, lambda lr: LadderRun(known[lr]) if lr in known else None)
        return found.reached, found.over

    assert reached() == (1, False)
    known[1.0] = 0.5
    assert reached() == (2, False)
    known[2.0] = 0.5  # as good is not fallen
    assert reached() == (3, False)
    known[3.0] = 0.4
    assert reached() == (3, True)
    assert choose(known, rates) == ChosenRate(1.0, "lower")  # of equal ones the lower


def test_climb__a_run_that_diverged_has_fallen_and_the_ladder_runs_whole():
    scores = {1.0: 0.3, 2.0: None, 3.0: 0.6, 4.0: None}
    assert climb_ladder((1.0, 2.0, 3.0), lambda _: None, at_once=3).reached == 3
    found = climb_ladder((1.0, 2.0, 3.0, 4.0, 5.0), lambda lr: LadderRun(scores[lr]), at_once=3)
    assert (found.reached, found.over) == (4, True)
    assert choose(scores, (1.0, 2.0, 3.0, 4.0, 5.0)) == ChosenRate(3.0, "")
    with pytest.raises(CaliftError, match="every run of the grid diverged: 1, 2"):
        choose({1.0: None, 2.0: None}, (1.0, 2.0))


def test_extended__goes_on_by_the_last_factor_and_stays_within_one():
    assert extended((1e-3, 3e-3), 2) == (1e-3, 3e-3, 9e-3, 0.027)
    assert extended((0.1, 0.5), 3) == (0.1, 0.5)
    assert default_ladder(1e-5, "ViT-B-16") == (3e-6, 1e-5, 3e-5)
    assert default_ladder(3e-5, "ViT-B-16") == (1e-5, 3e-5, 1e-4)
    assert default_ladder(1e-3, "ViT-B-16") == (3e-4, 1e-3, 3e-3)


def arms_of(**spec: Any) -> Arms:
    return make_arms(parse_sweep({"name": "s"} | spec))


def test_arms__are_methods_times_values_and_a_value_goes_to_methods_that_have_it():
    arms = arms_of(
        methods=["flyp", "carot"],
        values={"method.lambda_oc": [0.0, 0.2], "train.batch_size": [8, 16]},
        rate=None,
    )
    assert [arm.label for arm in arms] == [
        "flyp batch_size=8",
        "flyp batch_size=16",
        "carot lambda_oc=0 batch_size=8",
        "carot lambda_oc=0 batch_size=16",
        "carot lambda_oc=0.2 batch_size=8",
        "carot lambda_oc=0.2 batch_size=16",
    ]
    spec = arms[2].spec("s", seed=7, lr=0.1)
    assert (spec.train.seed, spec.train.lr, spec.train.batch_size) == (7, 0.1, 8)
    assert spec.method.model_dump()["lambda_oc"] == 0
    assert spec.name == "s: carot lambda_oc:0 batch_size:8 lr 0.1 seed 7"


def test_arms__a_random_search_is_the_same_for_the_same_seed_and_stays_in_its_ranges():
    requested = {
        "base": {"method": {"kind": "carot"}},
        "values": {
            "train.lr": {"low": 1e-5, "high": 1e-3, "log": True},
            "train.batch_size": {"low": 2, "high": 9, "integer": True},
            "method.lambda_oc": [0.0, 0.5],
        },
        "search": {"kind": "random", "n": 20, "seed": 3},
    }
    arms = arms_of(**requested)
    assert [a.body for a in arms] == [a.body for a in arms_of(**requested)]
    assert [a.body for a in arms] != [
        a.body for a in arms_of(**requested | {"search": {"kind": "random", "n": 20, "seed": 4}})
    ]
    for arm in arms:
        assert not arm.rates  # the rate is swept, so none is chosen
        assert 1e-5 <= arm.body["train"]["lr"] <= 1e-3
        assert arm.body["train"]["batch_size"] in range(2, 10)
    assert len({arm.body["train"]["batch_size"] for arm in arms}) > 4


def test_presets__compare_ablate_and_repeat():
    compared = arms_of(preset="compare-methods")
    assert [arm.kind for arm in compared] == list(COMPARED)
    kinds = {arm.kind: arm for arm in compared}
    assert not kinds["zero_shot"].rates
    assert compared[kinds["wise_ft"].merges or 0].kind == "finetune"
    ablated = arms_of(
        preset="ablate-carot", base={"method": {"kind": "carot", "lambda_x": 0.5}, "name": "x"}
    )
    assert [arm.rate_of for arm in ablated] == [None, 0, 0, 0]
    weights = [(a.body["method"].get("lambda_oc"), a.body["method"].get("lambda_sd"),
                a.body["method"]["lambda_x"]) for a in ablated]  # fmt: skip
    assert weights == [(None, None, 0.5), (0, None, 0.5), (None, 0, 0.5), (0, 0, 0.5)]
    spec = parse_sweep(
        {
            "preset": "three-seeds",
            "base": {"name": "mine", "method": {"kind": "flyp"}, "train": {"seed": 4, "lr": 0.01}},
        }
    )
    plan = make_plan(make_arms(spec), {})
    assert spec.name == "seeds of mine"
    assert [(s.role, s.seed, s.lr) for s in plan.ready] == [
        ("evaluation", n, None) for n in (4, 5, 6)
    ]
    # What a preset made stands in the spec and means the same when it is read again.
    assert parse_sweep(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"methods": ["carrot"]}, "'carrot'"),
        ({"methods": ["carot", "carot"]}, "carot twice"),
        ({"methods": ["carot"], "seeds": [0, 0]}, "seeds must differ"),
        ({"methods": ["carot"], "seeds": [0, 100]}, "chooses rates and is used for nothing else"),
        ({"methods": ["carot"], "rate": {"ladder": [0.1, 0.01]}}, "ascending rates"),
        ({"methods": ["carot"], "values": {"train.seed": [1]}}, "what `seeds` lists"),
        ({"methods": ["carot"], "values": {"lr": [1]}}, "written with dots"),
        ({"methods": ["carot"], "values": {"train.rl": [0.1]}}, "carot rl=0.1: #/train/rl"),
        ({"methods": ["flyp"], "values": {"method.lambda_oc": [0]}}, "option of none"),
        ({"methods": ["carot"], "values": {"train.lr": {"low": 1, "high": 2}}}, "kind: random"),
        ({"methods": ["wise_ft"]}, "finetune among the methods"),
        ({"methods": ["carot"], "max_runs": 2}, "takes at least 7 runs"),
        (
            {"methods": ["carot"], "values": {f"method.x{i}": list(range(9)) for i in range(9)}},
            "387,420,489 combinations",
        ),
        (
            {"methods": ["carot"], "values": {"train.epochs": list(range(1, 300))}},
            "299 configurations",
        ),
        ({"methods": ["carot"], "base": {"name": float("nan")}}, "are finite"),
        (
            {
                "methods": ["carot"],
                "search": {"kind": "random"},
                "values": {"train.epochs": {"low": 1.2, "high": 1.8, "integer": True}},
            },
            "whole number",
        ),
        ({}, "its base has one"),
        ({"base": {"train": 3}, "methods": ["carot"]}, "train is a mapping"),
        ({"base": {"train": {"epochs": 0}}, "methods": ["carot"]}, "#/train/epochs"),
    ],
)
def test_arms__what_makes_no_sense_is_refused_in_words(spec, said):
    with pytest.raises(SpecError, match=said.replace("(", r"\(")):
        arms_of(**spec)


@st.composite
def sweeps(draw: st.DrawFn) -> SweepSpec:
    methods = draw(
        st.lists(
            st.sampled_from(["zero_shot", "finetune", "flyp", "carot"]),
            min_size=1,
            max_size=3,
            unique=True,
        )
    )
    if "finetune" in methods and draw(st.booleans()):
        methods.append("wise_ft")
    labels = list(methods)
    if "carot" in methods and draw(st.booleans()):
        labels.append(
            {"label": "part", "method": {"kind": "carot", "lambda_oc": 0}, "rate_of": "carot"}
        )
    spec = {
        "name": "s",
        "methods": labels,
        "seeds": list(range(draw(st.integers(1, 3)))),
        "rate": draw(
            st.none()
            | st.fixed_dictionaries(
                {
                    "ladder": st.sampled_from([[1e-3], [1e-3, 3e-3], [1e-4, 1e-3, 1e-2]]),
                    "extend": st.integers(0, 3),
                    "every_seed": st.booleans(),
                }
            )
        ),
    }
    least = make_arms(parse_sweep(spec)).at_least
    return parse_sweep(spec | {"max_runs": least + draw(st.integers(0, 12))})


def outcome_of(slot: PlannedRun, world: int) -> Outcome:
    """What a run gives in a world: always the same for the same run."""
    rng = random.Random(f"{world} {slot.key}")
    if slot.role == "selection" and rng.random() < 0.15:
        return Outcome("diverged")
    return Outcome("done", rng.choice([0.4, 0.5, 0.6]))


def run_to_the_end(arms, world, order):
    """Runs end in any order and some fail and are retried; at each step all may be forgotten."""
    known = {}
    slots = {}
    for _ in range(10_000):
        plan = make_plan(arms, known)
        assert plan == make_plan(make_arms(arms.spec), dict(reversed(known.items())))
        for slot in plan.ready:
            assert slot.key not in known, "a run is queued twice"
            assert all(known[k].state == "done" for k in slot.after)
            known[slot.key], slots[slot.key] = Outcome("open"), slot
        assert len(known) <= arms.at_most <= arms.spec.max_runs
        running = [key for key, found in known.items() if found.state in ("open", "failed")]
        if not running:
            return known, plan
        key = order.choice(running)
        fails = known[key].state == "open" and order.random() < 0.1
        known[key] = Outcome("failed") if fails else outcome_of(slots[key], world)
    raise AssertionError("the sweep did not end")


@given(sweeps(), st.integers(0, 2**16), st.integers(0, 2**16), st.integers(0, 2**16))
def test_plan__ends_in_the_same_runs_whatever_the_order_within_its_cap(spec, world, first, second):
    arms = make_arms(spec)
    known, plan = run_to_the_end(arms, world, random.Random(first))
    assert plan.over
    assert not plan.stuck
    assert not plan.to_come
    assert run_to_the_end(arms, world, random.Random(second)) == (known, plan)
    for arm in arms:
        evaluated = list(plan.evaluated(arm.index))
        if arm.index in plan.lost:
            assert not evaluated
        else:
            assert [slot.seed for slot in evaluated] == list(arms.seeds_of(arm))
        if arm.rates and arm.index in plan.rates:
            tried = {s.lr for s in plan.slots if s.arm == arm.index and s.role == "selection"}
            scores = {lr: outcome_of(s, world).score for s in plan.slots for lr in tried
                      if s.arm == arm.index and s.role == "selection" and s.lr == lr}  # fmt: skip
            best = max(score for score in scores.values() if score is not None)
            assert scores[plan.rates[arm.index].lr] == best


@given(sweeps(), st.integers(0, 2**16))
def test_plan__a_failed_run_holds_up_what_needs_it_and_nothing_else(spec, world):
    arms = make_arms(spec)
    known = {}
    for _ in range(1000):
        plan = make_plan(arms, known)
        if not plan.ready:
            break
        for slot in plan.ready:
            broken = slot.arm == 0
            known[slot.key] = Outcome("failed") if broken else outcome_of(slot, world)
    assert plan.stuck
    assert not plan.over
    for arm in arms:
        free = arm.index and arm.rate_of != 0 and arm.merges != 0
        if free and arm.index not in plan.lost:
            assert all(s.key in known for s in plan.evaluated(arm.index))
            assert len(list(plan.evaluated(arm.index))) == len(arms.seeds_of(arm))
    mended = known | {k: outcome_of(s, world) for s in plan.slots
                      if (k := s.key) in known and known[k].state == "failed"}  # fmt: skip
    assert not make_plan(arms, mended).stuck
