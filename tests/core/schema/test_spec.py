"""RunSpec and its neighbours: what is accepted, what is refused and in which words."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from calift_core.errors import SpecError
from calift_core.schema.methods import METHOD_SPECS, MethodSpec, Tracer
from calift_core.schema.records import RECORD, LogRecord, MetricsRecord, ResumedRecord
from calift_core.schema.spec import ModelSpec, RunSpec, load_spec, parse_spec
from calift_core.schema.suite import FractionSpec, SuiteSpec
from calift_core.schema.train import ConfidenceSpec

few = settings(max_examples=40, deadline=None)
EXAMPLES = Path(__file__).parents[3] / "examples"
#: What the kinds that have no default for everything are given.
REQUIRED: dict[str, dict[str, Any]] = {
    "wise_ft": {"run": "a run"},
    "vrf": {"run": "a run"},
    "dawin": {"run": "a run"},
    "model_stock": {"runs": ["a run", "another"]},
}
KINDS = sorted(METHOD_SPECS)


def spec(**changes: Any) -> RunSpec:
    return parse_spec({"name": "a run", "method": {"kind": "carot"}} | changes)


def refusal(**changes: Any) -> str:
    with pytest.raises(SpecError) as caught:
        spec(**changes)
    return str(caught.value)


specs = st.builds(
    lambda kind, name, seed, epochs, lr, tags: spec(
        name=name,
        method={"kind": kind, **REQUIRED.get(kind, {})},
        train={"seed": seed, "epochs": epochs, "lr": lr},
        tags=tags,
    ),
    st.sampled_from(KINDS),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9 ._:+()/-]{0,20}", fullmatch=True),
    st.integers(0, 2**32 - 1),
    st.integers(1, 10_000),
    st.floats(1e-8, 1.0),
    st.lists(st.text(min_size=1, max_size=40), max_size=5),
)


@few
@given(specs)
def test_spec__json_round_trip_is_the_same_spec_with_the_same_hash(one):
    again = parse_spec(json.loads(one.model_dump_json()))
    assert again == one
    assert again.content_hash() == one.content_hash()
    assert again.model_dump_json() == one.model_dump_json()


@few
@given(specs)
def test_spec__yaml_file_round_trip_is_the_same_spec(tmp_path_factory, one):
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    path.write_text(yaml.safe_dump(one.model_dump(mode="json")))
    assert load_spec(path) == one


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.name)
def test_examples__are_valid(path):
    assert load_spec(path).method.kind == "carot"


def test_content_hash__ignores_what_does_not_decide_the_result():
    plain = spec()
    for change in (
        {"name": "another"},
        {"tags": ["a"]},
        {"notes": "why"},
        {"train": {"workers": 3}},
    ):
        assert spec(**change).content_hash() == plain.content_hash()
        assert spec(**change).model_dump_json() != plain.model_dump_json()


def test_content_hash__a_default_written_out_is_the_same_run():
    written = spec(method={"kind": "carot", "lambda_oc": 0.2, "lambda_sd": 1.5})
    assert written.content_hash() == spec().content_hash()


@pytest.mark.parametrize(
    "change",
    [
        {"method": {"kind": "carot", "lambda_oc": 0.21}},
        {"method": {"kind": "flyp"}},
        {"train": {"seed": 1}},
        {"train": {"precision": "fp32"}},
        {"suite": {"templates": "simple"}},
        {"suite": {"ood": {"far": "folder:/far"}}},
        {"model": {"pretrained": None}},
        {"evaluation": {"n_bins": 10}},
    ],
    ids=str,
)
def test_content_hash__changes_with_what_decides_the_result(change):
    assert spec(**change).content_hash() != spec().content_hash()


def test_spec__is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        spec().name = "other"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"trian": {}}, ("#/trian", "unknown field 'trian'. Did you mean 'train'?")),
        ({"train": {"epoch": 3}}, ("#/train/epoch: unknown field", "Did you mean 'epochs'?")),
        ({"train": {"learning_rate": 1}}, ("#/train/learning_rate", "Did you mean 'lr'?")),
        ({"batch-size": 3}, ("#/batch-size", "Did you mean train.batch_size?")),
        ({"train": {"lr": 0}}, ("#/train/lr", "greater than 0", "got 0")),
        ({"suite": {"ood": {"test": "/far"}}}, ("#/suite/ood", "'test' names an ID split")),
        ({"suite": {"ood": {"a b": "/far"}}}, ("#/suite/ood", "a far set's name has 1 to 64")),
        (
            {"suite": {"ood": {"art": "/far"}, "shifts": {"art": "/art"}}},
            ("#/suite", "'art' names a shift and a far set"),
        ),
        ({"train": {"lr": float("nan")}}, ("#/train/lr",)),
        ({"train": {"lr": 1e-5, "min_lr": 1e-3}}, ("min_lr must be ≤ lr", "0.001")),
        ({"train": {"batch_size": 10, "accumulation_steps": 3}}, ("multiple", "10 and 3")),
        ({"train": {"batch_size": 4, "accumulation_steps": 8}}, ("multiple", "4 and 8")),
        ({"train": {"crop_scale": [0.9, 0.5]}}, ("(low, high)", "(0.9, 0.5)")),
        ({"train": {"device": "gpu"}}, ("#/train/device", "'gpu'")),
        ({"suite": {"shifts": {"a b": "folder:x"}}}, ("shift's name", "'a b'")),
        ({"suite": {"shifts": {"test": "folder:x"}}}, ("'test' names an ID split",)),
        ({"suite": {"templates": ["a photo"]}}, ("exactly one {}", "'a photo'")),
        ({"suite": {"templates": []}}, ("at least one sentence",)),
        ({"suite": {"corruptions": {"severities": [1, 6]}}}, ("#/suite/corruptions", "got 6")),
        ({"suite": {"corruptions": {"severities": [2, 2]}}}, ("distinct", "[2, 2]")),
        ({"suite": {"fractions": {"validation": 0.6, "test": 0.5}}}, ("sum to 1.2",)),
        ({"suite": {"limits": {"exam": 3}}}, ("#/suite/limits",)),
        ({"name": "-a"}, ("starts with a letter or digit", "'-a'")),
        ({"method": {"kind": "carrot"}}, ("unknown method 'carrot'", "Did you mean 'carot'?")),
        ({"method": {"kind": "carot", "lambda_oc": -1}}, ("#/method/lambda_oc", "got -1")),
        (
            {"method": {"kind": "carot", "teacher_momentum_start": 0.95}},
            ("must not fall", "0.95 > end 0.9"),
        ),
        ({"method": {"kind": "flyp", "lambda_oc": 1}}, ("#/method/lambda_oc", "unknown field")),
        ({"method": {"kind": "wise_ft"}}, ("#/method/run", "Field required")),
        ({"method": {"kind": "wise_ft", "run": "a", "alpha": 1.1}}, ("#/method/alpha", "got 1.1")),
        ({"method": {"kind": "wise_ft", "run": "a", "sweep": [0, 2]}}, ("#/method/sweep/1",)),
        ({"method": {"kind": "model_stock", "runs": ["a"]}}, ("#/method/runs", "at least 2")),
        (
            {"method": {"kind": "model_stock", "runs": ["a", "b", "a"]}},
            ("the runs must differ", "['a', 'b', 'a']"),
        ),
        ({"method": {"kind": "tracer", "teacher_beta": 0}}, ("#/method/teacher_beta", "got 0")),
        ({"method": {"kind": "tracer", "preset": "mine"}}, ("#/method/preset", "'mine'")),
        ({"method": {"kind": "linear_probe", "strengths": []}}, ("#/method/strengths",)),
        ({"method": {"kind": "linear_probe", "strengths": [0.0]}}, ("#/method/strengths/0",)),
        ({"method": {"kind": "lipsum_ft", "n_texts": 0}}, ("#/method/n_texts", "got 0")),
        ({"method": {"kind": "lp_ft", "lp_epochs": 0}}, ("#/method/lp_epochs", "got 0")),
        (
            {"train": {"confidence": {"label_smoothing": 1.0}}},
            ("#/train/confidence/label_smoothing", "less than 1", "got 1.0"),
        ),
        (
            {"method": {"kind": "pretrain"}, "suite": {"shifts": {"a": "folder:x"}}},
            ("shifts and far sets belong to fine-tuning",),
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_spec__refuses_with_the_place_and_what_came(change, words):
    sentence = refusal(**change)
    for word in words:
        assert word in sentence


def test_spec__names_every_fault_at_once():
    sentence = refusal(name="", train={"epochs": 0, "lr": 2}, colour="red")
    for place in ("#/name", "#/train/epochs", "#/train/lr", "#/colour"):
        assert place in sentence


@pytest.mark.parametrize("document", [None, [], "text", 3])
def test_parse_spec__refuses_what_is_no_mapping(document):
    with pytest.raises(SpecError, match="is a mapping of fields, got"):
        parse_spec(document)


def test_load_spec__says_which_file_and_what_is_wrong(tmp_path):
    for name, content, words in (
        ("nothing.yaml", None, "nothing.yaml"),
        ("broken.yaml", b"name: [", "neither YAML nor JSON"),
        ("deep.json", b"[" * 100_000 + b"]" * 100_000, "deep.json.*at most 64 levels deep"),
        ("date.yaml", b"name: 2026-99-99", "date.yaml.*month must be in"),
        ("binary.yaml", b"\xff\xfe\x00", "cannot read"),
        ("evil.yaml", b"name: !!python/object/apply:os.getcwd []", "not determine a constructor"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(SpecError, match=words):
            load_spec(tmp_path / name)


def test_load_spec__reads_numbers_as_people_write_them(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: a\nmethod: {kind: flyp}\ntrain: {lr: 1e-5, eps: 1E-8}\n")
    assert load_spec(path).train.lr == 1e-5
    assert load_spec(path).train.eps == 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_methods__every_kind_has_what_a_form_and_a_list_need(kind):
    adapter = TypeAdapter(MethodSpec)
    model = METHOD_SPECS[kind]
    made = adapter.validate_python({"kind": kind, **REQUIRED.get(kind, {})})
    assert type(made) is model
    assert model.title
    assert model.summary.endswith(".")
    assert model.source
    assert bool(model.terms) == model.trains
    assert (model.family in ("supervised", "contrastive")) == model.trains
    runs = {"model_stock": ("a run", "another")}
    assert made.input_runs == runs.get(kind, ("a run",) if model.family == "merge" else ())


def numbers_of(field: dict[str, Any]) -> list[dict[str, Any]]:
    """The numbers in a field's schema: itself, its alternatives, its items."""
    if field.get("type") in ("number", "integer"):
        return [field]
    inner = [*field.get("anyOf", []), *([field["items"]] if "items" in field else [])]
    return [number for one in inner for number in numbers_of(one)]


