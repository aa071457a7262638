"""A reliability diagram whose bins open their images, on any page."""

from collections.abc import Callable

import streamlit as st

from calift_core.schema.wire.results import Evaluation, Reliability
from frontend import components, figures, page
from frontend.panels import gallery


def draw(
    diagram: Reliability,
    evaluation: Evaluation,
    look: figures.style.RunStyle,
    *,
    title: str | None = None,
    smooth: bool = False,
    still: Callable[[], bool] = lambda: True,
) -> None:
    """Show a diagram, its table and its exports; `gallery.draw` shows the bins that are chosen.

    Args:
        title: default: names run and data.
        still: whether the page is still about this evaluation, asked when bins are chosen: somebody
            may have changed its data, and clicked before it was drawn again.
    """
    now = gallery.chosen_samples()
    here = now is not None and now.evaluation == evaluation.id
    heading = title or f"{diagram.run_name} on {diagram.dataset}"

    def choose(edges: tuple[float, float] | None) -> None:
        if not still():
            return
        if edges is None:
            gallery.open_samples(None)
            return
        kept = now if now is not None and here else gallery.Chosen(evaluation=evaluation.id)
        gallery.open_samples(kept.replaced(lower=edges[0], upper=edges[1]))

    page.chart(
        figures.reliability.diagram(
            diagram, title=title, colour=look.colour, symbol=look.symbol, smooth=smooth, side=440
        ),
        figures.reliability.bins_table([diagram]),
        name=f"reliability-{diagram.run_id}-{diagram.dataset.replace('/', '-')}",
        data=diagram.model_dump_json,
        bins=components.Bins(
            f"Bins of {heading}, by confidence",
            figures.reliability.bin_fields(diagram),
            chosen=(now.lower or 0.0, 1.0 if now.upper is None else now.upper)
            if now is not None and here and (now.lower, now.upper) != (None, None)
            else None,
            choose=choose,
        ),
    )
    st.caption(
        "Each bin has a field: ▲ over-confident, ▼ under-confident, · within noise. Click one, or "
        "drag over several, to see their images."
    )
