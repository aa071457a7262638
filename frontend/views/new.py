"""New run: a form made of the schemas, checked by the API as it is filled in."""

from __future__ import annotations

from typing import Any

import streamlit as st

from calift_core.schema.spec import as_uri
from calift_core.schema.wire.service import MethodInfo
from frontend import api, forms, page, state, text
from frontend.panels.new import fields
from frontend.panels.new.fields import Form
from frontend.panels.new.start import start
from frontend.panels.new.submit import submit
from frontend.panels.new.sweep import sweep


def _method(methods: dict[str, MethodInfo], given: str) -> MethodInfo:
    kind = state.choice(
        st.selectbox,
        "Method",
        name="method",
        options=[k for k, m in methods.items() if m.offered or k == given],
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
    """Draw the page."""
    page.head(
        "New run", "Every field comes from the method's schema; what is empty takes its default."
    )
    client = api.client()
    methods = {m.kind: m for m in api.fetch("list the methods", client.methods, key="methods")}
    models = api.fetch("list the models", client.models, key="models")
    datasets = api.fetch("list the data", client.datasets, key="datasets")
    document, mark = start(methods)
    left, right = st.columns([3, 4])
    with left:
        method = _method(methods, forms.get(document, ("method", "kind")))
    name_place = right.container()
    st.caption(f"{text.md(method.summary)} Source: {text.md(method.source)}.")

    form = Form(document, mark, method)
    fields.of_method(form)
    fields.of_data_and_model(form, datasets, models)
    fields.of_training(form)
    fields.of_the_rest(form)

    data, shifts = ("suite", "id"), ("suite", "shifts")
    form.values[data] = as_uri(form.values[data] or "")
    form.values[shifts] = {name: as_uri(uri) for name, uri in form.values[shifts].items()}
    with name_place:
        # It follows what is chosen below it, so it is drawn last.
        name = fields.name_box(document, method.kind, form.values[data], mark)
    titles = {f.pointer: f.title for f in [*form.fields, *form.own]}
    spec = _spec(form, name)
    submit(spec, titles, form.slots)
    sweep(spec, methods)


main()
