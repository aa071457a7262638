"""What other prompts would have said, held to runs that had those prompts."""

from pathlib import Path

import numpy as np
import pytest

from calift_core.analysis.clusters import clustered
from calift_core.analysis.condition import Samples
from calift_core.analysis.explorer import Explorer
from calift_core.analysis.folder import FolderLibrary
from calift_core.analysis.gallery import shared_traits
from calift_core.calibration import score_probs
from calift_core.errors import NotFoundError, PredictionsError, SpecError, UnknownNameError
from calift_core.jobs.folder import run_in_folder
from calift_core.predictions.prompts import PROMPTS, read_prompts
from calift_core.predictions.read import read_predictions
from calift_core.predictions.rows import read_features
from calift_core.schema.report import EvaluationReport, Report
from calift_core.schema.wire.queries import ReliabilityQuery, SamplesQuery
from tests.core.conftest import PHOTO, tiny_spec, write_classes


@pytest.fixture(scope="module")
def ran(configs, photos, tmp_path_factory):
    """Finished runs in folders, each made once; with a shift and a corruption."""
    root = tmp_path_factory.mktemp("prompts")
    dark = write_classes(root / "dark", n=8, seed=1, gain=0.5)
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CALIFT_HOME", str(root / "home"))

        def run(kind, templates=PHOTO):
            name = f"{kind}-{len(templates)}-{templates[0][:10]}"
            if name not in made:
                made[name] = root / f"run{len(made)}"
                suite = {
                    "templates": list(templates),
                    "shifts": {"dark": f"folder:{dark}"},
                    "corruptions": {"names": ["contrast"], "severities": [3]},
                }
                spec = tiny_spec(kind, configs, photos, suite=suite, train={"epochs": 1})
                for _ in run_in_folder(spec, made[name]):
                    pass
            return made[name]

        yield run


def evaluations_of(run: Path) -> dict[str, EvaluationReport]:
    report = Report.model_validate_json((run / "report.json").read_bytes())
    return {e.role: e for e in report.evaluations}


def file_of(run: Path, role: str) -> Path:
    found = [p for p in (run / "predictions").glob("*.parquet")]
    return next(p for p in found if read_predictions(p).metadata.role == role)


@pytest.mark.parametrize("kind", ["zero_shot", "carot"])
def test_features__times_the_own_head_are_the_stored_logits(ran, kind):
    run = ran(kind)
    heads = read_prompts(run / "checkpoint" / PROMPTS)
    for role in ("id", "shift"):
        stored = read_predictions(file_of(run, role))
        features = read_features(file_of(run, role))
        assert np.linalg.norm(features.astype(np.float32), axis=1) == pytest.approx(1, abs=2e-3)
        made = heads.logits("own", features, stored.metadata.class_names)
        assert np.abs(made - stored.logits).max() < 2e-3 * heads.scale
    for role in ("corruption", "calibration", "validation"):
        assert read_features(file_of(run, role)) is None


def test_one_template__is_what_a_run_with_that_template_says(ran):
    all_three, alone = ran("zero_shot"), ran("zero_shot", PHOTO[1:2])
    explorer = Explorer(FolderLibrary())
    for role in ("id", "shift"):
        subject = FolderLibrary().subject(str(file_of(all_three, role)))
        found = {e.name: e for e in explorer.prompts(subject).items}
        assert list(found)[0] == "own"
        assert set(PHOTO) <= set(found)
        was = evaluations_of(all_three)[role]
        assert found["own"].accuracy == pytest.approx(was.accuracy, abs=1 / was.n)
        assert found["own"].nll == pytest.approx(was.nll, abs=2e-3)
        assert found["own"].changed == 0
        expected = evaluations_of(alone)[role]
        assert found[PHOTO[1]].nll == pytest.approx(expected.nll, abs=2e-3)
        assert found[PHOTO[1]].ece == pytest.approx(expected.ece.value, abs=0.02)
        diagram = explorer.reliability(subject, ReliabilityQuery(prompts=PHOTO[1]))
        assert diagram.prompts == PHOTO[1]
        assert diagram.accuracy == found[PHOTO[1]].accuracy
        assert diagram.null_mean == found[PHOTO[1]].null_mean
        plain = explorer.reliability(subject)
        assert plain.prompts is None
        assert plain.nll != diagram.nll