COEFFICIENTS = [
    (kind, name, field)
    for kind in KINDS
    for name, field in METHOD_SPECS[kind].model_json_schema()["properties"].items()
    if name != "kind"
] + [
    ("confidence", name, field)
    for name, field in ConfidenceSpec.model_json_schema()["properties"].items()
]


def test_methods__every_option_says_what_it_is_where_from_and_in_which_range():
    for kind, name, field in COEFFICIENTS:
        assert field["title"], (kind, name)
        described = field["description"]
        assert "[" in described or len(described.split()) >= 3, (kind, name, described)
        for number in numbers_of(field):
            assert {"minimum", "exclusiveMinimum"} & set(number), (kind, name)
            if number["type"] == "number":
                assert {"maximum", "exclusiveMaximum"} & set(number), (kind, name)


def test_tracer__what_is_named_beats_the_preset_and_is_taken_as_it_is():
    named = Tracer(preset="RN50", lambda_sd=0.5, lambda_x=0.0, alpha_fd=7.0).fitted("ViT-B-16", 128)
    assert (named.preset, named.lambda_sd, named.lambda_x) == ("RN50", 0.5, 0.0)
    assert named.alpha_fd == 7
    assert Tracer(alpha_fd=0).fitted("ViT-B-16", 512).alpha_fd == 0
    paper = Tracer(preset="paper").fitted("RN50", 128)
    values = (paper.preset, paper.alpha_fd, paper.lambda_sd, paper.lambda_x)
    assert values == ("paper", 1, 0.9, 0.05)


