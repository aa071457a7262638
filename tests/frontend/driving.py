"""Pages without a browser: opened by their address, and what they say."""

import json
import re
from pathlib import Path
from typing import Any

from streamlit.testing.v1 import AppTest

from tests.frontend.conftest import Service

APP = Path(__file__).parents[2] / "frontend" / "app.py"


TABS = (
    "Shifts", "Calibration", "Curves", "Spectrum", "Without labels", "Config", "Artifacts", "Logs",
)  # fmt: skip


def page(name: str, **params: str) -> AppTest:
    """Run a page by its file, with query parameters."""
    app = AppTest.from_file(str(APP), default_timeout=60)
    for key, value in params.items():
        app.query_params[key] = value
    app.switch_page(f"views/{name}.py")
    app.run()
    assert not app.exception, [e.value for e in app.exception]
    return app


def submit_of(app: AppTest) -> Any:
    """The form's button."""
    return next(b for b in app.button if b.label == "Submit")


def unfold(app: AppTest, *names: str, mark: str = "quick") -> None:
    """Open folded parts of the form of a new run."""
    for name in names:
        app.session_state[f"new-{mark}-{name}-open"] = True
    app.run()


def words(app: AppTest) -> str:
    """All that the page says."""
    kinds = ("html", "markdown", "caption", "error", "warning", "info", "header", "code")
    output = [str(e.value if kind != "html" else e.proto.body)
            for kind in kinds for e in app.get(kind)]  # fmt: skip
    output += [re.sub(r"\\(.)", r"\1", link.proto.label) for link in app.get("page_link")]
    output += [str(cell) for row in listed(app) for cell in row.values()]
    return " ".join([*output, *(frame.value.to_csv() for frame in app.dataframe)])


def listed(app: AppTest) -> list[dict[str, Any]]:
    """The cells of the rows that open something, as they read, by their columns."""
    return [
        {
            name: " ".join(cell.values())
            if isinstance(cell, dict) and "note" in cell
            else cell["word"]
            if isinstance(cell, dict)
            else cell
            for name, cell in row["cells"].items()
        }
        for given in components_of(app, "rows")
        for row in given["rows"]
    ]


def choose(app: AppTest, places: list[int]) -> None:
    """Tick rows of the list of runs; the page is to be run again."""
    (of,) = [given["of"] for given in components_of(app, "rows")]
    app.session_state["runs-chosen"] = (of, places)


def charts_of(app: AppTest) -> list[str]:
    """The descriptions of Plotly's charts on the page."""
    return [given["alt"] for given in components_of(app, "chart")]


def components_of(app: AppTest, name: str) -> list[dict[str, Any]]:
    """What a component of ours was given, each time that it stands on the page."""
    found = [element.proto for element in app.get("bidi_component")]
    return [json.loads(p.json) for p in found if p.component_name == f"calift.{name}"]


def three(service: Service) -> str:
    return ",".join(service.ids[name] for name in ("zero-shot", "FLYP", "CaRot"))
