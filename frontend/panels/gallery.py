"""The images behind a number, on any page: `open_samples` chooses them, `draw` shows them.

What is chosen is one parameter of the address, so links, reloads and saved views keep it. A page
that lets people choose calls `open_samples` in a callback (before it is drawn again) and `draw`
where the images belong::

    gallery.open_samples(Chosen(evaluation=evaluation.id, where="label == 3"))
    ...
    gallery.draw()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlencode

import streamlit as st
from pydantic import Field

from calift_core.client import Client
from calift_core.errors import CaliftError, SpecError
from calift_core.schema.wire.queries import (
    MAX_CONDITION,
    MAX_TEXT,
    LooksQuery,
    SampleFilter,
    SamplesQuery,
)
from calift_core.schema.wire.results import (
    DoubtfulLabels,
    Evaluation,
    Sample,
    SampleLooks,
    SamplePage,
)
from frontend import address, api, components, page, pickers, state, text
from frontend.panels import correcting, shared, tagging

_ON_A_PAGE, _SIZE = 24, 224
#: Logits of an evaluation up to which likely label errors are looked for unasked.
_ASKED_UNASKED = 5_000_000
_PARAM, _OPENED = "images", "opened-sample"
_LASSO = "inside the lasso"

ORDERS = {
    "-gap": "most over-confident",
    "gap": "most under-confident",
    "-nll": "largest NLL",
    "-confidence": "most confident",
    "confidence": "least confident",
    "stored": "as stored",
}
_PAIRED_ORDERS = {"change": "most forgotten", "-change": "most gained"}
CONDITION_HELP = (
    "Columns: confidence, correct, label, predicted, rank, nll, brier, id, cluster, tag. "
    'Comparisons joined by and, or, not; `label in (3, "shirt")`.'
)
OUTCOMES = {
    "": "all",
    "lost": "forgotten: wrong now, right before",
    "gained": "gained: right now, wrong before",
    "both": "right in both",
    "neither": "wrong in both",
}


class Chosen(SampleFilter):
    """Samples that are to be shown: those of an evaluation that meet every condition.

    `doubtful`: only those whose label all runs of the suite surely contradict; the other conditions
    then count no more. `text`, `like`: ranked by the similarity with a text or with an image.
    """

    evaluation: str = Field(min_length=1, max_length=64)
    doubtful: bool = False
    text: str | None = Field(default=None, max_length=MAX_TEXT)
    like: str | None = Field(default=None, max_length=1024)

    def replaced(self, **changes: Any) -> Chosen:
        """The same with some of it changed; empty texts leave nothing out."""
        return self.model_copy(update={k: v if v != "" else None for k, v in changes.items()})

    def filter(self) -> SampleFilter:
        own = set(SampleFilter.model_fields)
        return SampleFilter.of(params=self.model_dump(include=own, exclude_defaults=True))


def open_samples(chosen: Chosen | None) -> None:
    """Choose the samples that `draw` shows, in the address; None closes the gallery."""
    address.put({_PARAM: None if chosen is None else as_text(chosen)})


def chosen_samples() -> Chosen | None:
    """What the address has chosen; None where it names nothing that could be shown."""
    return from_text(address.get(_PARAM) or "")


def as_text(chosen: Chosen) -> str:
    """A choice as the address holds it, for links to a page that draws a gallery."""
    # A float's own text is exact: a sample at the edge of a bin stays on its side.
    return urlencode(chosen.model_dump(exclude_defaults=True))


def from_text(given: str) -> Chosen | None:
    """What an address says; None where it says nothing that could be shown."""
    try:
        found = Chosen.of(params=dict(parse_qsl(given)))
    except SpecError:
        return None
    return found if found.against else found.replaced(outcome=None)


# ---- What is shown -----------------------------------------------------------------------------


def draw(here: Sequence[Evaluation] = (), *, temperature: float | None = None) -> None:
    """Show the samples that the address has chosen, a page at a time; nothing where it has none.

    Args:
        here: evaluations that the page is about. What was chosen of another then is shown of the
            first of these, by the same conditions; without any, the visitor chooses the data.
        temperature: the page's own, which the confidences are at.
    """
    now = chosen_samples()
    if now is None:
        return
    if here and now.evaluation not in {e.id for e in here}:
        now = now.replaced(evaluation=here[0].id, against=None, outcome=None, like=None, area=None)
        open_samples(now)
    if temperature is not None:
        now = now.replaced(temperature=temperature)
    evaluation = next((e for e in here if e.id == now.evaluation), None) or api.act(
        "load the evaluation whose samples are chosen", partial(api.evaluation, now.evaluation)
    )
    if evaluation is None:
        return  # what else the page shows is none of its fault
    with st.container(key="gallery"):
        _head(evaluation, now)
        _search(evaluation, now)
        now, order, top = _controls(evaluation, now, free=not here)
        _images(evaluation, now, order, top)


def draw_all(here: Sequence[Evaluation]) -> None:
    """Show the chosen samples, all of the first evaluation where none are chosen."""
    if chosen_samples() is None:
        open_samples(Chosen(evaluation=here[0].id))
    draw(here)


def _search(evaluation: Evaluation, now: Chosen) -> None:
    """A text, or an image of the gallery, that images are ranked by."""
    left, right = st.columns(2, vertical_alignment="bottom")
    with left.container(horizontal=True, vertical_alignment="bottom"):
        _type(
            "Search images by text", "text", now.text,
            lambda entered: _rank(now.replaced(text=entered, like=None, doubtful=False)),
            max_chars=MAX_TEXT,
            placeholder="red letters on white",
            icon=":material/search:",
            disabled=evaluation.role == "corruption",
            help="Cosine similarity of the run's own image and text features, the text as typed. "
            "Features are stored of ID data and shifts.",
        )  # fmt: skip
        for name, chip in (
            ("like", now.like and f"like {now.like}"),
            ("area", now.area and _LASSO),
        ):
            if chip:
                st.button(
                    text.md(chip),
                    icon=":material/close:",
                    help="Show them all again",
                    key=f"gallery-{name}",
                    on_click=_rank,
                    args=(now.replaced(**{name: None}),),
                )
    with right:
        _type(
            "Only samples where", "where", now.where,
            lambda entered: open_samples(now.replaced(where=entered, doubtful=False)),
            max_chars=MAX_CONDITION,
            placeholder="not correct",
            help=CONDITION_HELP,
        )  # fmt: skip
    tagging.draw(evaluation, now.where, lambda entered: open_samples(now.replaced(where=entered)))


def _type(
    label: str, name: str, value: str | None, change: Callable[[str], None], **more: Any
) -> None:
    """A text field whose value the address holds, in the parameter of the whole choice."""
    key = f"gallery-{name}"
    st.session_state[key] = value or ""
    st.text_input(label, key=key, on_change=lambda: change(st.session_state[key].strip()), **more)


def _rank(chosen: Chosen) -> None:
    """Choose the samples, in the order that is theirs by default: of a search by similarity."""
    open_samples(chosen)
    state.reset("first")


def _head(evaluation: Evaluation, now: Chosen) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.header(
            f"Images: {text.md(evaluation.run_name)} on "
            f"{text.md(text.evaluation_title(evaluation))}, {text.md(words(evaluation, now))}",
            anchor=False,
        )
        st.page_link(
            "views/calibration.py",
            label="Diagram",
            icon=":material/target:",
            query_params={"run": evaluation.run_id, "dataset": evaluation.dataset},
        )
        st.button(
            "Close",
            icon=":material/close:",
            type="tertiary",
            key="gallery-close",
            on_click=open_samples,
            args=(None,),
        )


def words(evaluation: Evaluation, now: Chosen) -> str:
    """What is chosen, for people: `confidence 0.80 to 0.95 and label == 3`."""
    if now.doubtful:
        return "labels that every run contradicts"
    conditions = []
    if now.lower is not None or now.upper is not None:
        conditions.append(
            f"confidence {now.lower or 0.0:.3f} to {1 if now.upper is None else now.upper:.3f}"
        )
    if now.where:
        conditions.append(now.where)
    if now.area:
        conditions.append(_LASSO)
    if now.outcome:
        conditions.append(OUTCOMES[now.outcome].partition(":")[0])
    at = "" if now.temperature in (None, evaluation.temperature) else f" at T = {now.temperature:g}"
    return (" and ".join(conditions) or "all samples") + at


def _controls(evaluation: Evaluation, now: Chosen, *, free: bool) -> tuple[Chosen, str, bool]:
    """Widgets for data, baseline, outcome and order; what they say."""
    columns = iter(
        st.columns([3, 3, 3, 3, 2] if free else [4, 3, 3, 2], vertical_alignment="bottom")
    )
    if free:
        with next(columns):
            sets = {e.id: text.evaluation_title(e) for e in _of_run(evaluation)}
            sets.setdefault(evaluation.id, text.evaluation_title(evaluation))
            _choose(
                "Data", sets, evaluation.id,
                lambda v: open_samples(
                    now.replaced(evaluation=v, against=None, outcome=None, like=None, area=None)
                ),
            )  # fmt: skip
    with next(columns):
        offered = {"": "none"} | {e.id: e.run_name for e in others(evaluation)}
        if now.against:
            offered.setdefault(now.against, "the link's own")
        _choose(
            "Beside", offered, now.against or "",
            lambda v: open_samples(now.replaced(against=v, outcome=now.outcome if v else None)),
            help="Another model's answers on the same samples",
            disabled=now.doubtful,
        )  # fmt: skip
    if now.against and not now.doubtful:
        with next(columns):
            _choose(
                "Which", OUTCOMES, now.outcome or "",
                lambda v: open_samples(now.replaced(outcome=v)),
            )  # fmt: skip
    with next(columns):
        found = {"-similarity": "most similar"} if now.text or now.like else {}
        orders = found | (_PAIRED_ORDERS if now.against else {}) | ORDERS
        default = default_order(now)
        order = state.choice(
            st.selectbox, "Order of images", name="first", options=orders, default=default
        )
    top = state.toggle(next(columns), "Top five", name="top", default=True)
    return now, order, top


def default_order(now: Chosen) -> str:
    if now.text or now.like:
        return "-similarity"
    return "-gap" if now.outcome != "lost" else "change"


def _choose(
    label: str, options: dict[str, str], value: str, change: Callable[[str], None], **more: Any
) -> None:
    """A select box whose value the address holds, in the parameter of the whole choice."""
    key = f"gallery-{label.lower()}"
    st.session_state[key] = value
    st.selectbox(
        label,
        list(options),
        key=key,
        format_func=options.__getitem__,
        on_change=lambda: change(st.session_state[key]),
        **more,
    )


def _of_run(evaluation: Evaluation) -> list[Evaluation]:
    runs = pickers.named_runs([evaluation.run_id], quiet=True)
    return sorted(api.evaluations(runs[0]), key=text.evaluation_order) if runs else []


def others(evaluation: Evaluation) -> list[Evaluation]:
    """Other models' evaluations on data of the same name and size, newest first, one a run."""
    try:
        found = api.evaluations_of(evaluation.dataset, evaluation.role)
    except CaliftError:
        return []
    newest: dict[str, Evaluation] = {}
    for e in found:
        if e.run_id != evaluation.run_id and e.n == evaluation.n:
            newest.setdefault(e.run_id, e)
    return list(newest.values())


