"""New run: a form made of the schemas, checked by the API as it is filled in."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import streamlit as st
import yaml

from calift_core.errors import SpecError
from calift_core.schema.spec import BENCHMARK_CORRUPTIONS, EXTRA_CORRUPTIONS, RunSpec, as_uri
from calift_core.schema.wire import MethodInfo, Validation
from frontend import forms, state, text, ui
from frontend.forms import Field, Path

#: Partial specs to begin with.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "quick": (
        "Quick look: built-in data, two epochs",
        {
            # The published rates are for large models; this is the small one's (docs/results.md).
            "train": {"epochs": 2, "batch_size": 256, "lr": 1e-3},
            "suite": {"templates": "plain",
                      "corruptions": {"names": ["gaussian_noise", "jpeg_compression"],
                                      "severities": [1, 3, 5], "limit": 2000}},
        },
    ),
    "benchmark": (
        "Benchmark: built-in data, the 15 corruptions",
        {
            "train": {"epochs": 10, "batch_size": 256, "lr": 1e-3},
            "suite": {"templates": "plain",
                      "corruptions": {"names": "benchmark", "severities": [1, 2, 3, 4, 5],
                                      "limit": 5000}},
        },
    ),
    "vit": (
        "ViT-B/16 from OpenAI's weights, your folders",
        {
            "model": {"name": "ViT-B-16", "pretrained": "openai"},
            "suite": {"id": "folder:"},
            "train": {"epochs": 10, "batch_size": 512, "lr": 1e-5, "warmup_steps": 500},
        },
    ),
    "blank": ("Everything at its default", {}),
}  # fmt: skip

#: Fields of a method that name finished runs of this service.
RUN_FIELDS = ("run", "runs")

#: What the field for corruptions offers.
CORRUPTIONS: dict[str, str] = {
    "benchmark": f"the {len(BENCHMARK_CORRUPTIONS)} of ImageNet-C",
    "all": f"those and {len(EXTRA_CORRUPTIONS)} more",
    **dict.fromkeys((*BENCHMARK_CORRUPTIONS, *EXTRA_CORRUPTIONS), ""),
}

#: Fields of Training that most people set; the rest is folded away.
TRAIN_FIRST = ("epochs", "batch_size", "lr", "weight_decay", "warmup_steps", "seed")


def _start(methods: dict[str, MethodInfo]) -> tuple[dict[str, Any], str]:
    """The document to begin with and a mark that changes with it."""
    clone, source = state.param("clone"), state.param("input")
    given = clone or source
    if given and _is_imported(given):
        clone = source = None
    if clone:
        run = ui.fetch(f"load the run {clone}", lambda: ui.client().run(clone), key=f"run-{clone}")
        document = copy.deepcopy(dict(run.spec))
        document["name"] = f"{run.name} copy"[:120]
        alpha = _share(state.param("alpha"))
        if alpha is not None and "alpha" in document["method"]:
            document["method"]["alpha"] = alpha
            document["name"] = f"{run.name[:100]} at {alpha:g}"
        st.caption(f"A copy of {text.md(run.name)}, to be changed.")
        st.page_link("views/new.py", label="Start from a preset instead", icon=":material/undo:")
        return document, f"clone-{clone}{'' if alpha is None else f'-{alpha:g}'}"
    if source:
        return _made_from(source)
    preset = state.choice(
        st.selectbox,
        "Start from",
        name="preset",
        options=list(PRESETS),
        format_func=lambda name: PRESETS[name][0],
    )
    document = copy.deepcopy(PRESETS[preset][1])
    kind = "carot" if "carot" in methods else next(iter(methods))
    document.setdefault("method", {"kind": kind})
    return document, preset


def _is_imported(run_id: str) -> bool:
    """Whether a run has nothing to begin from, and a word about it if so."""
    run = ui.fetch(f"load the run {run_id}", lambda: ui.client().run(run_id), key=f"run-{run_id}")
    if run.method != "imported":
        return False
    ui.empty(
        "Nothing to run again",
        f"The predictions of {run.name} were imported; no model and no settings came with them.",
    )
    return True


def _share(given: str | None) -> float | None:
    """A number from 0 to 1 of the URL."""
    try:
        value = float(given or "")
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def _made_from(run_id: str) -> tuple[dict[str, Any], str]:
    """A merge of a finished run: its model and data, and a method that names it."""
    run = ui.fetch(f"load the run {run_id}", lambda: ui.client().run(run_id), key=f"run-{run_id}")
    document = copy.deepcopy(dict(run.spec))
    kind = state.param("method")
    document["method"] = (
        {"kind": "model_stock", "runs": [run_id]}
        if kind == "model_stock"
        else {"kind": "wise_ft", "run": run_id}
    )
    document.get("train", {}).pop("confidence", None)  # nothing is trained
    document["name"] = f"{document['method']['kind'].replace('_', '-')} of {run.name}"[:120]
    st.caption(f"On the model and the data of {text.md(run.name)}.")
    st.page_link("views/new.py", label="Start from a preset instead", icon=":material/undo:")
    return document, f"input-{run_id}-{document['method']['kind']}"


def _finished_runs(
    fields: list[Field], document: dict[str, Any], mark: str
) -> dict[Path, dict[str, str]]:
    """What fields that name finished runs offer; other ids may still be typed."""
    wanted = [field.path for field in fields if field.path[-1] in RUN_FIELDS]
    if not wanted:
        return {}
    chosen: list[str] = []
    for path in wanted:
        value = st.session_state.get(_key(mark, path), forms.get(document, path))
        chosen += [value] if isinstance(value, str) else list(value or ())
    kept = ui.named_runs([run_id for run_id in chosen if run_id.isalnum()], quiet=True)
    own = str(forms.get(document, ("suite", "id"), ""))
    found = {run.id: run for run in [*kept, *ui.find_runs(kept, own=own).runs]}
    names = ui.labels(list(found.values()))
    offered = {
        run_id: f"{names[run_id]} · {run.method}"
        for run_id, run in found.items()
        if run.method not in ("zero_shot", "imported")
    }
    return dict.fromkeys(wanted, offered)


def _key(mark: str, path: Path) -> str:
    """Of a field's widget."""
    return f"new-{mark}-{'.'.join(path)}"


