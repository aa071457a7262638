"""iWildCam and FMoW, on trees in the layout that WILDS publishes."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calift_core.data.counting import count_suite
from calift_core.data.inspection import examine_suite
from calift_core.data.suites.load import load_suite
from calift_core.errors import CaliftError, DataError
from calift_core.schema.suite import SuiteSpec

SPECIES = ("empty", "tayassu pecari", "panthera_onca")
SPLITS = {"train": 48, "id_val": 9, "id_test": 12, "val": 6, "test": 15}


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def picture(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def cams(tmp_path):
    root = tmp_path / "iwildcam_v2.0"
    (root / "train").mkdir(parents=True)
    names = [{"category_id": 10 + y, "name": name, "y": y} for y, name in enumerate(SPECIES)]
    write_table(root / "categories.csv", [*names, {"category_id": 99, "name": "cow", "y": 99999}])
    rows = []
    for split, n in SPLITS.items():
        for i in range(n):
            name = f"{split}-{i:03d}.png"
            picture(root / "train" / name, len(rows))
            about = {"split": split, "location_remapped": i // 6, "filename": name}
            more = {"y": i % 3, "sequence_remapped": 100 * len(split) + i // 3}
            rows.append({"": len(rows), **about, **more, "datetime": "2013-06-05 05:44:19.000"})
    write_table(root / "metadata.csv", rows)
    return root


def test_iwildcam__official_parts_and_whole_bursts(cams):
    spec = SuiteSpec(id=f"iwildcam:{cams.parent}", fractions={"calibration": 0.25})
    suite, counts = load_suite(spec), count_suite(spec)
    assert suite.class_names == ("empty", "tayassu pecari", "panthera onca")
    assert (len(suite.part("validation")), len(suite.part("test"))) == (9, 12)
    assert {name: len(s) for name, s in suite.shifts.items()} == {"ood_val": 6, "ood_test": 15}
    assert counts.parts == {part: len(images) for part, images in suite.parts.items()}
    burst = {f"train/train-{i:03d}.png": i // 3 for i in range(48)}
    train, calibration = ({burst[i] for i in suite.part(p).ids} for p in ("train", "calibration"))
    assert train.isdisjoint(calibration)
    assert len(suite.part("calibration")) == 12
    assert suite.part("test").ids[4] == "train/id_test-004.png"
    alone = load_suite(SuiteSpec(id=f"iwildcam:{cams}", shifts={"ood_val": "none"}))
    assert list(alone.shifts) == ["ood_test"]


def test_fmow__parts_by_split_and_year_and_numbers_that_count_all_rows(tmp_path):
    root = tmp_path / "fmow_v1.1"
    (root / "images").mkdir(parents=True)
    moments = ("2002-01-03T10:00:00Z", "2012-12-31T23:59:59Z", "2013-01-01T00:00:00Z",
               "2015-07-01T01:02:03Z", "2016-01-01T00:00:00Z", "2017-08-30T11:11:11Z")  # fmt: skip
    rows = [
        {
            "split": split, "category": category, "timestamp": moment, "country_code": "FRA",
            "img_path": f"{split}/{category}/{category}_{place}/{category}_{place}_{k}_rgb.jpg",
        }
        for split in ("seq", "train", "val", "test")
        for category in ("zoo", "airport")
        for place in range(4)
        for k, moment in enumerate(moments)
    ]  # fmt: skip
    write_table(root / "rgb_metadata.csv", rows)
    for number in range(len(rows)):
        picture(root / "images" / f"rgb_img_{number}.png", number)
    suite = load_suite(SuiteSpec(id=f"fmow:{root}", fractions={"calibration": 0.25}))
    assert suite.classes == ("airport", "zoo")
    expected = {
        "train": ("train", "2002", "2012"),
        "calibration": ("train", "2002", "2012"),
        "validation": ("val", "2002", "2012"),
        "test": ("test", "2002", "2012"),
        "ood_val": ("val", "2013", "2015"),
        "ood_test": ("test", "2016", "2017"),
    }
    for name, images in (suite.parts | suite.shifts).items():
        split, *years = expected[name]
        for image_id, label in zip(images.ids, images.labels, strict=True):
            row = rows[int(image_id.removeprefix("images/rgb_img_").removesuffix(".png"))]
            assert row["split"] == split
            assert row["timestamp"][:4] in years
            assert row["category"] == suite.classes[label]
    assert len(suite.part("train")) + len(suite.part("calibration")) == 16
    assert len(suite.part("calibration")) == 4  # whole places of two images each
    assert len(suite.shifts["ood_test"]) == 16


def test_wilds__what_is_wrong_is_a_sentence(cams):
    place = f"iwildcam:{cams}"
    sizes = {"train": (48,), "validation": (9,), "test": (12,), "ood_val": (6,), "ood_test": (15,)}
    assert all(check.state == "ok" for check in examine_suite(place, published=sizes))
    (cams / "train" / "test-003.png").unlink()
    checks = {check.name: check for check in examine_suite(place, published=sizes)}
    assert "1 of 90 are missing, the first is 'train/test-003.png'" in checks["images"].detail
    assert {check.state for check in examine_suite(place)} >= {"fail"}
    text = (cams / "metadata.csv").read_text()
    for old, new, sentence in (
        ("train-004.png", "../x.png", "a filename is one of train/, got '../x.png'"),
        ("id_val,", "idval,", "split is one of train, id_val, .*, got 'idval'"),
        ("split,", "part,", "has no column 'split'"),
    ):
        (cams / "metadata.csv").write_text(text.replace(old, new))
        with pytest.raises(DataError, match=sentence):
            load_suite(SuiteSpec(id=place))
    with pytest.raises(
        CaliftError, match=r"no metadata.csv; no categories.csv; no train.*WILDS|wilds"
    ):
        load_suite(SuiteSpec(id=f"iwildcam:{cams / 'train'}"))
    assert count_suite(SuiteSpec(id="fmow")).shifts == {"ood_val": 19_915, "ood_test": 22_108}
