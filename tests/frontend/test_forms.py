"""Forms: every field of every schema gets a widget, and what is typed comes back as a RunSpec."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from streamlit.testing.v1 import AppTest

from calift_core.errors import SpecError
from calift_core.schema.methods import METHOD_SPECS
from calift_core.schema.spec import RunSpec
from frontend import forms, text
from frontend.forms import Field

SCHEMA = RunSpec.model_json_schema()
FIELDS = forms.fields_of(SCHEMA)
METHOD_FIELDS = {
    kind: forms.fields_of(spec.model_json_schema(), path=("method",))
    for kind, spec in METHOD_SPECS.items()
}


#: What a method cannot do without: runs that a person chooses.
NEEDED: dict[str, dict[str, Any]] = {
    "wise_ft": {"run": "one"},
    "vrf": {"run": "one"},
    "dawin": {"run": "one"},
    "model_stock": {"runs": ["one", "two"]},
}


def leaves(model: Any, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Paths of a model's fields, without a method's tag and the method itself."""
    found = set()
    for name, field in model.model_fields.items():
        if name in ("kind", "method"):
            continue
        inner = field.annotation
        if isinstance(inner, type) and hasattr(inner, "model_fields"):
            found |= leaves(inner, (*path, name))
        else:
            found.add((*path, name))
    return found


def test_fields__every_leaf_of_a_run_spec_has_one():
    assert {field.path for field in FIELDS} == leaves(RunSpec)


@pytest.mark.parametrize("kind", METHOD_SPECS)
def test_fields__every_option_of_a_method_has_one(kind):
    assert {f.path for f in METHOD_FIELDS[kind]} == leaves(METHOD_SPECS[kind], ("method",))


@pytest.mark.parametrize("kind", METHOD_SPECS)
def test_fields__have_words_for_people_and_defaults_survive_their_widgets(kind):
    for field in [*FIELDS, *METHOD_FIELDS[kind]]:
        assert field.title
        if not field.required:
            assert forms.from_widget(field, forms.to_widget(field, field.default)) == field.default


@pytest.mark.parametrize("kind", METHOD_SPECS)
def test_build__defaults_alone_are_the_shortest_spec(kind):
    document = forms.build({("name",): "a run"}, [*FIELDS, *METHOD_FIELDS[kind]])
    assert document == {"name": "a run"}
    method = {"kind": kind} | NEEDED.get(kind, {})
    spec = RunSpec.model_validate(document | {"method": method})
    assert spec == RunSpec.model_validate({"name": "a run", "method": method})


words = st.text(alphabet="abcdefg _-", min_size=1, max_size=8).map(str.strip).filter(bool)


def values_for(field: Field) -> st.SearchStrategy[Any]:
    """Values that a field may hold, as JSON."""
    low = -1000 if field.minimum is None else field.minimum
    high = low + 1000 if field.maximum is None else field.maximum
    match field.kind:
        case "integer":
            made = st.integers(int(low), int(high))
        case "number":
            made = st.floats(low, high, allow_nan=False)
        case "boolean":
            made = st.booleans()
        case "choice":
            made = st.sampled_from(field.options)
        case "text" | "notes":
            made = words
        case "lines":
            one = st.sampled_from(field.options) if field.options else words
            made = one | st.lists(words.map(lambda w: f"{w} {{}}"), min_size=1, max_size=3)
        case "texts":
            made = st.lists(words, max_size=3)
        case "values":
            made = st.lists(st.floats(low, high, allow_nan=False), max_size=3)
        case "numbers":
            made = st.sets(st.sampled_from(field.options), min_size=1).map(sorted)
        case "pair":
            made = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(list)
        case "map":
            made = st.dictionaries(words.filter(lambda w: ":" not in w), words, max_size=3)
        case "counts":
            made = st.dictionaries(st.sampled_from(field.options), st.integers(1, 10), max_size=3)
        case _:
            raise AssertionError(field.kind)
    return st.none() | made if field.nullable else made


@given(st.data())
def test_values__whatever_a_field_may_hold_survives_its_widget(data):
    field = data.draw(st.sampled_from([*FIELDS, *sum(METHOD_FIELDS.values(), [])]))
    value = data.draw(values_for(field))
    assert forms.from_widget(field, forms.to_widget(field, value)) == value


