"""Decide: from which confidence on predictions may be kept, and what that gives under shift."""

from frontend import page, pickers
from frontend.panels import deciding


def main() -> None:
    page.head(
        "Selective prediction",
        "Which predictions may be kept so that few of them are wrong, and what the same rule gives "
        "where the data have shifted.",
    )
    chosen = pickers.pick_runs("run", most=4)
    deciding.draw(chosen, pickers.as_runs(chosen))


main()