def _images(evaluation: Evaluation, now: Chosen, order: str, top: bool) -> None:
    small = evaluation.n * evaluation.n_classes <= _ASKED_UNASKED
    doubtful = _doubtful(evaluation) if small or now.doubtful else None
    if now.doubtful:
        found = _as_page(doubtful, evaluation) if doubtful is not None else None
        cursors: list[str | None] = [None]
    else:
        found, cursors = _page_of(evaluation, now, order, top)
    if found is None:
        return
    if not found.items:
        page.empty("No image", "No sample meets the condition.")
        return
    last = found.offset + len(found.items)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(
            f"{text.count(found.offset + 1)} to {text.count(last)} of "
            f"{text.count(found.n_matching)} samples, of {text.count(found.n)} in all."
        )
        if not now.doubtful and (doubtful is None or doubtful.n):
            st.button(
                "Look for likely label errors"
                if doubtful is None
                else f"{text.count(doubtful.n)} likely label error{'s' * (doubtful.n != 1)} in all",
                type="tertiary",
                key="gallery-doubtful",
                help="" if doubtful is None else _doubt_words(doubtful),
                on_click=open_samples,
                args=(Chosen(evaluation=evaluation.id, doubtful=True),),
            )
    if now.doubtful and doubtful is not None:
        st.caption(_doubt_words(doubtful))
    above = st.container()  # it is told first, and the images do not wait for it
    looks = None if now.doubtful else _looks(evaluation, now)
    marks: dict[str, list[str]] = {}
    for sample in doubtful.items if doubtful is not None else []:
        marks.setdefault(sample.id, []).append(f"label doubted: {sample.predicted_name}?")
    for one, other in looks.near if looks is not None else []:
        for sample_id in (one, other):
            if "near-duplicate" not in marks.setdefault(sample_id, []):
                marks[sample_id].append("near-duplicate")
    other_run = "" if found.against is None else found.against.run_name
    place = {} if now.doubtful else {_PARAM: as_text(now), "first": order}
    components.gallery(
        {
            "items": [
                _item(evaluation, s, other_run, marks.get(s.id, []), place) for s in found.items
            ],
            "missing": "no image",
            "alike": "" if evaluation.role == "corruption" else "like this",
            "tags": None
            if api.locked("submit") or now.doubtful
            else {"known": tagging.tag_names(evaluation), "all": found.n_matching},
        },
        key="gallery-images",
        opened=lambda at: st.session_state.update({_OPENED: found.items[at].id}),
        tagged=lambda at, tag, on: tagging.change(
            evaluation, now.filter(), at and [found.items[k].id for k in at], tag, on=on
        ),
        alike=lambda at: _rank(
            now.replaced(
                like=found.items[at].id, text=None, where=None, lower=None, upper=None, area=None
            )
        ),
    )
    if (sample_id := st.session_state.pop(_OPENED, None)) is not None:
        st.switch_page(
            "views/sample.py",
            query_params={"evaluation": evaluation.id, "sample": sample_id, **place},
        )
    if now.doubtful and doubtful is not None:
        correcting.draw(evaluation, doubtful)
    if not now.doubtful:
        _turn(cursors, found.next_cursor)
        with above:
            shared.draw(evaluation, now.filter(), looks)


