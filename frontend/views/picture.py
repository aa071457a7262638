"""Try a picture: what several runs say of one that a visitor brings along."""

import hashlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from calift_core.calibration.ood import ALARM_RATE
from calift_core.errors import CaliftError
from calift_core.schema.wire.answers import AlikePicture, TriedPicture
from calift_core.schema.wire.runs import RunSummary
from frontend import api, components, page, pickers, state, text
from frontend.figures.style import both
from frontend.tables import Column, Run, Table

#: As much as the service takes by default.
_MOST_MIB = 12
_TYPES = ("jpg", "jpeg", "jfif", "png", "webp", "avif", "gif", "bmp", "tif", "tiff")
_RISKS = ("0.01", "0.02", "0.05", "0.1")
#: Models that are asked at once; the service keeps two loaded.
_MOST_RUNS = 4
_KEPT = 24


def main() -> None:
    page.head(
        "Try a picture",
        "What runs say of a picture of yours, how sure they are, and which training and evaluated "
        "images it resembles.",
    )
    chosen = pickers.pick_runs("run", most=_MOST_RUNS)
    given = st.file_uploader(
        "Picture",
        type=list(_TYPES),
        max_upload_size=_MOST_MIB,
        key="picture",
        help="It is decoded by a process with limits on memory and pixels, and stored nowhere.",
    )
    if given is None:
        page.empty(
            "No picture yet",
            "Drop one above, or take one with a phone. The first answer of a run takes the seconds "
            "that its model takes to be loaded.",
        )
        return
    risk = float(
        state.choice(
            st.segmented_control,
            "Maximum error rate",
            name="risk",
            options={r: f"at most {text.percent(float(r))}" for r in _RISKS},
            default="0.05",
            required=True,
            help="From which confidence on an answer is kept; a promise for data like the ID data",
        )
    )
    waiting = st.empty()
    with waiting.container():
        answers = _asked(chosen, given.getvalue())
    if not answers:
        return
    if len(answers) == len(chosen):  # else what stands in the way stays
        waiting.empty()
    runs = [run for run in pickers.as_runs(chosen) if run.id in answers]
    _draw(runs, answers, risk)


def _asked(chosen: dict[str, RunSummary], picture: bytes) -> dict[str, TriedPicture]:
    """Each run's answer, asked for once in a session and told as it comes."""
    kept: dict[tuple[str, int, str], TriedPicture]
    kept = st.session_state.setdefault("tried-pictures", {})
    digest = hashlib.sha256(picture).hexdigest()
    answers: dict[str, TriedPicture] = {}
    for run_id, run in chosen.items():
        key = (run_id, run.revision, digest)
        if key not in kept:
            try:
                with st.spinner(f"Asking {text.md(run.name)} …"):
                    kept[key] = api.client().try_picture(run_id, picture)
            except CaliftError as error:
                api.problem(error, f"ask {run.name} about the picture")
                if getattr(error, "problem", {}).get("code") == "IMAGE_UNREADABLE":
                    break  # for none of the others either
                continue
            top = kept[key].top[0]
            st.caption(
                f"{text.md(run.name)}: {text.md(top.label)}, {text.percent(top.probability)}"
            )
        answers[run_id] = kept[key]
    while len(kept) > _KEPT:
        kept.pop(next(iter(kept)))
    return answers


def _draw(runs: Sequence[Run], answers: dict[str, TriedPicture], risk: float) -> None:
    page.table(_compared(runs, answers, risk), caption="What each run says")
    looks = state.styles([run.id for run in runs])
    for column, run in zip(st.columns(len(runs), gap="large"), runs, strict=True):
        one = answers[run.id]
        with column:
            st.html(
                f'<div class="calift-tried"><img src="data:image/png;base64,{text.esc(one.seen)}" '
                f'alt="The picture as {text.esc(run.label)} saw it"><div><h2>'
                f'<span class="calift-dot" style="background:{both(looks[run.id].colour)}" '
                f'aria-hidden="true"></span>{text.esc(run.label)}</h2></div></div>'
            )
            top = one.top[0]
            page.stats(
                [
                    ("Label", top.label, "as this run sees the picture"),
                    ("Probability", text.percent(top.probability), text.kept_words(one, risk)),
                    ("Any of the classes?", *text.unlike_words(one, ALARM_RATE)),
                ]
            )
            page.table(_top(one), caption=f"{run.label}: likeliest of {one.n_classes:,} classes")
            st.caption(_how(one))
    with_training = [run for run in runs if answers[run.id].trained is not None]
    if with_training:
        st.header("Training images that it resembles", anchor=False)
    for run in with_training:
        _alike_in_training(run, answers[run.id])
    larger = st.session_state.pop("training-image", None)
    if larger is not None:
        _enlarged(*larger)
    st.header("Evaluated images that it resembles", anchor=False)
    if len(with_training) < len(runs):
        st.caption(text.md_prose(_without_training(runs, with_training)))
    for run in runs:
        _alike(run, answers[run.id])


