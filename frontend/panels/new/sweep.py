"""The part of the form that makes a sweep of what is filled in: methods × seeds × values."""

from typing import Any

import streamlit as st
import yaml

from calift_core.errors import SpecError
from calift_core.schema.documents import read_document
from calift_core.schema.sweep import PRESETS
from calift_core.schema.wire.service import MethodInfo
from calift_core.schema.wire.sweeps import SweepEstimate, SweepValidation
from frontend import api, page, state, text

#: What to sweep: a preset, or what stands in the fields below.
CHOICES = {"own": "Methods and values of my choice", **PRESETS}


def sweep(spec: dict[str, Any], methods: dict[str, MethodInfo], *, intent: str = "") -> bool:
    """Draw the switch and, when it is on, the sweep's own fields, its dry run and its button.

    Args:
        spec: the run as it is filled in; the sweep is of its data, model and training.
        intent: a preset that is what the form is for; empty: a switch says whether to sweep.

    Returns:
        Whether it is on: what is filled in is then submitted as a sweep, and not as a run.
    """
    on = bool(intent) or state.toggle(
        st, "Sweep this: several methods, seeds or values, and one verdict", name="sweep"
    )
    if on:
        _of(spec, methods, intent)
    return on


def _of(spec: dict[str, Any], methods: dict[str, MethodInfo], intent: str) -> None:
    """The sweep's own fields, its dry run and its button."""
    what = intent or state.choice(st.selectbox, "What to sweep", name="what", options=CHOICES)
    try:
        wanted = _filled(spec, methods, what)
    except SpecError as error:
        st.error(text.md_prose(error.message), icon=":material/rule:")
        return
    locked = api.locked("submit")
    if locked:
        st.info(locked, icon=":material/lock:")
        return
    found = api.act("check the sweep", lambda: api.validate_sweep(wanted))
    if found is not None:
        _say(found)
    ready = found is not None and found.valid and not found.blocking
    if st.button(
        "Start the sweep",
        type="primary",
        icon=":material/account_tree:",
        disabled=not ready,
        help=None if ready else "What is red above has to be mended first",
    ) and (begun := api.act("begin the sweep", lambda: api.client().sweep(wanted))):
        page.flash(f"{begun.name} has begun")
        st.switch_page("views/sweep.py", query_params={"id": begun.id})
    with st.expander("As a file for `calift sweep`"):
        document = yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)
        st.code(document, language="yaml", wrap_lines=True)


def _filled(spec: dict[str, Any], methods: dict[str, MethodInfo], what: str) -> dict[str, Any]:
    """The SweepSpec that the fields say.

    Raises:
        SpecError: a field does not hold what it should.
    """
    base = {key: value for key, value in spec.items() if key not in ("notes", "tags")}
    wanted: dict[str, Any] = {"name": f"sweep of {spec['name']}"[:60].rstrip(), "base": base}
    if what != "own":
        wanted["preset"] = what
    else:
        offered = list(methods)
        own = spec["method"]["kind"]
        wanted["methods"] = state.multi_choice(
            st.multiselect,
            "Methods",
            name="methods",
            options=offered,
            default=[own],
            format_func=lambda k: methods[k].title,
        ) or [own]
    row = st.columns(3)
    first = spec.get("train", {}).get("seed", 0)
    seeds = row[0].text_input("Seeds", f"{first}, {first + 1}, {first + 2}", key="sweep-seeds")
    most = row[1].number_input("At most so many runs", 1, 1000, 200, key="sweep-runs")
    hours = row[2].number_input(
        "Pause after so many hours of work", 0.0, 1e6, None, key="sweep-hours",
        placeholder="never", help="Spent and estimated together",
    )  # fmt: skip
    wanted |= {"seeds": _list(seeds, "Seeds"), "max_runs": int(most)}
    if hours:
        wanted["max_hours"] = float(hours)
    if what != "three-seeds":
        wanted["rate"] = _rate()
    if what == "own":
        values = st.text_area(
            "Values",
            key="sweep-values",
            placeholder="train.batch_size: 128, 256\nmethod.lambda_oc: 0, 0.2",
            help="One field of the RunSpec a line, every combination of them is run; a method's "
            "option goes to the methods that have it",
        )
        wanted["values"] = _values(values)
    return wanted


def _rate() -> dict[str, Any] | None:
    left, right = st.columns([2, 1])
    ladder = left.text_input(
        "Learning rates to choose from",
        key="sweep-ladder",
        placeholder="about each method's default",
        help="Each method's is the one with the best accuracy on ID validation, with a seed "
        "that is used for nothing else",
    )
    with right:
        every = st.toggle(
            "Every seed at every rate", key="sweep-every",
            help="Dearer; the comparison at equal ID accuracy then covers seeds, too",
        )  # fmt: skip
        own = st.toggle(
            "Choose each method's rate", value=True, key="sweep-rate",
            help="Off: the rate above is taken for all, or each method's default",
        )  # fmt: skip
    if not own:
        return None
    found: dict[str, Any] = {"every_seed": bool(every)}
    if ladder.strip():
        found["ladder"] = _list(ladder, "Learning rates to choose from")
    return found


def _list(given: str, what: str) -> list[Any]:
    found = read_document(f"[{given}]", what)
    if not isinstance(found, list) or any(isinstance(v, dict | list) for v in found):
        raise SpecError(f"{what} are values with commas between them, got {given!r}")
    return found


def _values(given: str) -> dict[str, list[Any]]:
    found = {}
    for line in given.splitlines():
        if line.strip():
            field, colon, listed = line.partition(":")
            if not colon:
                raise SpecError(
                    f"a line of Values is a field, a colon and its values, got {line.strip()!r}"
                )
            found[field.strip()] = _list(listed, field.strip())
    return found


def _say(found: SweepValidation) -> None:
    if not found.valid:
        lines = [f"- {text.md(e['pointer'])}: {text.md_prose(e['message'])}" for e in found.errors]
        st.error("Not valid yet:\n\n" + "\n".join(lines), icon=":material/rule:")
        return
    if found.estimate is not None:
        page.stats(_cards(found.estimate))
        st.caption("Configurations: " + text.md(", ".join(found.labels)))
    page.needs(found)


def _cards(e: SweepEstimate) -> list[tuple[str, str, str]]:
    further = e.runs_at_most - e.runs_at_least
    later = "known after a first run like these"
    return [
        ("Configurations", text.count(e.arms), ""),
        (
            "Runs",
            text.count(e.runs_at_least),
            f"and up to {further:,} at higher rates" if further else "",
        ),
        (
            "Time",
            text.duration(None if e.hours is None else 3600 * e.hours),
            "of one worker, at most" if e.hours is not None else later,
        ),
        ("Disk", text.size(e.disk_bytes), "" if e.disk_bytes is not None else later),
    ]