def _page_of(
    evaluation: Evaluation, now: Chosen, order: str, top: bool
) -> tuple[SamplePage | None, list[str | None]]:
    """The samples of a page, None where they cannot be had; where the pages turned so far begin."""
    query = query_of(now, order, top=5 if top else 0, limit=_ON_A_PAGE)
    cursors = _cursors(f"{evaluation.id}-{query.model_copy(update={'top': 0})}")
    with st.spinner("Searching…", show_time=True) if now.text else nullcontext():
        found = api.act(
            f"load samples of {evaluation.run_name} on {evaluation.dataset}",
            lambda: api.answer(
                Client.samples,
                evaluation.id,
                tagging.version(evaluation),
                query.model_copy(update={"cursor": cursors[-1]}),
            ),
        )
    return found, cursors


def query_of(now: Chosen, order: str, **params: Any) -> SamplesQuery:
    """What the service is asked for the chosen samples, in an order of `ORDERS` or the like."""
    ordered = {"sort": order.removeprefix("-"), "descending": order.startswith("-")}
    search = {"text": now.text, "like": now.like}
    return SamplesQuery.of(now.filter(), {**ordered, **search, **params})


def _doubtful(evaluation: Evaluation) -> DoubtfulLabels | None:
    """Likely label errors; the images are shown all the same where they cannot be had."""
    try:
        return api.doubtful_labels(evaluation.id)
    except CaliftError:
        return None


