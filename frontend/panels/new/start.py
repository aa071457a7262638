"""What the form of a new run begins with: a preset, a copy of a run, or a merge of one."""

import copy
from typing import Any

import streamlit as st

from calift_core.recommendation import RECOMMENDED
from calift_core.schema.wire.service import MethodInfo
from frontend import address, api, page, state, text

#: Partial specs to begin with.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "quick": (
        "Quick look: built-in data, two epochs",
        {
            # The published rates are for large models; this is the small one's, as in the demo.
            "train": {"epochs": 2, "batch_size": 64, "lr": 3e-4},
            "suite": {"templates": "letters"},
        },
    ),
    "benchmark": (
        "Benchmark: built-in data, the 15 corruptions",
        {
            "train": {"epochs": 6, "batch_size": 64, "lr": 3e-4},
            "suite": {"templates": "letters",
                      "corruptions": {"names": "benchmark", "severities": [1, 2, 3, 4, 5],
                                      "limit": 1000}},
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


#: What a run is for → what it is called, the method that the form begins with, and the sweep's
#: preset where one run is no answer.
INTENTS: dict[str, tuple[str, str, str]] = {
    "robust": ("Robust fine-tune: one run", RECOMMENDED.method, ""),
    "compare": ("Compare all methods: a sweep with one verdict", "carot", "compare-methods"),
    "evaluate": ("Evaluate only: the model as it is", "zero_shot", ""),
    "ablate": ("Ablate: CaRot without each of its parts", "carot", "ablate-carot"),
}


def intent() -> str:
    """Ask what the run is for; another answer begins with that one's method."""
    chosen = state.choice(
        st.segmented_control,
        "Goal",
        name="intent",
        options={name: INTENTS[name][0].partition(":")[0] for name in INTENTS},
        default="robust",
        required=True,
    )
    seen = st.session_state.get("new-intent", chosen)
    st.session_state["new-intent"] = chosen
    if seen != chosen:
        for key in ("url-method", "url-method-seen"):
            st.session_state.pop(key, None)
        address.put({"method": None})
    st.caption(f"{INTENTS[chosen][0]}.")
    if chosen == "robust":
        st.caption(f"Suggested: {RECOMMENDED.recipe} The run's page exports it so.")
        with st.expander("Evidence and limits"):
            st.caption(f"{RECOMMENDED.evidence} {RECOMMENDED.limits}")
    return chosen


def start(methods: dict[str, MethodInfo]) -> tuple[dict[str, Any], str]:
    """The document to begin with and a mark that changes with it."""
    clone, source = state.param("clone"), state.param("input")
    given = clone or source
    if given and _is_imported(given):
        clone = source = None
    if clone:
        run = api.ask(f"load the run {clone}", api.client().run, clone)
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
        "Settings to begin with",
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
    run = api.ask(f"load the run {run_id}", api.client().run, run_id)
    if run.method != "imported":
        return False
    page.empty(
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
    run = api.ask(f"load the run {run_id}", api.client().run, run_id)
    document = copy.deepcopy(dict(run.spec))
    kind = state.param("method")
    document["method"] = (
        {"kind": "model_stock", "runs": [run_id]}
        if kind == "model_stock"
        else {"kind": kind if kind in ("vrf", "dawin") else "wise_ft", "run": run_id}
    )
    document.get("train", {}).pop("confidence", None)  # nothing is trained
    document["name"] = f"{document['method']['kind'].replace('_', '-')} of {run.name}"[:120]
    st.caption(f"On the model and the data of {text.md(run.name)}.")
    st.page_link("views/new.py", label="Start from a preset instead", icon=":material/undo:")
    return document, f"input-{run_id}-{document['method']['kind']}"