def test_prompts__say_why_there_are_none(ran):
    explorer, library = Explorer(FolderLibrary()), FolderLibrary()
    head = library.subject(str(file_of(ran("finetune"), "id")))
    found = explorer.prompts(head)
    assert found.items == []
    assert "keeps no other prompts" in str(found.why)
    corrupted = library.subject(str(file_of(ran("zero_shot"), "corruption")))
    assert "the image features of contrast/3 are not stored" in str(explorer.prompts(corrupted).why)
    with pytest.raises(NotFoundError, match="features of contrast/3 are not stored"):
        explorer.reliability(corrupted, ReliabilityQuery(prompts="own"))
    subject = library.subject(str(file_of(ran("zero_shot"), "id")))
    with pytest.raises(UnknownNameError, match="a painting"):
        explorer.reliability(subject, ReliabilityQuery(prompts="a painting of {}"))
    with pytest.raises(SpecError, match="must stand alone, got the prompts"):
        explorer.reliability(subject, ReliabilityQuery(prompts="own", calibrator="temperature"))


def test_heads__of_fewer_and_of_strange_classes(ran):
    run = ran("zero_shot")
    heads = read_prompts(run / "checkpoint" / PROMPTS)
    features = read_features(file_of(run, "id"))
    every = heads.logits("own", features, heads.class_names)
    swapped = heads.logits("own", features, heads.class_names[::-1][:2])
    assert np.array_equal(swapped, every[:, ::-1][:, :2])
    with pytest.raises(SpecError, match="got 'a zebra'"):
        heads.logits("own", features, ["a zebra"])
    with pytest.raises(SpecError, match="width of the text tower"):
        heads.logits("own", features[:, 1:], heads.class_names)


def test_prompts__that_are_damaged_are_an_error(ran, tmp_path):
    data = (ran("zero_shot") / "checkpoint" / PROMPTS).read_bytes()
    for damaged in (data[:-200], b"text"):
        (tmp_path / PROMPTS).write_bytes(damaged)
        with pytest.raises(PredictionsError, match="is damaged"):
            read_prompts(tmp_path / PROMPTS)


def test_gallery__has_the_nearest_prompts(ran):
    run = ran("zero_shot")
    path = file_of(run, "id")
    explorer, subject = Explorer(FolderLibrary()), FolderLibrary().subject(str(path))
    heads = read_prompts(run / "checkpoint" / PROMPTS)
    features = read_features(path)
    page = explorer.samples(subject, SamplesQuery(sort="nll", descending=True, limit=7))
    stored = read_predictions(path)
    for sample in page.items:
        (at,) = np.flatnonzero(stored.ids == sample.id)
        some = read_features(path, np.array([at, 0, at]))
        assert some is not None
        assert np.array_equal(some, features[[at, 0, at]])
        expected = max(
            float(features[at].astype(np.float32) @ heads.heads[h, c].astype(np.float32))
            for h, name in enumerate(heads.names)
            if "{}" in name
            for c in range(len(heads.class_names))
        )
        assert sample.prompts[0].cosine == pytest.approx(expected, abs=1e-6)
        assert sample.prompts[0].text in {
            t.format(name) for t in PHOTO for name in heads.class_names
        }
        cosines = [p.cosine for p in sample.prompts]
        assert cosines == sorted(cosines, reverse=True)
    assert explorer.samples(subject, SamplesQuery(top=0)).items[0].prompts == []


def test_clusters__of_separate_groups_are_found_and_described_by_fishers_test():
    rng = np.random.default_rng(0)
    of = np.repeat(np.arange(4), 60)
    raw = np.eye(4, 16)[of] + 0.05 * rng.standard_normal((240, 16))
    features = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float16)
    found = clustered(features, of % 2, ("cat", "dog"))
    for group in range(4):  # k is 3: no group is torn
        assert len(set(found.of[of == group].tolist())) == 1
    again = clustered(features, of % 2, ("cat", "dog"))
    assert np.array_equal(found.of, again.of)
    assert clustered(features[:30], of[:30], ("cat", "dog")) is None
    probs = np.full((240, 2), 0.5)
    samples = Samples(
        scores=score_probs(probs, of % 2),
        ids=np.array([f"i{i}" for i in range(240)]),
        class_names=("cat", "dog"),
        clusters=None,
    )
    chosen = np.flatnonzero(of == 2)[:50]
    answer = [t for t in shared_traits(samples, chosen, found) if t.column == "cluster"]
    assert answer[0].key == found.of[chosen[0]]
    assert answer[0].share == 1.0
    assert answer[0].p < 1e-6