def _doubt_words(found: DoubtfulLabels) -> str:
    return (
        f"All {len(found.runs)} runs that judged these samples say the same other class, each with "
        f"a confidence of at least {text.percent(found.threshold, 0)}. Look before you mend: a "
        "fault that models share looks the same."
    )


def _as_page(found: DoubtfulLabels, evaluation: Evaluation) -> SamplePage:
    return SamplePage(
        source=found.source, where="", sort="", descending=True, temperature=1.0, n=evaluation.n,
        n_matching=found.n, offset=0, items=found.items,
    )  # fmt: skip


def _looks(evaluation: Evaluation, now: Chosen) -> SampleLooks | None:
    """How the images look, where somebody asked for that: it decodes a hundred of them."""
    if state.param("looks") != "1":
        return None
    with st.spinner("Measuring images…"):
        return api.act(
            "measure the images",
            lambda: api.answer(
                Client.sample_looks,
                evaluation.id,
                tagging.version(evaluation),
                LooksQuery.of(now.filter()),
            ),
        )


def _item(
    evaluation: Evaluation,
    sample: Sample,
    other_run: str,
    marks: Sequence[str],
    place: Mapping[str, str],
) -> dict[str, Any]:
    """A sample as `gallery.js` draws it; `place`: where its page goes on to others from."""
    answers = [(evaluation.run_name if other_run else "", sample)]
    if sample.against is not None:
        answers.append((other_run, sample.against))
    at = urlencode({"evaluation": evaluation.id, "sample": sample.id})
    return {
        "href": f"/sample?{at}&{urlencode(place)}",
        "src": f"/thumbnail?{at}&size={_SIZE}",
        "alt": f"{sample.label_name}, taken for {sample.predicted_name}",
        "label": sample.label_name,
        "answers": [
            {
                "by": by,
                "words": f"{one.predicted_name}, {text.percent(one.confidence)}",
                "correct": one.correct,
            }
            for by, one in answers
        ],
        "tags": sample.tags,
        "marks": [*_similarity(sample), *marks, *_near(sample)],
        "top": [
            {
                "words": f"{c.name} {text.percent(c.probability)}",
                "share": c.probability,
                "own": c.index == sample.label,
            }
            for c in sample.top
        ],
    }


def _similarity(sample: Sample) -> list[str]:
    return [] if sample.similarity is None else [f"cosine {sample.similarity:.3f}"]


def _near(sample: Sample) -> list[str]:
    """The prompt that the image lies nearest to."""
    return [f"nearest prompt: {p.text} ({p.cosine:.2f})" for p in sample.prompts[:1]]


def _cursors(question: str) -> list[str | None]:
    """Where the pages that were turned begin; another question begins anew."""
    held: dict[str, Any] = st.session_state.setdefault("gallery-pages", {})
    if held.get("question") != question:
        held.update(question=question, cursors=[None])
    cursors: list[str | None] = held["cursors"]
    return cursors


def _turn(cursors: list[str | None], following: str | None) -> None:
    with st.container(horizontal=True, gap="small"):
        st.button(
            "Back",
            icon=":material/chevron_left:",
            disabled=len(cursors) == 1,
            on_click=cursors.pop,
            key="gallery-back",
        )
        st.button(
            "Next",
            icon=":material/chevron_right:",
            disabled=following is None,
            on_click=lambda: cursors.append(following),
            key="gallery-next",
        )