def _grid(
    fields: list[Field],
    document: dict[str, Any],
    mark: str,
    *,
    columns: int = 3,
    hints: dict[Path, str] | None = None,
    choices: dict[Path, dict[str, str]] | None = None,
    steps: dict[Path, float] | None = None,
    slots: dict[str, Any],
) -> dict[Path, Any]:
    """Draw fields side by side; wide ones take a line of their own.

    A place below each, for what is wrong with it, goes into `slots` by the field's pointer.
    """
    values: dict[Path, Any] = {}
    row: list[Any] = []
    for field in fields:
        chosen = (choices or {}).get(field.path)
        wide = field.kind in ("map", "counts", "lines", "texts") or (
            field.kind == "notes" and chosen is None
        )
        if wide:
            place = st.container()
            row = []
        else:
            if not row:
                row = list(st.columns(columns))
            place = row.pop(0)
        with place:
            try:
                values[field.path] = forms.draw(
                    field,
                    forms.get(document, field.path, field.default),
                    key=_key(mark, field.path),
                    placeholder=(hints or {}).get(field.path, forms.hint_of(field)),
                    choices=chosen,
                    step=(steps or {}).get(field.path),
                )
            except SpecError as error:
                st.error(text.md_prose(error.message))
                values[field.path] = field.default
            slots[field.pointer] = st.empty()
    return values


@st.cache_data(ttl=30, max_entries=200, show_spinner=False)
def _validate(document: dict[str, Any]) -> Validation:
    return ui.client().validate(document)


def _faults(validation: Validation, titles: dict[str, str], slots: dict[str, Any]) -> None:
    """Every fault above the button, and once more below the field that it is of."""
    lines = []
    for fault in validation.errors:
        pointer = fault.get("pointer", "").replace("#/spec/", "#/")
        message = text.md_prose(fault.get("message", ""))
        place = titles.get(pointer) or pointer.removeprefix("#/").replace("/", " › ")
        lines.append(f"- **{text.md(place)}**: {message}")
        while pointer and pointer not in slots:
            pointer = pointer.rpartition("/")[0]
        if pointer:
            slots[pointer].markdown(f":red[:material/error: {message}]")
    st.error("Not valid yet:\n\n" + "\n".join(lines), icon=":material/rule:")