def _how(one: TriedPicture) -> str:
    if one.note:
        return text.md_prose(one.note)
    promised = " What is kept is promised for data like the ID data alone."
    if one.promised_on is not None:
        promised += " Its threshold, the same as in Selective prediction, is of "
        promised += f"{text.md(one.promised_on)}."
    if one.calibrator == "none":
        return (
            "The run's own probabilities: no calibrator was better on its ID validation part."
            + promised
        )
    return (
        f"Probabilities after {text.calibrator(one.calibrator)}, fitted on the ID part "
        f"{text.md(one.fitted_on or '')}." + promised
    )


def _compared(runs: Sequence[Run], answers: dict[str, TriedPicture], risk: float) -> Table:
    return Table(
        [
            Column("run", "Run"),
            Column("label", "Label"),
            Column("probability", "Probability", "percent"),
            Column("kept", f"At most {text.percent(risk)} errors"),
            Column("unlike", f"{text.percent(ALARM_RATE)} false alarms"),
            Column("calibrator", "Calibrator", "prose"),
        ],
        [
            {
                "run": run.label,
                "label": answers[run.id].top[0].label,
                "probability": answers[run.id].top[0].probability,
                "kept": text.kept_words(answers[run.id], risk),
                "unlike": text.unlike_words(answers[run.id], ALARM_RATE)[0],
                "calibrator": text.CALIBRATORS.get(kind, kind),
            }
            for run in runs
            for kind in [answers[run.id].calibrator]
        ],
    )


def _top(one: TriedPicture) -> Table:
    return Table(
        [Column("label", "Class"), Column("probability", "Probability", "percent")],
        [guess.model_dump() for guess in one.top],
    )


def _without_training(runs: Sequence[Run], with_training: Sequence[Run]) -> str:
    """Which runs keep nothing of their training images."""
    if not with_training:
        return (
            "No training images are shown: no features of them were kept, or there is no training "
            "part."
        )
    names = ", ".join(run.label for run in runs if run not in with_training)
    return f"No training images of {names}: no features of them were kept."


def _alike_in_training(run: Run, one: TriedPicture) -> None:
    trained = one.trained
    if trained is None:
        return
    st.subheader(text.md(run.label), anchor=False)
    st.caption(text.md(text.training_words(trained, one.run.method)))

    def enlarge(at: int) -> None:
        st.session_state["training-image"] = (run.id, trained.nearest[at])

    components.gallery(
        {
            "items": [_training_item(run.id, alike) for alike in trained.nearest],
            "missing": "no image",
        },
        key=f"tried-training-{run.id}",
        opened=enlarge,
    )


def _training_item(run_id: str, alike: AlikePicture) -> dict[str, Any]:
    at = urlencode({"run": run_id, "sample": alike.sample_id})
    return {
        "href": f"/thumbnail?{at}&size=512",
        "src": f"/thumbnail?{at}&size=160",
        "alt": f"{alike.label}, a training image",
        "label": alike.label,
        "answers": [],
        "marks": [f"cosine {alike.cosine:.3f}"],
        "top": [],
    }


@st.dialog("Training image")
def _enlarged(run_id: str, alike: AlikePicture) -> None:
    """A training image by itself; no run was judged on it, so there is no more to say of it."""
    at = urlencode({"run": run_id, "sample": alike.sample_id})
    page.picture(f"/thumbnail?{at}&size=512", f"{alike.label}, a training image")
    st.caption(text.md(f"{alike.label}, cosine {alike.cosine:.3f}: {alike.sample_id}"))


def _alike(run: Run, one: TriedPicture) -> None:
    st.subheader(text.md(run.label), anchor=False)
    if not one.nearest:
        st.caption(
            "The features of its evaluated images are not stored: they are kept beside predictions "
            "of sets that are not too large."
        )
        return
    names = ", ".join(name.replace("_", " ") for name in one.searched)
    st.caption(
        f"By the cosine of this run's own image features, among the images of {text.md(names)}. "
        "None was trained on."
    )
    components.gallery(
        {"items": [_item(alike) for alike in one.nearest], "missing": "no image"},
        key=f"tried-{run.id}",
        opened=lambda at: _open(one.nearest[at]),
    )


def _open(alike: AlikePicture) -> None:
    st.session_state["open-sample"] = (alike.evaluation_id, alike.sample_id)


def _item(alike: AlikePicture) -> dict[str, Any]:
    at = urlencode({"evaluation": alike.evaluation_id or "", "sample": alike.sample_id})
    return {
        "href": f"/sample?{at}",
        "src": f"/thumbnail?{at}&size=160",
        "alt": f"{alike.label}, an image of {alike.dataset}",
        "label": alike.label,
        "answers": [],
        "marks": [f"cosine {alike.cosine:.3f}", alike.dataset.replace("_", " ")],
        "top": [],
    }


def _go() -> None:
    """Open the image that somebody chose."""
    found = st.session_state.pop("open-sample", None)
    if found is not None and found[0] is not None:
        query = {"evaluation": found[0], "sample": found[1]}
        st.switch_page("views/sample.py", query_params=query)


_go()
main()
