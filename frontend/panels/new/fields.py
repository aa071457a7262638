"""The fields of a new run, drawn from the schemas, section by section."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from calift_core.catalogue import TINY
from calift_core.errors import SpecError
from calift_core.schema.spec import RunSpec, TrainSpec
from calift_core.schema.suite import BENCHMARK_CORRUPTIONS, EXTRA_CORRUPTIONS
from calift_core.schema.wire.service import DatasetInfo, MethodInfo, ModelInfo
from frontend import forms, pickers, text
from frontend.forms import Field, Path

#: Fields of a method that name finished runs of this service.
RUN_FIELDS = ("run", "runs")

#: What the field for corruptions offers.
CORRUPTIONS: dict[str, str] = {
    "benchmark": f"the {len(BENCHMARK_CORRUPTIONS)} of ImageNet-C",
    "all": f"those and {len(EXTRA_CORRUPTIONS)} more",
    **dict.fromkeys((*BENCHMARK_CORRUPTIONS, *EXTRA_CORRUPTIONS), ""),
}

#: Fields of Training that most people set; the rest is folded away.
TRAIN_FIRST = ("epochs", "batch_size", "lr", "weight_decay", "warmup_steps", "seed", "adapt")


@dataclass
class Form:
    """A form while it is drawn.

    Attributes:
        document: the partial RunSpec that it begins with.
        mark: part of the widgets' keys; another beginning has another mark.
        values: what the fields hold now, as JSON, by path.
        slots: a place below each field for what is wrong with it, by JSON pointer.
        fields: of a RunSpec, without those of the method.
    """

    document: dict[str, Any]
    mark: str
    method: MethodInfo
    values: dict[Path, Any] = field(default_factory=dict)
    slots: dict[str, Any] = field(default_factory=dict)
    fields: list[Field] = field(
        default_factory=lambda: forms.fields_of(RunSpec.model_json_schema())
    )
    own: list[Field] = field(init=False)

    def __post_init__(self) -> None:
        self.own = forms.fields_of(self.method.spec_schema, path=("method",))

    def section(self, name: str) -> list[Field]:
        """The fields of a part of the RunSpec, such as `train`."""
        return [f for f in self.fields if f.path[0] == name and len(f.path) > 1]

    def draw(
        self,
        fields: Sequence[Field],
        *,
        document: Mapping[str, Any] | None = None,
        mark: str = "",
        columns: int = 3,
        hints: Mapping[Path, str] | None = None,
        choices: Mapping[Path, dict[str, str]] | None = None,
        steps: Mapping[Path, float] | None = None,
        drawn: bool = True,
    ) -> None:
        """Draw fields side by side; wide ones take a line of their own.

        Args:
            fields: which, in order.
            document: what they begin with; default: the form's.
            mark: of their keys; default: the form's.
            hints: what stands in empty fields, by path.
            choices: known values and what they are, by path.
            steps: of the buttons of numbers, by path.
            drawn: false: they hold what they would begin with.
        """
        begun = self.document if document is None else document
        if not drawn:
            self.values |= {
                one.path: forms.untouched(one, forms.get(begun, one.path, one.default))
                for one in fields
            }
            return
        row: list[Any] = []
        for one in fields:
            chosen = (choices or {}).get(one.path)
            wide = one.kind in ("map", "counts", "lines", "texts") or (
                one.kind == "notes" and chosen is None
            )
            if wide:
                row, place = [], st.container()
            else:
                row = row or list(st.columns(columns))
                place = row.pop(0)
            with place:
                try:
                    self.values[one.path] = forms.draw(
                        one,
                        forms.get(begun, one.path, one.default),
                        key=key_of(mark or self.mark, one.path),
                        placeholder=(hints or {}).get(one.path, forms.hint_of(one)),
                        choices=chosen,
                        step=(steps or {}).get(one.path),
                    )
                except SpecError as error:
                    st.error(text.md_prose(error.message))
                    self.values[one.path] = one.default
                self.slots[one.pointer] = st.empty()


def key_of(mark: str, path: Path) -> str:
    """The session's key of a field's widget; `mark` tells one form from the next."""
    return f"new-{mark}-{'.'.join(path)}"


def _folded(form: Form, label: str, name: str, *, expanded: bool = False) -> tuple[Any, bool]:
    """A part that is folded away, and whether its fields are drawn: from the first opening on.

    Fields are most of what a browser has to make of this page, and most people open none of them.
    """
    key = f"new-{form.mark}-{name}-open"
    place = st.expander(label, expanded=expanded, key=key, on_change="rerun")
    once = f"{key}-once"
    if place.open:
        st.session_state[once] = True
    return place, bool(st.session_state.get(once))


def of_method(form: Form, *, expanded: bool = False) -> None:
    """The method's own options; a method that is not the document's begins with its defaults."""
    if not form.own:
        return
    kind = form.method.kind
    kept = form.document if forms.get(form.document, ("method", "kind")) == kind else {}
    mark = f"{form.mark}-{kind}"
    wants_runs = any(field.path[-1] in RUN_FIELDS for field in form.own)
    place, drawn = _folded(
        form, f"Options of {text.md(form.method.title)}", kind, expanded=expanded or wants_runs
    )
    with place:
        offered = _finished_runs(form.own, kept, mark) if drawn else {}
        hints = dict.fromkeys(offered, "choose finished runs, or type an id")
        form.draw(form.own, document=kept, mark=mark, choices=offered, hints=hints, drawn=drawn)


#: Fields of the suite, by path.
_OWN, _SHIFTS, _CORRUPTIONS = ("suite", "id"), ("suite", "shifts"), ("suite", "corruptions")
_FAR = ("suite", "ood")
_SHIFTED = {_SHIFTS, _FAR, *((*_CORRUPTIONS, part) for part in ("names", "severities", "limit"))}


def of_data(form: Form, datasets: Sequence[DatasetInfo]) -> None:
    """What is trained on."""
    form.draw(
        [f for f in form.section("suite") if f.path == _OWN],
        columns=1,
        choices={_OWN: {d.id: d.title if d.available else f"{d.title}, not here"
                        for d in datasets}},
    )  # fmt: skip


def of_shifts(form: Form) -> None:
    """What shifts are evaluated, and which far sets are predicted."""
    form.draw(
        [f for f in form.section("suite") if f.path in _SHIFTED],
        columns=2,
        choices={(*_CORRUPTIONS, "names"): CORRUPTIONS},
        hints={
            _SHIFTS: "art: /path/to/art",
            _FAR: "other: /path/to/other",
            (*_CORRUPTIONS, "limit"): "all",
        },
    )


def of_splits(form: Form) -> None:
    """What else can be said of the data."""
    place, drawn = _folded(form, "Prompts, class names, splits and limits", "splits")
    with place:
        form.draw(
            [f for f in form.section("suite") if f.path not in _SHIFTED | {_OWN}],
            hints={("suite", "class_names"): "guitar: acoustic guitar"},
            drawn=drawn,
        )


def of_model(form: Form, models: Sequence[ModelInfo]) -> None:
    """Which model, and with which weights it begins."""
    here = {m.name for m in models if m.available}
    form.draw(
        form.section("model"),
        columns=2,
        choices={
            ("model", "name"): {m.name: "" if m.name in here else "not here yet" for m in models},
            ("model", "pretrained"): {
                m.pretrained: m.name + ("" if m.available else ", not here yet")
                for m in reversed(models)
                if m.pretrained
            },
        },
        hints={("model", "pretrained"): "random weights"},
    )


def warn_of_toy(form: Form, suite: str) -> None:
    """Say that the embedded model knows nothing of somebody's own images."""
    if form.values["model", "name"] == TINY and suite.partition(":")[0] not in BUILT_IN:
        st.warning(
            f"{TINY} is a toy: it has seen letters, and little else. Your own images want a CLIP "
            "model, such as ViT-B-32 with weights laion2b_s34b_b79k.",
            icon=":material/toys:",
        )


