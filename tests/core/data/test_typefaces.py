"""The suite that comes with calift: what it holds, and that its weights know it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calift_core.data.glyphs import FULL, SIDE, Glyphs, pack, read_glyphs
from calift_core.data.inspection import examine_suite
from calift_core.data.suites.load import Suite, load_suite
from calift_core.data.suites.typefaces import CHARACTERS, SHIFTS, STORED, STORED_SHA256, Typefaces
from calift_core.errors import DataError, UnknownNameError
from calift_core.schema.spec import SuiteSpec

#: SHA-256 of the pixels of every hundredth letter: what any machine must see.
PIXELS = "65b5d21aa24bd9df2e93024f1f1413b7cdb1f59bc570c5500271c9d5a82b5762"


@pytest.fixture(scope="module")
def suite() -> Suite:
    return load_suite(SuiteSpec(id="typefaces"))


@pytest.fixture(scope="module")
def stored() -> Glyphs:
    return read_glyphs(STORED)


def test_typefaces__comes_along_as_it_was_drawn(stored: Glyphs) -> None:
    assert stored.key == STORED_SHA256
    assert STORED.stat().st_size < 8_000_000
    pixels = hashlib.sha256(b"".join(stored.image(i).tobytes() for i in range(0, len(stored), 100)))
    assert pixels.hexdigest() == PIXELS


def test_typefaces__every_part_and_shift_has_all_classes_as_often(suite: Suite) -> None:
    sizes = {part: len(images) for part, images in suite.parts.items()}
    sizes |= {name: len(images) for name, images in suite.shifts.items()}
    assert sizes == dict(Typefaces.parts)
    assert tuple(suite.shifts) == SHIFTS
    for images in (*suite.parts.values(), *suite.shifts.values()):
        counts = np.bincount(images.labels, minlength=len(CHARACTERS))
        assert counts.min() == counts.max() > 0
        assert images.image(0).shape == (SIDE, SIDE, 3)


def test_typefaces__no_family_is_in_two_parts_of_a_genre() -> None:
    said = json.loads((Path(__file__).parents[3] / "docs" / "typefaces.json").read_text())
    parts_of: dict[tuple[str, str], list[str]] = {}
    packages: set[str] = set()
    for file in ("typefaces.xz", "typefaces-pretrain.xz"):
        for part, genres in said[file]["families"].items():
            for genre, families in genres.items():
                for family, fonts in families.items():
                    parts_of.setdefault((genre, family), []).append(part)
                    packages |= set(fonts)
    assert all(len(parts) == 1 for parts in parts_of.values())
    assert {genre for genre, _ in parts_of} == {"sans", *SHIFTS}
    assert packages == set(said["packages"])
    assert all(entry["licences"] for entry in said["packages"].values())
    assert said["typefaces.xz"]["sha256"] == STORED_SHA256


def test_typefaces__a_shift_can_be_left_out_and_has_no_other_name() -> None:
    suite = load_suite(SuiteSpec(id="typefaces", shifts={"display": "none"}))
    assert "display" not in suite.shifts
    assert "serif" in suite.shifts
    with pytest.raises(UnknownNameError, match="shift of typefaces 'gothic'"):
        load_suite(SuiteSpec(id="typefaces", shifts={"gothic": "none"}))


def test_typefaces__doctor_sees_the_file(suite: Suite) -> None:
    found = {check.name: check.state for check in examine_suite("typefaces")}
    assert found["typefaces.xz"] == "ok"
    assert set(found.values()) == {"ok"}


def _glyphs(draw: st.DrawFn) -> dict[str, np.ndarray]:
    n = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return {
        "coverage": rng.integers(0, 256, (n, SIDE * SIDE // 2), dtype=np.uint8),
        "ink": rng.integers(0, 256, (n, 3), dtype=np.uint8),
        "ground": rng.integers(0, 256, (n, 3), dtype=np.uint8),
        "noise": rng.integers(0, 256, n, dtype=np.uint8),
        "labels": rng.integers(0, 62, n, dtype=np.uint8),
        "fonts": np.zeros(n, np.uint16),
        "draws": np.arange(n, dtype=np.uint8),
    }


@settings(max_examples=10, deadline=None)
@given(st.composite(_glyphs)())
def test_glyphs__stay_within_their_noise_of_ink_over_ground(
    tmp_path_factory: pytest.TempPathFactory, arrays: dict[str, np.ndarray]
) -> None:
    file = tmp_path_factory.mktemp("glyphs") / "some.xz"
    raw = pack(arrays, {"fonts": [{"part": "train"}]})
    assert raw == pack(arrays, {"fonts": [{"part": "train"}]})
    file.write_bytes(raw)
    glyphs = read_glyphs(file)
    assert glyphs.parts.tolist() == ["train"] * len(glyphs)
    for i in range(len(glyphs)):
        cover = np.stack([arrays["coverage"][i] >> 4, arrays["coverage"][i] & 15], -1)
        share = cover.reshape(SIDE, SIDE, 1) / FULL
        clean = share * arrays["ink"][i] + (1 - share) * arrays["ground"][i]
        far = np.abs(glyphs.image(i) - clean)
        assert far.max() <= arrays["noise"][i] + 1.5
        assert np.array_equal(glyphs.image(i), glyphs.image(i))


def test_glyphs__something_else_is_told(tmp_path: Path) -> None:
    for content in (b"", b"letters", STORED.read_bytes()[:1000]):
        (tmp_path / "x.xz").write_bytes(content)
        with pytest.raises(DataError, match=r"x\.xz' is no file of drawn letters"):
            read_glyphs(tmp_path / "x.xz")
