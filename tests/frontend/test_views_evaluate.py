"""“Evaluate on …” and what is shown of the jobs, against a real API."""

import re
from typing import Any

import pytest

from calift_core.client import Client
from calift_core.predictions.write import write_predictions
from calift_core.schema.evaluation_job import EvaluationJobSpec
from calift_core.schema.records import EvaluationRecord, PhaseRecord, ProgressRecord
from calift_core.schema.unlabelled import UnlabelledRecord
from calift_core.schema.wire.runs import Progress
from frontend.panels.evaluate.form import read_folders
from tests.command.conftest import configs, one_thread, photos  # noqa: F401
from tests.conftest import example_evaluation, example_predictions
from tests.core.conftest import write_classes
from tests.frontend.conftest import pointed_at, service
from tests.frontend.driving import components_of, page, words
from tests.support.finished import run_once, small_spec, store_run


class Place:
    """A service of its own with two finished runs, and its store."""

    def __init__(self, made: Any, store: Any, artifacts: Any, runs: list[str]) -> None:
        self.made, self.store, self.artifacts, self.runs = made, store, artifacts, runs

    @property
    def jobs(self) -> list[Any]:
        return self.store.evaluation_jobs.page()[0]


@pytest.fixture(scope="module")
def place(tmp_path_factory, configs, photos):  # noqa: F811
    from backend.storage.artifacts import ArtifactStore
    from backend.store.engine import open_engine
    from backend.store.stores import Stores

    home = tmp_path_factory.mktemp("home")
    folder = run_once(small_spec("zero_shot", configs["vit"], photos), home / "zs")
    with service(home) as made:
        store = Stores.on(open_engine(f"sqlite:///{home / 'calift.db'}"))
        artifacts = ArtifactStore(home / "artifacts")
        yield Place(made, store, artifacts, [store_run(store, artifacts, folder) for _ in "ab"])
        store.close()


@pytest.fixture
def looking(place, monkeypatch):
    with pointed_at(monkeypatch, place.made.url, place.made.home):
        yield place


def fill(app: Any, run: str, folders: str) -> Any:
    app.text_area(key=f"evaluate-folders-{run}").set_value(folders)
    return app.multiselect(key=f"evaluate-corruptions-{run}").set_value(["fog"])


def press(app: Any, label: str) -> Any:
    button = next(b for b in app.button if b.label == label)
    button.click().run()
    assert not app.exception, [e.value for e in app.exception]
    return app


def test_evaluate__is_checked_submitted_and_followed_on_the_runs_page(looking, tmp_path):
    run, store = looking.runs[0], looking.store
    art = write_classes(tmp_path / "art", n=2)
    app = page("run", id=run, tab="Shifts")
    fill(app, run, "night=/no/where")
    output = words(press(app, "Check"))
    assert "shifts › night" in output
    assert "there is no folder" in output
    fill(app, run, f"night={art}")
    press(app, "Check")
    assert "images to predict" in " ".join(s.value for s in app.success)
    press(app, "Evaluate")
    (job,) = looking.jobs
    assert job.spec.shifts == {"night": f"folder:{art}"}
    assert job.spec.corruptions.severities == (1, 3, 5)
    app = page("run", id=run, tab="Shifts")
    assert "evaluation on night, fog" in words(app)
    # A worker takes it, says how far it is, and finishes one of its sets.
    claim = store.claims.claim(job.id, worker_id="w", ttl_s=600)
    step = ProgressRecord(phase="evaluating", step=3, total_steps=6, detail="night", eta_s=9.0)
    store.records.record(job.id, claim.attempt, [PhaseRecord(phase="evaluating"), step])
    app = page("run", id=run, tab="Shifts")
    assert "image 3 of 6" in " ".join(p.proto.text for p in app.get("progress"))
    made = example_predictions(3, n=60, n_classes=3, dataset="night", role="shift")
    digest = write_predictions(tmp_path / "night.parquet", made)
    file = looking.artifacts.put_file(tmp_path / "night.parquet")
    record = EvaluationRecord(
        evaluation=example_evaluation(made, digest), predictions="predictions/night.parquet"
    )

    def put(data):
        blob = looking.artifacts.put_bytes(data)
        return blob.sha256, blob.size_bytes

    assert store.evaluated.publish(
        job.id, claim.attempt, run, record, sha256=file.sha256, size_bytes=file.size_bytes, put=put
    ) == "published"  # fmt: skip
    # The page knew the run's evaluations; the new one is there all the same.
    assert "night" in words(page("run", id=run, tab="Shifts"))
    press(page("run", id=run), "Cancel")
    assert store.evaluation_jobs.get(job.id).phase == "CANCELLING"
    store.claims.finish(job.id, claim.attempt, phase="CANCELLED")
    press(page("run", id=run), "Retry")
    assert store.evaluation_jobs.get(job.id).phase == "QUEUED"
    output = words(page("run", id=job.id))
    assert "Evaluation on night, fog" in output
    assert "1 result" in output