#: Suites that the embedded model was made for or tried on.
BUILT_IN = ("", "typefaces", "fashion-mnist")


def fit(document: dict[str, Any], suite: str, model: str) -> None:
    """Leave out what presets say for the built-in data or for the toy alone."""
    if suite.partition(":")[0] not in BUILT_IN:
        document.get("suite", {}).pop("templates", None)
    if model != TINY:
        document.get("train", {}).pop("lr", None)


#: Steps of training that are proposed, and the least and most epochs.
_STEPS, _EPOCHS = 1000, (3, 30)


def propose_epochs(document: dict[str, Any], images: int) -> str:
    """Put as many epochs into a document as make about 1,000 steps; what was done, for people."""
    train = document.setdefault("train", {})
    batch = train.get("batch_size") or TrainSpec.model_fields["batch_size"].default
    steps = max(1, images // batch)
    train["epochs"] = min(max(round(_STEPS / steps), _EPOCHS[0]), _EPOCHS[1])
    return (
        f"{train['epochs']} epochs are proposed for {images:,} training images: about "
        f"{train['epochs'] * steps:,} steps of {batch}."
    )


def of_training(form: Form, *, expanded: bool = False) -> None:
    """How it is trained; what few people set is folded away."""
    train = form.section("train")
    hints, steps = _train_hints(form.method)
    place, drawn = _folded(form, "Training", "training", expanded=expanded)
    with place:
        if not form.method.trains:
            st.caption("This method does not train; seed, device and precision still count.")
        first = [f for f in train if f.path[-1] in TRAIN_FIRST]
        first.sort(key=lambda f: TRAIN_FIRST.index(f.path[-1]))
        form.draw(first, hints=hints, steps=steps, drawn=drawn)
    place, drawn = _folded(form, "More training settings", "more")
    with place:
        rest = [f for f in train if f.path[-1] not in TRAIN_FIRST]
        form.draw(rest, hints=hints, steps=steps, drawn=drawn)
        form.draw(form.section("resources"), drawn=drawn)


def of_the_rest(form: Form) -> None:
    """Evaluation, tags and notes."""
    place, drawn = _folded(form, "Evaluation, tags and notes", "rest")
    with place:
        form.draw(form.section("evaluation"), drawn=drawn)
        form.draw([f for f in form.fields if f.path in (("tags",), ("notes",))], drawn=drawn)


def name_box(document: dict[str, Any], kind: str, data: Any, mark: str) -> str:
    """The run's name: it follows method and data until somebody writes another."""
    proposed = document.get("name") or text.run_name(kind, str(data or "typefaces"))
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


def _finished_runs(
    fields: list[Field], document: dict[str, Any], mark: str
) -> dict[Path, dict[str, str]]:
    """What fields that name finished runs offer; other ids may still be typed."""
    wanted = [field.path for field in fields if field.path[-1] in RUN_FIELDS]
    if not wanted:
        return {}
    chosen: list[str] = []
    for path in wanted:
        value = st.session_state.get(key_of(mark, path), forms.get(document, path))
        chosen += [value] if isinstance(value, str) else list(value or ())
    kept = pickers.named_runs([run_id for run_id in chosen if run_id.isalnum()], quiet=True)
    own = str(forms.get(document, ("suite", "id"), ""))
    found = {run.id: run for run in [*kept, *pickers.find_runs(kept, own=own).runs]}
    names = pickers.labels(list(found.values()))
    offered = {
        run_id: f"{names[run_id]} · {run.method}"
        for run_id, run in found.items()
        if run.method not in ("zero_shot", "imported")
    }
    return dict.fromkeys(wanted, offered)


def _train_hints(method: MethodInfo) -> tuple[dict[Path, str], dict[Path, float]]:
    """The method's own defaults, shown where a field is empty."""
    hints: dict[Path, str] = {("train", "checkpoint_every_steps"): "once an epoch",
                              ("train", "warmup_steps"): "500 or a tenth of the run"}  # fmt: skip
    steps = {("train", "lr"): 1e-6, ("train", "min_lr"): 1e-7, ("train", "weight_decay"): 0.01,
             ("train", "clip_grad_norm"): 0.1}  # fmt: skip
    for name in ("lr", "weight_decay", "clip_grad_norm"):
        value = method.defaults.get(name, method.defaults.get(f"default_{name}"))
        hints["train", name] = f"{text.plain(value)} (the method's)" if value is not None else "off"
    adapted = method.defaults.get("adapted_lr")
    if adapted:
        hints["train", "lr"] = f"{text.plain(method.defaults['lr'])}; {adapted}"
    return hints, steps