def field_at(*path: str) -> Field:
    every = [*FIELDS, *sum(METHOD_FIELDS.values(), [])]
    return next(field for field in every if field.path == path)


def test_untouched__a_value_that_no_widget_can_hold_stays_as_it_is():
    (field,) = (f for f in forms.fields_of(RunSpec.model_json_schema())
                if f.path == ("suite", "class_names"))  # fmt: skip
    assert forms.untouched(field, {"cat": " "}) == {"cat": " "}
    assert forms.untouched(field, {"cat": " tabby "}) == {"cat": "tabby"}


def test_lines__a_name_and_a_list_are_told_apart():
    templates = field_at("suite", "templates")
    assert forms.from_widget(templates, "openai_imagenet\n") == "openai_imagenet"
    assert forms.from_widget(templates, "a photo of a {}.") == ["a photo of a {}."]
    corruptions = field_at("suite", "corruptions", "names")
    assert forms.from_widget(corruptions, "all") == "all"
    assert forms.from_widget(corruptions, "fog") == ["fog"]
    assert forms.from_widget(corruptions, "") == []


def test_map__a_line_without_a_colon_is_an_error_that_names_the_line():
    seed, shifts = field_at("train", "seed"), field_at("suite", "shifts")
    assert (seed.minimum, seed.maximum) == (0, 2**32 - 1)  # exclusive bounds of the schema
    assert forms.hint_of(field_at("train", "lr")) == "the method's default"
    assert forms.from_widget(shifts, "art: folder:/data/art") == {"art": "folder:/data/art"}
    with pytest.raises(SpecError, match="'name: value', got 'art'"):
        forms.from_widget(shifts, "art")


def test_fields__an_unknown_form_is_an_error_and_not_a_missing_field():
    odd = {"properties": {"x": {"anyOf": [{"type": "integer"}, {"type": "string"}]}}}
    with pytest.raises(SpecError, match="no widget is known"):
        forms.fields_of(odd)


def form(kind: str) -> None:
    """A page with nothing but one method's whole form."""
    import streamlit as st

    from calift_core.schema.methods import METHOD_SPECS
    from calift_core.schema.spec import RunSpec
    from frontend import forms

    fields = forms.fields_of(RunSpec.model_json_schema())
    fields += forms.fields_of(METHOD_SPECS[kind].model_json_schema(), path=("method",))
    values = {
        field.path: forms.draw(field, field.default, key=".".join(field.path)) for field in fields
    }
    st.session_state["document"] = forms.build(values, fields)
    st.session_state["drawn"] = len(values)


def with_fields_of_their_own() -> Iterator[str]:
    """Methods that have a kind of field that none before them has."""
    seen = set()
    for kind, fields in METHOD_FIELDS.items():
        new = {(field.kind, field.minimum is None) for field in fields} - seen
        seen |= new
        if new or kind in NEEDED:
            yield kind


DRAWN = set(with_fields_of_their_own())


@pytest.mark.parametrize(
    "kind", [k if k in DRAWN else pytest.param(k, marks=pytest.mark.thorough) for k in METHOD_SPECS]
)
def test_draw__every_field_is_a_widget_and_the_form_is_a_valid_spec(kind):
    app = AppTest.from_function(form, kwargs={"kind": kind}, default_timeout=30).run()
    assert not app.exception
    assert app.session_state["drawn"] == len(FIELDS) + len(METHOD_FIELDS[kind])
    app.text_input(key="name").input("typed").run()
    document = app.session_state["document"]
    assert document == {"name": "typed"}
    RunSpec.model_validate(document | {"method": {"kind": kind} | NEEDED.get(kind, {})})


def test_values__numbers_are_read_with_commas_and_others_are_named():
    sweep = next(f for f in METHOD_FIELDS["wise_ft"] if f.path == ("method", "sweep"))
    assert (sweep.kind, sweep.minimum, sweep.maximum) == ("values", 0, 1)
    assert forms.to_widget(sweep, [0.0, 0.25, 1.0]) == "0.0, 0.25, 1.0"
    assert forms.from_widget(sweep, " 0,.5;1\n") == [0.0, 0.5, 1.0]
    assert forms.from_widget(sweep, "") == []
    for word in ("half", "nan", "inf"):
        with pytest.raises(SpecError, match=f"Path: expected numbers with commas, got '{word}'"):
            forms.from_widget(sweep, f"0, {word}")