def test_evaluate__a_folder_without_labels_is_asked_about_and_its_alarm_shown(
    looking, tmp_path, monkeypatch
):
    run, store = looking.runs[0], looking.store
    for k in range(3):  # earlier ones, which nobody looks at
        old = EvaluationJobSpec(runs=(run,), unlabelled=(f"folder:/october-{k}",))
        claim = store.claims.claim(store.evaluation_jobs.submit(old), worker_id="w", ttl_s=600)
        store.claims.finish(claim.run_id, claim.attempt, phase="SUCCEEDED")
    app = page("run", id=run, tab="Without labels")
    app.text_input(key="unlabelled-folder").set_value("/no/where")
    assert "must be a folder of images, none is there" in words(press(app, "Check images"))
    before = {job.id for job in looking.jobs}
    flat = write_classes(tmp_path / "november", n=2)
    app.text_input(key="unlabelled-folder").set_value(str(flat))
    press(app, "Check images")
    (job,) = [job for job in looking.jobs if job.id not in before]
    assert job.spec.unlabelled == (f"folder:{flat}",)
    claim = store.claims.claim(job.id, worker_id="w", ttl_s=600)
    batch = {"at": "2026-11-01T00:00:00Z", "n": 200, "distance": 0.2, "p_value": 0.4, "alarms": []}
    record = UnlabelledRecord.model_validate({
        "run": run, "source": f"folder:{flat}", "alarms": ["the images have drifted"],
        "found": {
            "n": 400, "reference": "val", "n_reference": 90, "recommended": "doc",
            "expected": [{"estimator": "doc", "value": 0.7, "low": 0.6, "high": 0.8,
                          "mean_error": 0.02, "errors": {"art": 0.02}}],
            "drift": {"distance": 0.2, "p_value": 0.0005, "n_reference": 90, "n": 400},
            "unknown": None, "familiar": None,
            "none_of_these": {"share": 0.12, "false_alarms": 0.05},
            "shares": [], "unusual": [], "unreadable": {},
        },
        "batches": [
            {**batch, "value": 0.8, "low": 0.7, "high": 0.9, "unknown": None},
            {**batch, "value": None, "low": None, "high": None, "unknown": "they are unlike it.",
             "p_value": 0.0005, "alarms": ["the images have drifted"]},
        ],
    })  # fmt: skip
    store.records.record(job.id, claim.attempt, [PhaseRecord(phase="evaluating"), record])
    store.claims.finish(job.id, claim.attempt, phase="SUCCEEDED")
    load, loaded = Client.unlabelled, []
    monkeypatch.setattr(Client, "unlabelled", lambda *a: loaded.append(a[1]) or load(*a))
    opened = page("run", id=run, tab="Without labels")
    assert len(opened.selectbox[-1].options) == 4
    opened.run()
    assert loaded == [job.id]
    for app in (opened, page("run", id=job.id)):
        output = re.sub(r"\\(.)", r"\1", words(app))
        assert "ALARM: the images have drifted" in output
        assert "None of these classes: 12.0" in output
        assert "400 images without labels in 2 batches, 1 with an alarm" in output
    assert "No result yet" not in output


def test_evaluate__several_runs_of_a_comparison(looking, tmp_path):
    before = {job.id for job in looking.jobs}
    art = write_classes(tmp_path / "art", n=2)
    ids = ",".join(looking.runs)
    app = page("compare", ids=ids)
    key = "-".join(looking.runs)
    fill(app, key, str(art))
    press(app, "Evaluate")
    (job,) = [job for job in looking.jobs if job.id not in before]
    assert set(job.spec.runs) == set(looking.runs)
    assert job.spec.folders == (f"folder:{art}",)
    assert "evaluation on art, fog" in words(page("compare", ids=ids))


def test_evaluate__a_worker_that_evaluates_is_followed_from_the_overview(looking):
    spec = EvaluationJobSpec(runs=tuple(looking.runs), suites=("imagenet",))
    job_id = looking.store.evaluation_jobs.submit(spec)
    claim = looking.store.claims.claim(job_id, worker_id="w", ttl_s=600)
    progress = Progress(phase="evaluating", step=1, total_steps=4)
    looking.store.claims.heartbeat(job_id, claim.attempt, ttl_s=600, progress=progress)
    output = words(page("overview"))
    assert "evaluation on imagenet" in output
    looking.store.claims.finish(job_id, claim.attempt, phase="FAILED", reason="OOM", message="full")
    assert "full" in words(page("run", id=job_id))


def test_try__two_runs_say_what_they_see_and_a_page_that_is_no_picture_says_so(looking, photos):  # noqa: F811
    app = page("picture", run=",".join(looking.runs))
    assert "No picture yet" in words(app)
    picture = next(photos.rglob("*.png"))
    app.file_uploader[0].set_value((picture.name, picture.read_bytes(), "image/png"))
    app.run(timeout=400)
    assert not app.exception, [e.value for e in app.exception]
    output = words(app)
    assert output.count("The picture as") == 2
    assert "Training images that it resembles" in output
    assert "Evaluated images that it resembles" in output
    shown = components_of(app, "gallery")
    assert [len(one["items"]) for one in shown] == [6, 6, 6, 6]  # both kinds, of both runs
    app.file_uploader[0].set_value(("a.png", b"no picture", "image/png"))
    app.run(timeout=400)
    assert "is not an image that can be read" in words(app)
    assert words(app).count("Could not ask") == 1  # the others are not asked


def test_read_folders__takes_paths_with_and_without_a_name():
    lines = "night=/data/night\n\n /data/a=b \nfolder:/data/c\n"
    assert read_folders(lines) == {
        "shifts": {"night": "/data/night"},
        "folders": ["/data/a=b", "folder:/data/c"],
    }