@few
@given(st.lists(st.floats(0, 0.24), min_size=4, max_size=4))
def test_fractions__that_leave_training_images_are_accepted(shares):
    names = ("pretrain", "validation", "calibration", "test")
    assert FractionSpec(**dict(zip(names, shares, strict=True)))


@pytest.mark.parametrize(
    "record",
    [
        MetricsRecord(step=3, epoch=0.1, values={"loss": 1 / 3}),
        ResumedRecord(step=5),
        LogRecord(level="warning", message="größer"),
    ],
)
def test_records__a_line_reads_back_as_the_same_record(record):
    assert RECORD.validate_json(record.model_dump_json()) == record


def test_records__a_number_that_json_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="finite"):
        MetricsRecord(step=1, epoch=0.1, values={"loss": float("nan")})


def test_model_spec__a_folder_or_a_repository_brings_its_weights():
    for name in ("hf-hub:org/model", "local-dir:/data/model"):
        assert ModelSpec.model_validate({"name": name}).pretrained is None
    assert ModelSpec.model_validate({"name": "calift-tiny"}).pretrained == "typefaces"


@pytest.mark.parametrize(
    ("suite", "model", "pretrained"),
    [
        ({}, {}, "typefaces"),
        ({"id": "fashion-mnist"}, {}, "fashion-mnist"),
        ({"id": "fashion-mnist"}, {"name": "calift-tiny"}, "fashion-mnist"),
        ({"id": "fashion-mnist"}, {"pretrained": "typefaces"}, "typefaces"),
        ({"id": "fashion-mnist"}, {"pretrained": None}, None),
        ({"id": "folder:/data/photos"}, {}, "typefaces"),
        ({"id": "fashion-mnist"}, {"name": "hf-hub:org/model"}, None),
    ],
)
def test_spec__the_small_model_has_the_weights_of_its_suite_unless_it_says_otherwise(
    suite, model, pretrained
):
    spec = parse_spec({"name": "a", "method": {"kind": "flyp"}, "suite": suite, "model": model})
    assert spec.model.pretrained == pretrained
    assert parse_spec(spec.model_dump(mode="json")) == spec


def test_suite_spec__letters_are_read_as_they_were_learned():
    assert SuiteSpec().templates == SuiteSpec(id="typefaces").templates == "letters"
    assert SuiteSpec(id="typefaces", templates="simple").templates == "simple"
    assert SuiteSpec(id="fashion-mnist").templates == "openai_imagenet"