def _estimate(validation: Validation) -> None:
    e = validation.estimate
    shifts = [n for n in e.shifts.values() if n is not None]
    judged = [("test", e.parts.get("test")), ("shifts", sum(shifts)),
              ("corruptions", e.corrupted_images)]  # fmt: skip
    cards = [
        ("Training images", text.count(e.train_images), ""),
        ("Steps", text.count(e.steps), ""),
        (
            "Images to evaluate",
            text.count(e.evaluation_images),
            ", ".join(f"{name} {n:,}" for name, n in judged if n) if len(e.parts) else "",
        ),
        ("To choose and calibrate on", text.count(e.selection_images), "ID images, predicted too"),
        ("Time", text.duration(e.seconds), "" if e.seconds else "known after a first run like it"),
    ]
    if e.parameters:
        cards.insert(2, ("Parameters", text.count(e.parameters), ""))
    ui.stats(cards)
    if e.basis:
        st.caption(text.md(e.basis[:1].upper() + e.basis[1:] + "."))


def main() -> None:
    """Draw the page."""
    ui.head(
        "New run", "Every field comes from the method's schema; what is empty takes its default."
    )
    api = ui.client()
    methods = {m.kind: m for m in ui.fetch("list the methods", api.methods, key="methods")}
    models = ui.fetch("list the models", api.models, key="models")
    datasets = ui.fetch("list the data", api.datasets, key="datasets")
    document, mark = _start(methods)

    given = forms.get(document, ("method", "kind"))
    top = st.columns([3, 4])
    with top[0]:
        kind = state.choice(
            st.selectbox,
            "Method",
            name="method",
            options=[k for k, m in methods.items() if m.offered or k == given],
            default=given,
            format_func=lambda k: methods[k].title,
        )
    method = methods[kind]
    name_place = top[1].container()
    st.caption(f"{text.md(method.summary)} Source: {text.md(method.source)}.")

    schema = RunSpec.model_json_schema()
    fields = forms.fields_of(schema)
    by_section = {s: [f for f in fields if f.path[0] == s and len(f.path) > 1]
                  for s in ("model", "suite", "train", "evaluation")}  # fmt: skip
    own = forms.fields_of(method.spec_schema, path=("method",))
    values: dict[Path, Any] = {}
    slots: dict[str, Any] = {}
    draw = partial(_grid, slots=slots)

    if own:
        with st.container(border=True):
            st.markdown(f"**{text.md(method.title)}**")
            kept = document if given == kind else {}
            offered = _finished_runs(own, kept, f"{mark}-{kind}")
            values |= draw(
                own,
                kept,
                f"{mark}-{kind}",
                choices=offered,
                hints=dict.fromkeys(offered, "choose finished runs, or type an id"),
            )
    with st.container(border=True):
        st.markdown("**Data and model**")
        here = {m.name for m in models if m.available}
        known_models = {m.name: "" if m.name in here else "not here yet" for m in models}
        known_weights = {
            m.pretrained: f"{m.name}" + ("" if m.available else ", not here yet")
            for m in reversed(models)
            if m.pretrained
        }
        first = [f for f in by_section["suite"] if f.path == ("suite", "id")]
        values |= draw(
            first + by_section["model"],
            document,
            mark,
            choices={
                ("suite", "id"): {d.id: d.title if d.available else f"{d.title}, not here"
                                  for d in datasets},
                ("model", "name"): known_models,
                ("model", "pretrained"): known_weights,
            },
            hints={("model", "pretrained"): "random weights"},
        )  # fmt: skip
        corruptions = ("suite", "corruptions")
        shift_names = {("suite", "shifts")}
        shift_names |= {(*corruptions, part) for part in ("names", "severities", "limit")}
        values |= draw(
            [f for f in by_section["suite"] if f.path in shift_names],
            document,
            mark,
            columns=2,
            choices={("suite", "corruptions", "names"): CORRUPTIONS},
            hints={
                ("suite", "shifts"): "art: /path/to/art",
                ("suite", "corruptions", "limit"): "all",
            },
        )
        with st.expander("Prompts, class names, splits and limits"):
            rest = [f for f in by_section["suite"] if f.path not in shift_names | {("suite", "id")}]
            values |= draw(
                rest, document, mark, hints={("suite", "class_names"): "guitar: acoustic guitar"}
            )
    with st.container(border=True):
        st.markdown("**Training**")
        hints, steps = _train_hints(method)
        train = by_section["train"]
        if not method.trains:
            st.caption("This method does not train; seed, device and precision still count.")
        main_fields = [f for f in train if f.path[-1] in TRAIN_FIRST]
        main_fields.sort(key=lambda f: TRAIN_FIRST.index(f.path[-1]))
        values |= draw(main_fields, document, mark, hints=hints, steps=steps)
        with st.expander("More training settings"):
            values |= draw(
                [f for f in train if f.path[-1] not in TRAIN_FIRST],
                document,
                mark,
                hints=hints,
                steps=steps,
            )
    with st.expander("Evaluation, tags and notes"):
        values |= draw(by_section["evaluation"], document, mark)
        last = [f for f in fields if f.path in (("tags",), ("notes",))]
        values |= draw(last, document, mark)

    data, shifts = ("suite", "id"), ("suite", "shifts")
    values[data] = as_uri(values[data] or "")
    values[shifts] = {name: as_uri(uri) for name, uri in values[shifts].items()}
    with name_place:
        name = _name(document, kind, values[data], mark)
    spec = {"name": name.strip(), "method": {"kind": kind}}
    built = forms.build(values, [*fields, *own])
    built.pop("name", None)
    for key, part in built.items():
        spec[key] = {**spec.get(key, {}), **part} if isinstance(part, dict) else part

    _submit(spec, {f.pointer: f.title for f in [*fields, *own]}, slots)


