"""New run in three steps: data, what for, what it takes; every setting folded away below."""

from typing import Any

import streamlit as st

from calift_core.schema.suite import as_uri
from calift_core.schema.wire.service import MethodInfo
from frontend import api, forms, page, state, text
from frontend.panels.new import bring, differs, fields
from frontend.panels.new.data import look
from frontend.panels.new.fields import Form
from frontend.panels.new.start import INTENTS, intent, start
from frontend.panels.new.submit import submit
from frontend.panels.new.sweep import sweep


def _method(methods: dict[str, MethodInfo], given: str) -> MethodInfo:
    kind = state.choice(
        st.selectbox,
        "Method",
        name="method",
        options=list(methods),
        default=given,
        format_func=lambda k: methods[k].title,
    )
    return methods[kind]


def _spec(form: Form, name: str) -> dict[str, Any]:
    """The RunSpec that the form says, without what equals its default."""
    spec: dict[str, Any] = {"name": name.strip(), "method": {"kind": form.method.kind}}
    built = forms.build(form.values, [*form.fields, *form.own])
    built.pop("name", None)
    for key, part in built.items():
        spec[key] = {**spec.get(key, {}), **part} if isinstance(part, dict) else part
    return spec


def main() -> None:
    """Draw the page: three steps, and below them what most people leave as it is."""
    page.head("New run", "Bring data, choose model and goal, see the estimated cost.")
    client = api.client()
    methods = {m.kind: m for m in api.ask("list the methods", client.methods)}
    models = api.ask("list the models", client.models)
    datasets = api.ask("list the data", client.datasets)
    data_step, intent_step, cost_step, knobs = (st.container() for _ in range(4))
    with data_step:
        st.header("1. Data, model and method", anchor=False)
        own, middle, rest = (st.container() for _ in range(3))
    copied = state.param("clone") or state.param("input")

    with intent_step:
        st.header("2. Goal", anchor=False)
        chosen = "" if copied else intent()
        if copied:
            st.caption("As the run that this begins with; every setting is below.")
    with knobs:
        st.header("Settings", anchor=False)
        document, mark = start(methods)
        given = forms.get(document, ("method", "kind"))
        if chosen:
            wanted = INTENTS[chosen][1]
            given = wanted if wanted in methods else given
    with middle:
        left, right = st.columns([1, 2])
    with left:
        method = _method(methods, given)
    form = Form(document, mark, method)
    data = ("suite", "id")
    with own:
        bring.offer(fields.key_of(form.mark, data))
        fields.of_data(form, datasets)
        form.values[data] = as_uri(form.values[data] or "")
    suite = str(form.values[data] or "typefaces")
    with right:
        fields.of_model(form, models)
    if not copied:
        fields.fit(document, suite, form.values["model", "name"])
    with middle:
        fields.warn_of_toy(form, suite)
    with rest:
        fields.of_shifts(form)
        for sets in (("suite", "shifts"), ("suite", "ood")):
            form.values[sets] = {name: as_uri(uri) for name, uri in form.values[sets].items()}
        seen = st.container()
    with knobs:
        st.caption(f"{text.md(method.summary)} Source: {text.md(method.source)}.")
        name_place = st.container()
        fields.of_method(form, expanded=bool(copied))
        fields.of_splits(form)
    grouped = form.values.get(("suite", "group_by"))
    with seen:
        found = look(suite, str(grouped) if grouped else None)
    images = found.parts.get("train") if found else None
    proposed = ""
    if images and method.trains and not copied and suite.partition(":")[0] not in fields.BUILT_IN:
        proposed = fields.propose_epochs(document, images)
    with knobs:
        fields.of_training(form, expanded=bool(copied))
        fields.of_the_rest(form)
    with name_place:
        # It follows what is chosen below it, so it is drawn last.
        name = fields.name_box(document, method.kind, form.values[data], mark)
    titles = {f.pointer: f.title for f in [*form.fields, *form.own]}
    spec = _spec(form, name)
    with cost_step:
        st.header("3. Estimated cost", anchor=False)
        if proposed:
            st.caption(f"{proposed} Change them under *Training*.")
        preset = INTENTS[chosen][2] if chosen else ""
        if clone := state.param("clone"):
            run = api.ask(f"load the run {clone}", client.run, clone)
            differs.show(run.spec, spec, run.name)
        alone = st.container()
        if not sweep(spec, methods, intent=preset):
            with alone:
                submit(spec, titles, form.slots)


main()
