"""The suite that comes with calift: what it holds, and that its weights know it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from calift_core.data.glyphs import ARRAYS, FULL, SIDE, pack, read_glyphs
from calift_core.data.inspection import examine_suite
from calift_core.data.loader import TrainView
from calift_core.data.preprocess import Preprocess
from calift_core.data.styles import GENRES, LEARNED, LETTERS
from calift_core.data.suites.load import load_suite
from calift_core.data.suites.typefaces import CHARACTERS, SHIFTS, STORED, STORED_SHA256, Typefaces
from calift_core.errors import DataError, DataUnavailableError, ModelError, UnknownNameError
from calift_core.evaluation.forward import ForwardSettings, predict
from calift_core.files import sha256_file
from calift_core.jobs.tiny import ensure_tiny, tiny_sha256
from calift_core.methods.base import zero_shot_classifier
from calift_core.models.captions import Captions
from calift_core.models.loading import load_clip, load_shipped, shrunk
from calift_core.models.zeroshot import TEMPLATES
from calift_core.packaged import packaged
from calift_core.schema.suite import SuiteSpec

#: SHA-256 of the pixels of every hundredth letter: what any machine must see.
PIXELS = "671125530b6d022bd7956530e585b7acbe3e4d5cf442c6d21ed922b338427dd5"

#: Right answers of 620, zero-shot.
ZERO_SHOT = {"test": 360, "serif": 270}


@pytest.fixture(scope="module")
def suite():
    return load_suite(SuiteSpec(id="typefaces"))


@pytest.fixture(scope="module")
def stored():
    return read_glyphs(STORED)


def test_typefaces__comes_along_as_it_was_drawn(stored):
    assert stored.key == STORED_SHA256
    assert STORED.stat().st_size < 8_000_000
    pixels = hashlib.sha256(b"".join(stored.image(i).tobytes() for i in range(0, len(stored), 100)))
    assert pixels.hexdigest() == PIXELS


def test_typefaces__every_part_and_shift_has_all_classes_as_often(suite):
    sizes = {part: len(images) for part, images in suite.parts.items()}
    sizes |= {name: len(images) for name, images in suite.shifts.items()}
    assert sizes == dict(Typefaces.parts)
    assert tuple(suite.shifts) == SHIFTS
    for images in (*suite.parts.values(), *suite.shifts.values()):
        counts = np.bincount(images.labels, minlength=len(CHARACTERS))
        assert counts.min() == counts.max() > 0
        assert images.image(0).shape == (SIDE, SIDE, 3)


def test_typefaces__no_family_is_in_two_parts_of_a_genre():
    output = json.loads((Path(__file__).parents[3] / "docs" / "typefaces.json").read_text())
    parts_of = {}
    packages = set()
    for file in ("typefaces.xz", "study/typefaces-pretrain.xz"):
        for part, genres in output[file]["families"].items():
            for genre, families in genres.items():
                for family, fonts in families.items():
                    parts_of.setdefault((genre, family), []).append(part)
                    packages |= set(fonts)
    assert all(len(parts) == 1 for parts in parts_of.values())
    assert {genre for genre, _ in parts_of} == {"sans", *SHIFTS}
    assert packages == set(output["packages"])
    assert all(entry["licences"] for entry in output["packages"].values())
    assert output["typefaces.xz"]["sha256"] == STORED_SHA256


def test_typefaces__a_shift_can_be_left_out_and_doctor_sees_the_file(suite):
    suite = load_suite(SuiteSpec(id="typefaces", shifts={"display": "none"}))
    assert "display" not in suite.shifts
    assert "serif" in suite.shifts
    with pytest.raises(UnknownNameError, match="shift of typefaces 'gothic'"):
        load_suite(SuiteSpec(id="typefaces", shifts={"gothic": "none"}))
    found = {check.name: check.state for check in examine_suite("typefaces")}
    assert found["typefaces.xz"] == "ok"
    assert set(found.values()) == {"ok"}


def test_genres__half_of_the_captions_name_the_genre_that_the_letter_is_of(suite):
    learned = LEARNED["genres"]
    images = suite.shifts["pixel"]
    view = TrainView(
        images, Preprocess(SIDE), len(learned.templates), 0, (1.0, 1.0), flip=False,
        learned="genres",
    )  # fmt: skip
    output = []
    for index in range(400):
        pixels, label, caption = view[(0, index)]
        assert np.array_equal(pixels, images.image(index))
        assert caption // len(learned.templates) == label
        output.append(learned.templates[caption % len(learned.templates)])
    assert set(output) == {*LETTERS, *GENRES["pixel"]}
    assert 150 < sum(text in GENRES["pixel"] for text in output) < 250


@pytest.fixture(scope="module")
def clip():
    return load_clip("calift-tiny", "typefaces").eval()


def test_shipped__weights_are_what_they_were_and_know_the_letters(suite, clip):
    stored = packaged("typefaces")
    assert sha256_file(stored.file) == stored.sha256 == tiny_sha256("typefaces")
    assert stored.file.stat().st_size < 4_000_000
    captions = Captions.make(suite.class_names, TEMPLATES["letters"], clip.tokenizer)
    classifier = zero_shot_classifier(clip, captions)
    right = {}
    settings = ForwardSettings(
        batch_size=620, workers=0, device=torch.device("cpu"), precision="fp32"
    )
    for images in (suite.part("test").limited(620), suite.shifts["serif"].limited(620)):
        logits = predict(clip, classifier, images, settings)
        right[images.name] = int((logits.argmax(axis=1) == images.labels).sum())
    # Of 620; another processor's rounding may turn a tie.
    assert right == {name: pytest.approx(n, abs=2) for name, n in ZERO_SHOT.items()}


def test_shipped__nothing_is_pre_trained_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CALIFT_HOME", str(tmp_path))
    assert list(ensure_tiny("typefaces")) == []
    assert not any(tmp_path.iterdir())


def test_shrunk__comes_back_as_it_was_within_float16(clip, tmp_path):
    tokens = torch.tensor([3, 320, 49407])
    save_file(shrunk(clip.net, tokens), tmp_path / "a.safetensors")
    other = load_clip("calift-tiny", None, generator=torch.Generator().manual_seed(1))
    before = other.net.state_dict()["token_embedding.weight"].clone()
    load_shipped(other.net, tmp_path / "a.safetensors")
    mine = other.net.state_dict()
    for name, tensor in clip.net.state_dict().items():
        if name != "token_embedding.weight":
            torch.testing.assert_close(mine[name], tensor, rtol=1e-3, atol=1e-6)
    rows = mine["token_embedding.weight"]
    torch.testing.assert_close(rows[tokens], clip.net.token_embedding.weight[tokens], rtol=1e-3,
                               atol=1e-6)  # fmt: skip
    rest = torch.ones(len(rows), dtype=torch.bool)
    rest[tokens] = False
    assert torch.equal(rows[rest], before[rest])
    with pytest.raises(ModelError, match="weights of another model"):
        load_shipped(other.net.visual, tmp_path / "a.safetensors")


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
def test_glyphs__stay_within_their_noise_of_ink_over_ground(tmp_path_factory, arrays):
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


def test_glyphs__something_else_is_an_error(tmp_path):
    for content in (b"", b"letters", STORED.read_bytes()[:1000]):
        (tmp_path / "x.xz").write_bytes(content)
        with pytest.raises(DataError, match=r"x\.xz' is no file of drawn letters"):
            read_glyphs(tmp_path / "x.xz")


def test_typefaces__a_folder_with_another_draw_takes_the_place_of_what_comes_along(
    tmp_path, stored
):
    with pytest.raises(DataUnavailableError, match="no file typefaces-pretrain.xz and none"):
        load_suite(SuiteSpec(id=f"typefaces:{tmp_path}"))
    few = np.flatnonzero(stored.labels < 2)  # of every part
    arrays = {name: getattr(stored, name)[few] for name in ARRAYS}
    (tmp_path / STORED.name).write_bytes(pack(arrays, stored.about))
    suite = load_suite(SuiteSpec(id=f"typefaces:{tmp_path}"))
    assert "pretrain" not in suite.parts
    everything = (*suite.parts.values(), *suite.shifts.values())
    assert sum(map(len, everything)) == len(few)
