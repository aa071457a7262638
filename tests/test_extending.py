"""CONTRIBUTING's six lines, done: a toy of each, in a package of its own and used end to end."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from functools import reduce
from operator import or_
from pathlib import Path
from types import ModuleType
from typing import Annotated

import numpy as np
import pytest
import torch
from pydantic import Field
from streamlit.testing.v1 import AppTest

from calift_core import catalogue
from calift_core.analysis.calibrators import calibrated_scores, fit_calibrator, read_to_fit
from calift_core.analysis.measures import MEASURES, MeasureKind, measures_of
from calift_core.calibration import CALIBRATORS, Binning
from calift_core.calibration.registry import calibrator_from_dict
from calift_core.data.corruptions import CORRUPTIONS, Corruption
from calift_core.data.counting import count_suite
from calift_core.data.inspection import examine_suite
from calift_core.data.suites import SUITES, parse_suite_id
from calift_core.errors import UnknownNameError
from calift_core.jobs.folder import run_job
from calift_core.methods import METHODS
from calift_core.predictions.read import read_metadata
from calift_core.schema import suite as schema
from calift_core.schema.methods import METHOD_SPECS
from calift_core.schema.records import MetricsRecord
from calift_core.schema.report import Report
from calift_core.schema.spec import RunSpec
from calift_core.schema.suite import SuiteSpec
from tests.core.conftest import VIT
from tests.frontend.conftest import pointed_at, service
from tests.frontend.driving import words

FRONTEND = Path(__file__).parents[1] / "frontend"

FILES = {
    "suite": '''
"""Stripes: dark ones, light ones and checks."""
import numpy as np
from calift_core.data.images import split_by_hash
from calift_core.data.listing import shares_of
from calift_core.data.sources import array_set
from calift_core.data.suites.base import LoadedSuite, SuiteFamily

CLASSES = ("dark", "light", "chequered")

class Stripes(SuiteFamily):
    name, title, how_to_get = "stripes", "Stripes (150 images, 3 classes)", "They are computed."
    parts = {"train": 150}

    def find(self, path):
        return None

    def missing(self, path):
        return []

    def load(self, request):
        rng = np.random.default_rng(0)
        labels = np.arange(150) % 3
        level = np.array([60, 190, 125])[labels][:, None, None, None]
        lines = 50 * (np.indices((16, 16)).sum(axis=0) % 2)[None, :, :, None]
        pixels = level + np.where(labels == 2, 1, -1)[:, None, None, None] * lines
        pixels = np.clip(pixels + rng.normal(0, 30, (150, 16, 16, 3)), 0, 255).astype(np.uint8)
        whole = array_set("train", pixels, labels, "stripes")
        parts = split_by_hash(whole, shares_of(request.fractions, ()), "train")
        return LoadedSuite(self.name, CLASSES, CLASSES, parts)
''',
    "options": '''
"""Options of the penalty on large logits."""
from typing import ClassVar, Literal
from pydantic import Field
from calift_core.schema.methods import MethodBase

class LogitPenalty(MethodBase):
    """Fine-tuning that keeps logits small."""

    title: ClassVar[str] = "Logit penalty"
    summary: ClassVar[str] = "Cross-entropy and the mean square of the logits."
    source: ClassVar[str] = "here"
    terms: ClassVar[tuple[str, ...]] = ("cross_entropy", "penalty")
    family: ClassVar[str] = "supervised"

    kind: Literal["logit_penalty"] = "logit_penalty"
    lam: float = Field(default=0.01, ge=0, title="λ")
''',
    "method": '''
"""Fine-tuning that keeps logits small."""
from calift_core.methods.supervised import Supervised

class LogitPenalty(Supervised):
    """L = CE(head(I), y) + λ mean(head(I)²)."""

    def __init__(self, setup):
        super().__init__(setup)
        self.weights |= {"penalty": setup.spec.lam}

    def terms_of(self, embedded, batch):
        penalty = self.head(embedded.images).square().mean()
        return super().terms_of(embedded, batch) | {"penalty": penalty}
''',
    "corruption": '''
"""Fewer levels."""

def posterize(x, severity, rng):
    step = 16 * severity
    return x // step * step
''',
    "calibrator": '''
"""Nothing but the classes' shares."""
import numpy as np
from calift_core.calibration import softmax
from calift_core.calibration.calibrators import Calibrator

class Prior(Calibrator):
    """The classes' shares, whatever the logits."""

    kind = "prior"

    def _fit(self, logits, labels):
        self.shares = np.bincount(labels, minlength=logits.shape[1]) / len(labels)

    def _transform(self, logits):
        return np.tile(self.shares, (len(logits), 1))

    def _parameters(self):
        return {"shares": self.shares.tolist()}

    def _restore(self, parameters):
        self.shares = np.array(parameters["shares"])
''',
    "measure": '''
"""One gap."""

def gap_of_means(scores):
    """|mean confidence − accuracy|, a fraction."""
    return abs(float(scores.confidences.mean() - scores.correct.mean()))
''',
    "page": '''
"""What data there is."""
from frontend import api, page, text

page.head("Toys", "A page of a package of its own.")
for found in api.client().datasets():
    page.stats([(found.id, text.esc(found.title), "here" if found.available else "not here")])