def _name(document: dict[str, Any], kind: str, data: Any, mark: str) -> str:
    """The run's name: it follows method and data until somebody writes another."""
    proposed = document.get("name") or text.run_name(kind, str(data or "fashion-mnist"))
    key, last = f"new-{mark}-name", f"new-{mark}-name-proposed"
    held = st.session_state.get(key, "")
    if not held.strip() or held == st.session_state.get(last):
        st.session_state[key] = proposed
    st.session_state[last] = proposed
    return st.text_input(
        "Name",
        max_chars=120,
        key=key,
        help="Follows method and data until you write another; empty it to have that again",
    )


def _train_hints(method: MethodInfo) -> tuple[dict[Path, str], dict[Path, float]]:
    """The method's own defaults, shown where a field is empty."""
    hints: dict[Path, str] = {("train", "checkpoint_every_steps"): "once an epoch",
                              ("train", "warmup_steps"): "500 or a tenth of the run"}  # fmt: skip
    steps = {("train", "lr"): 1e-6, ("train", "min_lr"): 1e-7, ("train", "weight_decay"): 0.01,
             ("train", "clip_grad_norm"): 0.1}  # fmt: skip
    for name in ("lr", "weight_decay", "clip_grad_norm"):
        value = method.defaults.get(name, method.defaults.get(f"default_{name}"))
        hints["train", name] = f"{text.plain(value)} (the method's)" if value is not None else "off"
    return hints, steps


def _submit(spec: dict[str, Any], titles: dict[str, str], slots: dict[str, Any]) -> None:
    st.subheader("Check and submit", anchor=False)
    locked = ui.locked("submit")
    if locked:
        st.info(locked, icon=":material/lock:")
    validation = None if locked else ui.act("check the run", lambda: _validate(spec))
    if validation is not None and not validation.valid:
        _faults(validation, titles, slots)
    elif validation is not None:
        _estimate(validation)
        for sentence in validation.missing:
            show = st.error if sentence in validation.blocking else st.warning
            show(text.md_prose(sentence), icon=":material/inventory_2:")
        for sentence in validation.warnings:
            st.warning(text.md_prose(sentence), icon=":material/timer:")
    with st.container(horizontal=True, vertical_alignment="center"):
        ready = validation is not None and validation.valid and not validation.blocking
        if st.button(
            "Submit",
            type="primary",
            icon=":material/play_arrow:",
            disabled=not ready,
            help=None if ready else "What is red above has to be mended first",
        ) and (run := ui.act("submit the run", lambda: ui.client().submit(spec))):
            ui.flash(f"{run.name} is queued")
            st.switch_page("views/run.py", query_params={"id": run.id})
    document = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, default_flow_style=None)
    with st.expander("As a file for `calift train` and `calift submit`"):
        st.code(document, language="yaml", wrap_lines=True)
        st.download_button(
            "RunSpec, YAML",
            document,
            "run.yaml",
            "application/yaml",
            icon=":material/download:",
            on_click="ignore",
        )


main()
