"""Why a tab of a run has nothing to show."""

from calift_core.schema.wire.runs import RunDetail
from frontend import api, page


def not_yet(run: RunDetail, what: str) -> None:
    """Say that a run is not, or never was, `what`: `evaluated` or `measured`."""
    if api.is_working(run.phase):
        page.empty(f"Not {what} yet", "This happens after training, one data set after the other.")
    else:
        page.empty(f"Never {what}", f"The run ended as {run.phase} before it came to that.")
