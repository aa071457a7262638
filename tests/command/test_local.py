"""The command as people and scripts use it."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from calift.commands import service
from calift.commands.main import main
from calift.notebook import load
from calift_core.errors import DataError, UnknownNameError
from calift_core.schema.report import Report
from calift_core.schema.spec import ModelSpec, parse_spec
from calift_core.schema.wire.runs import Validation
from tests.conftest import spec_of, until
from tests.core.conftest import CLASSES, environment, write_classes

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@dataclass(frozen=True)
class Result:
    """What a command answered. `text` is both streams with line breaks as spaces."""

    status: int
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        return " ".join(f"{self.stdout} {self.stderr}".split())


@pytest.fixture
def calift(capsys, home, monkeypatch):
    """Run the command in this process, with no service to ask."""
    monkeypatch.setenv("CALIFT_API_URL", "http://127.0.0.1:9")

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        code = ended.value.code
        captured = capsys.readouterr()
        return Result(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


def write(path: Path, spec: Any) -> str:
    path.write_text(yaml.safe_dump(json.loads(spec.model_dump_json())))
    return str(path)


def test_help__names_every_command_without_loading_torch(home):
    code = (
        "import sys\nfrom calift.commands.main import main\n"
        "try:\n    main(['--help'])\n"
        "finally:\n    sys.stderr.write(' '.join(m for m in ('torch', 'open_clip') "
        "if m in sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == ""
    for command in ("train", "evaluate", "submit", "runs", "compare", "list", "doctor", "demo"):
        assert f" {command} " in done.stdout


@pytest.mark.parametrize(
    "arguments", [("trian",), ("train",), ("train", "x.yaml", "--ouch"), ("runs", "nothing")]
)
def test_wrong_usage__is_status_2(calift, arguments):
    assert calift(*arguments).status == 2


@pytest.fixture
def spec_text(configs, photos):
    return (
        f"name: a\nmodel: {{name: {configs['vit']}, pretrained: null}}\n"
        f"method: {{kind: flyp}}\nsuite: {{id: 'folder:{photos}', templates: photo}}\n"
    )


def test_train__a_spec_that_is_wrong_is_a_sentence(calift, tmp_path, spec_text):
    file = tmp_path / "run.yaml"
    file.write_text(spec_text.replace("method:", "methods:"))
    output = calift("train", file, "--out", tmp_path / "out")
    assert output.status == 1
    assert output.stdout == ""
    assert "#/methods: unknown field 'methods'. Did you mean 'method'?" in output.text
    assert "Traceback" not in output.text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (("folder:", "fashion-mist#"), "UNKNOWN_NAME", "unknown suite"),
        (("folder:", "folder:/nowhere"), "DATA_UNAVAILABLE", "there is no folder '/nowhere"),
        (("pretrained: null", "pretrained: gone.pt"), "MODEL_UNAVAILABLE", "no weights file"),
    ],
)
def test_train__what_is_not_here_is_a_sentence_and_with_json_a_document(
    calift, tmp_path, spec_text, change, code, words
):
    file = tmp_path / "run.yaml"
    file.write_text(spec_text.replace(*change))
    plain = calift("train", file, "--out", tmp_path / "a")
    assert plain.status == 1
    assert words in plain.text
    assert "Traceback" not in plain.text
    machine = calift("train", file, "--out", tmp_path / "b", "--json")
    assert machine.status == 1
    error = json.loads(machine.stdout)["error"]
    assert error["code"] == code
    assert words in error["message"]
    assert set(error) == {"code", "message", "hint"}


def test_list__unknown_kind_is_a_sentence(calift):
    output = calift("list", "method")
    assert output.status == 1
    assert "Did you mean 'methods'?" in output.text


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("laptop.yaml", ()),
        ("pacs.yaml", ("there is no folder '/data/pacs/photo'", "ViT-B-16 'openai'")),
        ("imagenet/carot.yaml", ("CALIFT_IMAGENET", "ViT-B-16 'openai'")),
    ],
)
def test_dry_run__of_the_examples_says_what_is_missing(calift, monkeypatch, name, missing):
    output = calift("train", EXAMPLES / name, "--dry-run", "--no-measure", "--json")
    assert output.status == (1 if missing else 0), output.text
    result = Validation.model_validate_json(output.stdout)
    assert result.valid
    sentences = " ".join(result.missing)
    for words in missing:
        assert words in sentences
    if not missing:
        assert result.missing == []
    if name == "imagenet/carot.yaml":
        assert result.estimate.train_images == 1_281_167 - 2 * 12_812
        assert result.estimate.steps == 24_520
        assert result.estimate.evaluation_images == 166_963
        assert result.estimate.selection_images == 2 * 12_812


def test_dry_run__measures_and_leaves_nothing_behind(calift, run_spec, tmp_path, home):
    file = write(tmp_path / "run.yaml", run_spec("carot"))
    output = calift("train", file, "--dry-run", "--out", str(tmp_path / "out"))
    assert output.status == 0
    assert "The RunSpec 'tiny carot' is valid." in output.text
    for words in ("parameters", "training images", "optimiser steps", "on this machine (cpu"):
        assert words in output.text
    assert not (tmp_path / "out").exists()
    assert list(home.iterdir()) == []


def test_suite__a_folder_that_lies_here_is_named(calift, tmp_path, run_spec, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "run.yaml", run_spec("carot", suite={"id": "pictures"}))
    requested = (["data", "inspect", "pictures"], ["train", file, "--dry-run", "--no-measure"])
    assert not any("What lies here" in calift(*one).text for one in requested)
    (tmp_path / "pictures").mkdir()
    assert all("What lies here is named ./pictures." in calift(*one).text for one in requested)


@pytest.mark.parametrize(
    "changed",
    [
        {"suite": {"id": "folder:~nobody-here/x"}},
        {"suite": {"shifts": {"art": "torchvision:DTD:~nobody-here/x"}}},
        {"model": {"name": "local-dir:~nobody-here/x", "pretrained": None}},
        {"method": {"kind": "wise_ft", "run": "~nobody-here/x", "alpha": 0.5}},
    ],
    ids=["suite", "shift", "model", "run"],
)
def test_paths__of_an_unknown_user_are_a_sentence(calift, run_spec, tmp_path, changed):
    data = run_spec("carot").model_dump(mode="json")
    for key, value in changed.items():
        data[key] = value if key == "method" else data[key] | value
    file = write(tmp_path / "run.yaml", parse_spec(data))
    for one in (["train", file, "--dry-run", "--no-measure"], ["submit", file]):
        output = calift(*one)
        assert output.status == 1
        if one[0] == "submit" and "method" in changed:  # a run of the service, by its id
            continue
        assert "no user 'nobody-here' on this machine: '~nobody-here/x'" in output.text


@pytest.fixture(scope="module")
def trained(tmp_path_factory, configs, photos, paintings):
    """Spec, folder and what `calift train` printed, without its white space."""
    root = tmp_path_factory.mktemp("trained")
    file = root / "run.yaml"
    spec = {
        "name": "from the command",
        "model": {"name": str(configs["vit"]), "pretrained": None},
        "method": {"kind": "carot"},
        "suite": {"id": f"folder:{photos}", "shifts": {"art": f"folder:{paintings}"}}
        | {"templates": "photo"},
        "train": {"epochs": 1, "batch_size": 16, "lr": 1e-3, "device": "cpu"},
        "evaluation": {"n_resamples": 20},
    }
    file.write_text(yaml.safe_dump(spec))
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setenv("COLUMNS", "80")
        for name, value in environment(root / "home").items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main(["train", str(file), "--out", str(root / "out")])
    assert ended.value.code == 0, printed.getvalue()
    return file, root / "out", "".join(printed.getvalue().split())


def test_train__leaves_the_contracts_files(trained):
    _, folder, printed = trained
    for name in ("report.json", "metrics.jsonl", "checkpoint/model.safetensors"):
        assert (folder / name).is_file()
    assert (folder / "predictions" / "photos_test.parquet").is_file()
    Report.model_validate_json((folder / "report.json").read_bytes())
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        assert {"step", "epoch"} <= set(json.loads(line))
    for words in ("photos/test", "art", "Accuracy", "ECE", "σ_min", str(folder)):
        assert words in printed


def test_load__opens_a_trained_folder_in_a_notebook(trained):
    _, folder, _ = trained
    run = load(folder)
    assert len(run.predictions("art")) == run.evaluations["art"].n
    assert "art" in str(run.reliability_diagram("art").layout.title.text)
    with pytest.raises(UnknownNameError, match="nowhere"):
        run.predictions("nowhere")
    with pytest.raises(DataError, match=r"report\.json"):
        load(folder.parent)


def test_ship__calibrate_export_predict_from_a_run_to_answers(trained, photos, calift, tmp_path):
    run = shutil.copytree(trained[1], tmp_path / "run")
    model, answers = tmp_path / "model", tmp_path / "answers.csv"
    assert "There is no calibrator" in calift("export", run, model).text
    chosen = calift("calibrate", run, "--with", "temperature")
    assert (chosen.status, "temperature, fitted on 8 images" in chosen.text) == (0, True)
    assert "--overwrite" in calift("export", run, model).text
    assert calift("export", run, model, "--overwrite").status == 0
    answer = json.loads(calift("calibrate", run, "--json").stdout)
    assert answer["requested"] == "auto"
    assert "got 'tflite'" in calift("export", run, model, "--format", "tflite").text

    output = calift("predict", model, photos, "--json")
    rows = [json.loads(line) for line in output.stdout.splitlines()]
    assert (output.status, len(rows)) == (0, 120)
    assert {row["label"] for row in rows} <= set(CLASSES)
    assert all(row["confidence"] == max(row["top"].values()) for row in rows)
    # A notebook says the same.
    assert load(model).predict(rows[5]["path"]).labels == [rows[5]["label"]]
    assert load(run).predict([row["path"] for row in rows[:3]]).probs.shape == (3, 3)

    page = tmp_path / "watched.html"
    output = calift("watch", model, photos, "--out", page)
    assert (output.status, "images are likely to be right" in output.text) == (0, True)
    assert "Most unusual images" in page.read_text()
    output = calift("watch", run, photos, "--fail-below", "1.1", "--json")
    assert (output.status, json.loads(output.stdout)["n"], "alarm" in output.stderr) == (
        3,
        120,
        True,
    )

    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    output = calift("predict", model, photos, bad, "--out", answers)
    assert (output.status, "1 of 121 images could not be read" in output.text) == (1, True)
    assert len(answers.read_text().splitlines()) == 122
    assert "nothing is there" in calift("predict", model, tmp_path / "nowhere").text
    assert "must end in" in calift("predict", model, photos, "--out", tmp_path / "a.xls").text
    assert "holds no finished run" in calift("predict", tmp_path, photos).text


def test_ship__a_run_of_the_service_by_its_id(
    trained, photos, calift, app, served, settings, monkeypatch, tmp_path
):
    from tests.support.finished import store_run

    services, here = app.state.services, shutil.copytree(trained[1], tmp_path / "run")
    run_id = store_run(services.store, services.artifacts, here)
    monkeypatch.setenv("CALIFT_API_URL", served)
    monkeypatch.setenv("CALIFT_TOKEN", settings.admin_token())
    chosen = calift("calibrate", run_id, "--with", "temperature")
    assert (chosen.status, "fetching report.json" in chosen.text) == (0, True)
    exported = calift("export", run_id, tmp_path / "model")
    assert (exported.status, "fetching" in exported.text) == (0, False)
    assert calift("calibrate", here, "--with", "temperature").status == 0
    path = next(photos.rglob("*.png"))
    ours, theirs = (load(one).predict([path]).probs for one in (here, tmp_path / "model"))
    assert np.array_equal(ours, theirs)
    unknown = calift("predict", "0123456789ab", path)
    assert (unknown.status, "there is no run '0123456789ab'" in unknown.text) == (1, True)
    unfinished = services.store.runs.submit(spec_of())
    assert "has no finished model to fetch" in calift("export", unfinished, tmp_path / "b").text


def test_train__again_says_that_it_is_finished_and_changes_nothing(trained, calift):
    file, folder, _ = trained
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    output = calift("train", file, "--out", folder)
    assert output.status == 0
    assert "finished already" in output.text
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_train__a_merge_is_made_again_once_its_run_was_trained_anew(trained, calift, tmp_path):
    file, folder, _ = trained
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    data = yaml.safe_load(file.read_text())
    method = {"kind": "wise_ft", "run": str(run), "sweep": [0.5, 1.0]}
    merge = {**data, "name": "merge", "method": method}
    spec = tmp_path / "merge.yaml"
    spec.write_text(yaml.safe_dump(merge))
    out = tmp_path / "out"
    assert calift("train", spec, "--out", out).status == 0
    first = json.loads((out / "report.json").read_text())
    assert [point["alpha"] for point in first["frontier"]] == [0.5, 1.0]
    assert "finished already" in calift("train", spec, "--out", out).text

    longer = tmp_path / "longer.yaml"
    longer.write_text(yaml.safe_dump({**data, "train": {**data["train"], "epochs": 2}}))
    assert calift("train", longer, "--out", run, "--overwrite").status == 0
    assert "finished already" not in calift("train", spec, "--out", out).text
    second = json.loads((out / "report.json").read_text())
    assert second["model"]["sha256"] != first["model"]["sha256"]

    shutil.rmtree(run)  # what is finished stays finished
    assert "finished already" in calift("train", spec, "--out", out).text


def test_dry_run__a_merge_counts_its_path_and_says_which_run_is_missing(trained, calift, tmp_path):
    file, folder, _ = trained
    data = yaml.safe_load(file.read_text())

    def estimate(method):
        spec = tmp_path / "merge.yaml"
        spec.write_text(yaml.safe_dump({**data, "method": method}))
        output = calift("train", spec, "--dry-run", "--no-measure", "--json")
        return Validation.model_validate_json(output.stdout)

    own = estimate({"kind": "zero_shot"}).estimate.evaluation_images
    path = {"kind": "wise_ft", "run": str(folder), "alpha": 0.5, "sweep": [0.5, 1.0]}
    known = estimate(path)
    assert known.missing == []
    assert known.estimate.evaluation_images == 2 * own
    gone = estimate({**path, "run": str(tmp_path / "nowhere")})
    assert ["no folder of a finished run" in text for text in gone.missing] == [True]


def test_train__json_is_one_document_on_stdout(trained, calift):
    file, folder, _ = trained
    output = calift("train", file, "--out", folder, "--json")
    assert output.status == 0
    assert json.loads(output.stdout) == json.loads((folder / "report.json").read_text())


def test_train__another_spec_in_the_same_folder_is_refused_unless_overwritten(
    trained, calift, tmp_path
):
    file, folder, _ = trained
    mine = shutil.copytree(folder, tmp_path / "mine")
    other = tmp_path / "other.yaml"
    other.write_text(file.read_text().replace("kind: carot", "kind: zero_shot"))
    output = calift("train", other, "--out", mine)
    assert output.status == 1
    assert "holds a run of another RunSpec" in output.text
    assert "--overwrite" in output.text
    fresh = calift("train", other, "--out", mine, "--overwrite", "--json")
    assert fresh.status == 0, fresh.text
    assert json.loads(fresh.stdout)["spec"]["method"]["kind"] == "zero_shot"
    Report.model_validate_json(fresh.stdout)


def test_train__a_first_signal_saves_and_the_same_command_goes_on(run_spec, tmp_path, home, calift):
    spec = run_spec("flyp", train={"epochs": 12, "spectrum_every_epochs": 0})
    file, folder = write(tmp_path / "run.yaml", spec), tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "calift", "train", file, "--out", str(folder), "--json"],
        cwd=ROOT,
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        curve = folder / "metrics.jsonl"
        until(lambda: curve.is_file() and curve.stat().st_size, timeout_s=120, what="a step")
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait(60)
    assert process.returncode == 130
    assert json.loads(stdout)["error"]["code"] == "INTERRUPTED"
    assert "The same command goes on from there." in stderr
    output = calift("train", file, "--out", folder)
    assert output.status == 0
    assert re.search(r"Going on from the checkpoint of step \d+", output.text)


def test_evaluate__judges_on_a_new_shift_and_on_corruptions(trained, calift, tmp_path):
    _, folder, _ = trained
    write_classes(tmp_path / "dark", n=4, seed=3, gain=0.3)
    shift = ("--shift", f"dark=folder:{tmp_path}/dark")
    corrupted = ("--corruptions", "contrast", "--severities", "5")
    output = calift("evaluate", folder, "--out", tmp_path / "judged", *shift, *corrupted, "--json")
    assert output.status == 0, output.text
    document = json.loads(output.stdout)
    Report.model_validate(document)
    rows = {e["dataset"]: e for e in document["evaluations"]}
    assert list(rows) == ["photos/test", "art", "dark", "contrast/5"]
    first = json.loads((folder / "report.json").read_text())
    assert rows["photos/test"]["accuracy"] == first["summary"]["id_accuracy"]
    assert rows["dark"]["n"] == 12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shift", "dark"), "--shift takes NAME=folder:PATH, got 'dark'"),
        (("--corruptions", "fogg"), "unknown corruption 'fogg'"),
        (("--corruptions", "fog", "--severities", "hard"), "numbers from 1 to 5, got 'hard'"),
        (("--corruptions", "fog", "--severities", "9"), "#/suite/corruptions/severities"),
        (("--suite", "gone.yaml"), "cannot read the RunSpec 'gone.yaml'"),
    ],
)
def test_evaluate__wrong_arguments_are_sentences(trained, calift, tmp_path, arguments, words):
    output = calift("evaluate", trained[1], "--out", tmp_path / "judged", *arguments)
    assert output.status == 1
    assert words in output.text


def test_evaluate__a_folder_without_a_run_is_a_sentence(calift, tmp_path):
    output = calift("evaluate", tmp_path, "--out", tmp_path / "judged")
    assert output.status == 1
    assert "holds no run" in output.text


@pytest.mark.parametrize("what", ["methods", "models", "datasets"])
def test_list__without_a_service_tells_of_this_installation(calift, what):
    output = calift("list", what, "--json")
    assert output.status == 0, output.text
    items = json.loads(output.stdout)
    key = {"methods": "kind", "models": "name", "datasets": "id"}[what]
    names = {item[key] for item in items}
    assert names & {"carot", "calift-tiny", "fashion-mnist"}
    assert calift("list", what).status == 0


def test_doctor__finds_what_is_here_and_says_what_to_do_about_the_rest(calift):
    output = calift("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(output.stdout)}
    assert checks["extra [train]"]["state"] == "ok"
    assert checks["service"]["state"] == "warn"
    assert checks["CALIFT_HOME"]["state"] in ("ok", "warn")
    for check in checks.values():
        assert check["detail"]
        assert check["state"] == "ok" or check["hint"]


def test_doctor__a_home_that_cannot_be_written_is_a_failure(calift, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CALIFT_HOME", str(tmp_path / "file"))
    output = calift("doctor", "--json")
    assert output.status == 1
    (check,) = [c for c in json.loads(output.stdout) if c["name"] == "CALIFT_HOME"]
    assert check["state"] == "fail"
    assert "CALIFT_HOME" in check["hint"]


@pytest.mark.parametrize(
    "arguments",
    [("runs", "list"), ("submit", str(EXAMPLES / "laptop.yaml")), ("compare", "a", "b")],
)
def test_service__none_that_answers_is_a_sentence(calift, arguments):
    output = calift(*arguments, "--json")
    assert output.status == 1
    assert json.loads(output.stdout)["error"]["code"] == "SERVICE_UNAVAILABLE"


def test_submit__relative_paths_become_absolute_and_names_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    model = {"name": "config.json", "pretrained": "openai"}
    suite = {"id": "folder:photos", "shifts": {"art": "folder:/data/art"}}
    spec = spec_of(model=model, suite=suite)
    made = service.with_absolute_paths(spec)
    assert made.model.name == str(tmp_path / "config.json")
    assert made.model.pretrained == "openai"
    assert made.suite.id == f"folder:{tmp_path / 'photos'}"
    assert made.suite.shifts == {"art": "folder:/data/art"}
    assert service.with_absolute_paths(made) == made
    mine = spec.model_copy(update={"model": ModelSpec(name="local-dir:model")})
    assert service.with_absolute_paths(mine).model.name == f"local-dir:{tmp_path / 'model'}"