''',
}  # fmt: skip


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[ModuleType]:
    """The package, and each of its toys in its place by one line."""
    folder = tmp_path / "package" / "toys_of_a_test"
    folder.mkdir(parents=True)
    for name, source in FILES.items():
        (folder / f"{name}.py").write_text(source.lstrip(), encoding="utf-8")
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(folder.parent))
    toys = importlib.import_module(folder.name)
    for name in FILES.keys() - {"page"}:
        importlib.import_module(f"{folder.name}.{name}")
    line = monkeypatch.setitem
    line(SUITES, "stripes", toys.suite.Stripes())
    line(METHOD_SPECS, "logit_penalty", toys.options.LogitPenalty)
    line(METHODS, "logit_penalty", toys.method.LogitPenalty)
    line(CORRUPTIONS, "posterize",
         Corruption("posterize", "digital", True, toys.corruption.posterize, False))  # fmt: skip
    monkeypatch.setattr(schema, "EXTRA_CORRUPTIONS", (*schema.EXTRA_CORRUPTIONS, "posterize"))
    line(CALIBRATORS, "prior", toys.calibrator.Prior)
    line(
        MEASURES, "gap", MeasureKind("Gap of the means", toys.measure.gap_of_means, has_floor=True)
    )
    yield toys
    catalogue.methods.cache_clear()
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]


def spec_of(folder: Path) -> RunSpec:
    """A run of the toys. `RunSpec` was made of the methods that were there before them."""

    class Later(RunSpec):
        method: Annotated[reduce(or_, METHOD_SPECS.values()), Field(discriminator="kind")]

    config = folder / "tiny.json"
    config.write_text(json.dumps(VIT))
    return Later.model_validate(
        {
            "name": "toys",
            "model": {"name": str(config), "pretrained": None},
            "method": {"kind": "logit_penalty", "lam": 0.1},
            "suite": {
                "id": "stripes",
                "templates": ["a photo of {} stripes."],
                "corruptions": {"names": ["posterize"], "severities": [1, 5]},
            },
            "train": {"epochs": 1, "batch_size": 16, "lr": 1e-3, "device": "cpu",
                      "log_every_steps": 1},
            "evaluation": {"n_resamples": 20},
        }
    )  # fmt: skip


@pytest.fixture
def run(toys: ModuleType, tmp_path: Path) -> Path:
    """The folder of a run of the toys."""
    torch.set_num_threads(1)
    folder = tmp_path / "run"
    for record in run_job(spec_of(tmp_path), folder):
        if isinstance(record, MetricsRecord) and "loss" in record.values:
            parts = record.values
            whole = parts["cross_entropy"] + 0.1 * parts["penalty"]
            assert parts["loss"] == pytest.approx(whole, rel=1e-4)
    return folder


def test_toys__a_run_from_the_data_to_the_measures(run):
    report = Report.model_validate_json((run / "report.json").read_bytes())
    judged = {e.dataset: e for e in report.evaluations}
    assert judged.keys() >= {"stripes/test", "posterize/1", "posterize/5"}
    assert judged["stripes/test"].n == count_suite(SuiteSpec(id="stripes")).parts["test"]
    assert judged["posterize/5"].corruption == "posterize"

    files = {read_metadata(path).role: path for path in (run / "predictions").glob("*.parquet")}
    own, test = files["calibration"], files["id"]
    calibrator, answer = fit_calibrator("prior", [read_to_fit(own)], oracle=False)
    again = calibrator_from_dict(json.loads(json.dumps(calibrator.to_dict())))
    scores, same = calibrated_scores(test, [calibrator, again])
    assert answer.kind == "prior"
    assert scores.confidences == pytest.approx(max(answer.parameters["shares"]))
    assert np.array_equal(scores.confidences, same.confidences)

    measures = {m.name: m for m in measures_of(scores, Binning(), n_classes=3)}
    gap = abs(measures["mean_confidence"].value - measures["accuracy"].value)
    assert measures["gap"].value == pytest.approx(gap)
    assert measures["gap"].null_mean is not None
    assert measures["gap"].title == "Gap of the means"


def test_toys__a_page_is_drawn_with_what_the_service_has(toys, tmp_path, monkeypatch):
    folder = shutil.copytree(FRONTEND, tmp_path / "dashboard")
    shutil.copy(Path(toys.__path__[0]) / "page.py", folder / "views" / "toys.py")
    app = folder / "app.py"
    before = app.read_text(encoding="utf-8")
    after = before.replace(
        '    "Explore": [\n', '    "Explore": [\n        view("toys", "Toys", "toys"),\n'
    )
    assert len(after.splitlines()) == len(before.splitlines()) + 1
    app.write_text(after, encoding="utf-8")
    with (
        service(tmp_path / "served") as served,
        pointed_at(monkeypatch, served.url, served.home),
    ):
        drawn = AppTest.from_file(str(app), default_timeout=60).switch_page("views/toys.py").run()
    assert not drawn.exception, [e.value for e in drawn.exception]
    output = words(drawn)
    assert "A page of a package of its own." in output
    assert "Stripes (150 images, 3 classes)" in output


def test_toys__a_suite_is_found_counted_and_inspected(toys):
    assert "stripes" in {suite.id for suite in catalogue.datasets() if suite.available}
    assert sum(count_suite(SuiteSpec(id="stripes")).parts.values()) == 150
    assert "3 classes" in examine_suite("stripes")[-1].detail


def test_toys__an_unknown_name_is_told_the_known_ones(toys):
    with pytest.raises(UnknownNameError, match="Did you mean 'stripes'"):
        parse_suite_id("stripe")
    with pytest.raises(ValueError, match="Did you mean 'posterize'"):
        SuiteSpec.model_validate({"corruptions": {"names": ["posterise"]}})
    with pytest.raises(UnknownNameError, match="Did you mean 'prior'"):
        calibrator_from_dict({"kind": "priors"})