def test_build__what_is_required_and_empty_is_left_to_validation():
    fields = METHOD_FIELDS["model_stock"]
    assert forms.build({("method", "runs"): []}, fields) == {}
    built = forms.build({("method", "runs"): ["a", "b"]}, fields)
    assert built == {"method": {"runs": ["a", "b"]}}


def run_form(kind: str) -> None:
    """A page with a merging method's fields, for which runs are offered."""
    import streamlit as st

    from calift_core.schema.methods import METHOD_SPECS
    from frontend import forms

    fields = forms.fields_of(METHOD_SPECS[kind].model_json_schema(), path=("method",))
    offered = {"aaa": "first", "bbb": "second"}
    values = {
        f.path: forms.draw(
            f, f.default, key=".".join(f.path), choices=offered if f.required else None
        )
        for f in fields
    }
    st.session_state["document"] = forms.build(values, fields)


def test_draw__known_values_are_offered_and_others_can_be_typed():
    one = AppTest.from_function(run_form, kwargs={"kind": "wise_ft"}, default_timeout=30).run()
    assert one.session_state["document"] == {}
    assert one.selectbox(key="method.run").options == ["aaa · first", "bbb · second"]
    one.selectbox(key="method.run").set_value("bbb").run()
    assert one.session_state["document"] == {"method": {"run": "bbb"}}
    two = AppTest.from_function(run_form, kwargs={"kind": "model_stock"}, default_timeout=30).run()
    two.multiselect(key="method.runs").set_value(["bbb", "aaa"]).run()
    assert not two.exception
    assert two.session_state["document"] == {"method": {"runs": ["bbb", "aaa"]}}


def test_draw__what_is_typed_reaches_the_spec():
    app = AppTest.from_function(form, kwargs={"kind": "carot"}, default_timeout=30).run()
    app.text_input(key="name").input("typed")
    app.number_input(key="method.lambda_oc").set_value(0.35)
    app.number_input(key="train.lr").set_value(3e-5)
    app.selectbox(key="train.precision").select("bf16")
    app.toggle(key="train.horizontal_flip").set_value(True)
    app.text_area(key="suite.shifts").input("art: folder:/data/art\nsketch: folder:/data/sketch")
    app.multiselect(key="suite.corruptions.severities").set_value([5, 2])
    app.number_input(key="suite.limits-train").set_value(100)
    app.number_input(key="train.betas-1").set_value(0.98)
    app.text_area(key="tags").input("one\ntwo").run()
    assert not app.exception
    document = app.session_state["document"]
    document["method"]["kind"] = "carot"
    spec = RunSpec.model_validate(document)
    assert spec.method.lambda_oc == 0.35
    assert spec.train.lr == 3e-5
    assert spec.train.precision == "bf16"
    assert spec.train.horizontal_flip
    assert spec.train.betas == (0.9, 0.98)
    assert spec.suite.shifts == {"art": "folder:/data/art", "sketch": "folder:/data/sketch"}
    assert spec.suite.corruptions.severities == (2, 5)
    assert spec.suite.limits == {"train": 100}
    assert spec.tags == ("one", "two")


@pytest.mark.parametrize(
    ("suite", "name"),
    [
        ("fashion-mnist", "lp-ft on fashion-mnist"),
        ("pacs:sketch", "lp-ft on pacs sketch"),
        ("pacs:/data/PACS#art_painting", "lp-ft on pacs art_painting"),
        ("imagenet:/data/imagenet", "lp-ft on imagenet"),
        ("folder:/data/my birds/", "lp-ft on my birds"),
        ("folder:/data/Vögel & co", "lp-ft on V-gel - co"),
        ("domains:/data/streets#night", "lp-ft on streets night"),
        ("folder:/", "lp-ft on folder"),
    ],
)
def test_run_name__is_of_method_and_data_and_always_allowed(suite, name):
    assert text.run_name("lp_ft", suite) == name
    RunSpec.model_validate({"name": name, "method": {"kind": "flyp"}})
