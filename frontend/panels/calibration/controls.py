"""How an error is measured: bins, binning, norm and temperature, kept in the URL."""

import streamlit as st

from calift_core.schema.wire.queries import PromptsQuery
from frontend import state, text


def controls(*, with_temperature: bool = True) -> PromptsQuery:
    """Widgets for binning, norm and, where it may be chosen, temperature."""
    with st.container(border=True, key="diagram-controls"):
        columns = st.columns([2, 2, 2, 3] if with_temperature else [2, 2, 2])
        temperature = 1.0
        n_bins = state.number(
            columns[0].number_input,
            "Bins",
            name="bins",
            default=15,
            min_value=1,
            max_value=100,
            step=1,
            help="How many bins the samples are put in",
        )
        scheme = state.choice(
            columns[1].selectbox,
            "Binning",
            name="scheme",
            options=text.SCHEMES,
            help="Equal mass: as many samples in each bin. Equal width: bins as wide as each "
            "other, so some are nearly empty.",
        )
        norm = state.choice(
            columns[2].selectbox,
            "Norm",
            name="norm",
            options=list(text.NORMS),
            format_func=lambda n: {"l1": "L1 (ECE)", "l2": "L2", "max": "largest gap (MCE)"}[n],
        )
        if with_temperature:
            with columns[3]:
                temperature = temperature_slider()
    return PromptsQuery.of(
        params={
            "n_bins": n_bins, "scheme": scheme, "norm": norm, "temperature": round(temperature, 4)
        }
    )  # fmt: skip


def temperature_slider() -> float:
    return state.number(
        st.slider,
        "Temperature",
        name="temperature",
        default=1.0,
        min_value=0.25,
        max_value=4.0,
        step=0.05,
        help="Divides the logits. It moves confidence and never accuracy: what training "
        "did beyond it is what stays different between runs.",
    )
