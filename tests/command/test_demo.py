"""What a finished run of the demo is used again for."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import calift_core
from calift.commands.demo import deciding_files, demo_specs, demo_tag, path_spec, source_key
from calift_core.files import atomic_write_json
from calift_core.schema.records import JobFile
from tests.core.conftest import environment

PACKAGE = Path(calift_core.__file__).parent
#: How things are shown, asked for and imported: no number of a run comes from there.
SHOWN = (
    "client/runs.py", "catalogue.py", "analysis/bound.py", "analysis/measures.py",
    "analysis/slices.py", "analysis/imported.py", "predictions/foreign/load.py",
    "jobs/estimate.py", "schema/wire/results.py", "schema/imported.py",
)  # fmt: skip
DECIDES = (
    "training/loop.py", "jobs/job.py", "evaluation/evaluate.py", "models/zeroshot.py",
    "data/preprocess.py", "methods/terms.py", "methods/__init__.py", "data/corruptions/blur.py",
    "data/loader.py", "calibration/bins.py", "schema/spec.py",
)  # fmt: skip


@pytest.fixture(scope="module")
def key():
    return source_key()


@pytest.fixture
def copied(tmp_path):
    """The package's source, to be changed."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(PACKAGE, tmp_path / "calift_core", ignore=ignored))


def touch(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    path.write_text(text + (" " if path.suffix == ".json" else "\nTOUCHED = 1\n"), encoding="utf-8")


def test_source_key__is_kept_where_presentation_and_comments_are_touched(copied, key):
    for name in SHOWN:
        touch(copied / name)
    path = copied / "methods" / "terms.py"
    text = path.read_text(encoding="utf-8")
    said_better = text.replace('    """', '    """Said better. ', 1).replace("\n\n\n", "\n\n")
    assert said_better != text
    path.write_text(f"# why\n{said_better}", encoding="utf-8")
    assert source_key(copied) == key


@pytest.mark.parametrize(
    "name", ["methods/terms.py", "models/zeroshot.py", "models/calift_tiny.json"]
)
def test_source_key__changes_with_a_file_that_decides_a_number(copied, key, name):
    touch(copied / name)
    assert source_key(copied) != key


def test_deciding_files__are_all_that_a_runner_loads(run_spec, home, tmp_path):
    deciding = {path.relative_to(PACKAGE).as_posix() for path in deciding_files(PACKAGE)}
    assert set(DECIDES) <= deciding
    assert not deciding & set(SHOWN)
    folder = tmp_path / "job"
    spec = run_spec("carot", suite={"corruptions": {"names": ["fog"], "severities": [1]}})
    atomic_write_json(folder / "spec.json", spec.model_dump(mode="json"))
    atomic_write_json(folder / "job.json", JobFile(run_id="a").model_dump(mode="json"))
    code = (
        "import sys\nfrom calift_core.jobs.__main__ import main\nassert main(sys.argv[1:]) == 0\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('calift_core.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=PACKAGE.parent,
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    loaded = {Path(file).relative_to(PACKAGE).as_posix() for file in done.stdout.split()}
    assert {"methods/carot.py", "data/corruptions/weather.py"} <= loaded
    assert {name for name in loaded - deciding if not name.startswith("schema/wire/")} == set()


def test_demo_tag__differs_with_spec_source_images_and_weights():
    one, other = demo_specs()[:2]
    tags = {
        demo_tag(one, "s", "images:weights"),
        demo_tag(other, "s", "images:weights"),
        demo_tag(one, "t", "images:weights"),
        demo_tag(one, "s", "images:others"),
    }
    assert len(tags) == 4


def test_path__differs_from_its_run_in_method_and_name_alone():
    flyp = demo_specs()[1]
    path = path_spec("a1b2c3d4e5f6", flyp)
    assert path.method.kind == "wise_ft"
    assert path.method.run == "a1b2c3d4e5f6"
    assert path.method.choose == "one_se"
    output = {"name", "method"}
    assert path.model_dump(exclude=output) == flyp.model_dump(exclude=output)
