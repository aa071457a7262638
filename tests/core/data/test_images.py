"""Images, splits, suites and batches."""

import io
import pickle
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from calift_core.data.cache import CACHE_SHARE, cached_in_memory
from calift_core.data.corrupted import corrupted
from calift_core.data.corruptions import corrupt, image_seed
from calift_core.data.crops import random_resized_crop, smallest_side
from calift_core.data.decode import decode
from calift_core.data.images import ImageSet, split_by_hash
from calift_core.data.loader import (
    Normalise,
    TrainView,
    epoch_order,
    eval_batches,
    feature_batches,
    train_batches,
)
from calift_core.data.preprocess import Preprocess
from calift_core.data.sources import (
    ArraySource,
    FileSource,
    check_headers,
    decode_all,
    with_draft_decoding,
)
from calift_core.data.styles import STYLES
from calift_core.data.suites.fashion import FASHION_SPLIT, fashion_mnist_folder
from calift_core.data.suites.load import Suite, load_suite
from calift_core.errors import (
    DataError,
    DataUnavailableError,
    SpecError,
    UnknownNameError,
    UnreadableImageError,
)
from calift_core.schema.suite import SuiteSpec
from tests.core.conftest import CLASSES, write_classes

few = settings(max_examples=25, deadline=None)
CPU = torch.device("cpu")
PLAIN = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), CPU)


def array_set(n: int, *, side: int = 8, seed: int = 0, names: Sequence[str] | None = None) -> Any:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    return ImageSet(
        "set",
        ArraySource(pixels, f"key {seed}"),
        tuple(names or (f"{i}.png" for i in range(n))),
        np.arange(n) % 3,
        np.arange(n),
    )


def suite_of(root: Path, **more: Any) -> Suite:
    return load_suite(SuiteSpec(id=f"folder:{root}", **more))


def noise(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


names = st.lists(st.text("abcdef/", min_size=1, max_size=6), min_size=1, max_size=60, unique=True)
fractions = st.fixed_dictionaries(
    {"validation": st.floats(0, 0.3), "calibration": st.floats(0, 0.3), "test": st.floats(0, 0.3)}
)


@few
@given(names, fractions)
def test_split__parts_are_disjoint_and_cover_the_set(ids, shares):
    whole = array_set(len(ids), names=ids)
    parts = split_by_hash(whole, shares, "train")
    assert list(parts) == [*shares, "train"]
    together = [image_id for part in parts.values() for image_id in part.ids]
    assert sorted(together) == sorted(ids)
    for part in parts.values():
        for position, image_id in enumerate(part.ids):
            at = ids.index(image_id)
            assert part.labels[position] == whole.labels[at]
            assert np.array_equal(part.image(position), whole.image(at))


@few
@given(names, fractions, st.randoms())
def test_split__an_image_stays_where_it_is_whatever_comes_with_it_and_in_any_order(
    ids, shares, random
):
    some = random.sample(ids, random.randint(1, len(ids)))
    whole = split_by_hash(array_set(len(ids), names=ids), shares, "train")
    less = split_by_hash(array_set(len(some), names=some), shares, "train")
    for part, images in less.items():
        assert set(images.ids) == set(whole[part].ids) & set(some)


def test_split__shares_are_met_in_the_large():
    parts = split_by_hash(array_set(4000, side=1), {"validation": 0.1, "test": 0.25}, "train")
    assert len(parts["validation"]) / 4000 == pytest.approx(0.1, abs=0.02)
    assert len(parts["test"]) / 4000 == pytest.approx(0.25, abs=0.03)


@few
@given(names, st.integers(1, 60), st.integers(1, 60))
def test_limited__fewer_images_are_among_the_more(ids, one, other):
    images = array_set(len(ids), names=ids)
    small, large = images.limited(min(one, other)), images.limited(max(one, other))
    assert len(small) == min(one, other, len(ids))
    assert set(small.ids) <= set(large.ids)
    assert [i for i in ids if i in set(small.ids)] == list(small.ids)  # order is kept


def test_image_set__hash_changes_with_pixels_ids_and_labels():
    base = array_set(5)
    others = [
        base,
        array_set(5, seed=1),
        array_set(5, names="abcde"),
        base.take([0, 1, 2], "set"),
        ImageSet("set", base.source, base.ids, base.labels[::-1].copy(), base.indices),
    ]
    assert len({images.sha256 for images in others}) == len(others)
    assert array_set(5).sha256 == base.sha256


def test_folder_suite__parts_come_off_by_path_hash(photos):
    suite = suite_of(photos)
    assert suite.classes == CLASSES
    assert suite.class_names == tuple(name.replace("_", " ") for name in CLASSES)
    assert sum(map(len, suite.parts.values())) == 120
    for images in suite.parts.values():
        for image_id, label in zip(images.ids, images.labels, strict=True):
            assert image_id.startswith(CLASSES[label] + "/")
    assert {part: s.ids for part, s in suite_of(photos).parts.items()} == {
        part: s.ids for part, s in suite.parts.items()
    }


@pytest.mark.parametrize(
    ("train", "validation", "calibration", "test"),
    [
        ("Train", "valid", "Calib", "Test"),
        ("training", "dev", "calibration", "testing"),
        ("TRAIN_set", "Validation Data", "cal", "test-images"),
    ],
)
def test_folder_suite__parts_have_any_common_name(tmp_path, train, validation, calibration, test):
    names = {"train": train, "validation": validation, "calibration": calibration, "test": test}
    for n, folder in enumerate(names.values()):
        write_classes(tmp_path / folder, n=3 + n)
    suite = suite_of(tmp_path)
    assert suite.classes == CLASSES
    assert {part: len(images) for part, images in suite.parts.items()} == {
        part: 3 * (3 + n) for n, part in enumerate(names)
    }
    for part, folder in names.items():
        assert all(image_id.startswith(f"{folder}/") for image_id in suite.parts[part].ids)


def test_folder_suite__what_could_be_a_part_or_a_class_is_refused(tmp_path):
    write_classes(tmp_path / "mixed", ("bus", "car", "train"), n=3)
    with pytest.raises(DataError, match="train are called like parts.*bus, car beside them are"):
        suite_of(tmp_path / "mixed")
    (tmp_path / "mixed").rename(tmp_path / "again")  # as a part it says which is meant
    classes = suite_of(shutil.move(tmp_path / "again", tmp_path / "known" / "train").parent).classes
    assert classes == ("bus", "car", "train")
    for folder in ("train", "val", "Valid"):
        write_classes(tmp_path / "twice" / folder, n=3)
    with pytest.raises(DataError, match="'Valid' and 'val' both are the validation part"):
        suite_of(tmp_path / "twice")
    write_classes(tmp_path / "nested" / "train" / "train", n=3)
    write_classes(tmp_path / "nested" / "train" / "test", n=3)
    with pytest.raises(DataError, match="test, train in it is called like a part"):
        suite_of(tmp_path / "nested")


def test_folder_suite__all_that_is_left_out_is_reported(tmp_path):
    write_classes(tmp_path, n=4)
    pixels = Image.fromarray(noise(32, 32))
    pixels.save(tmp_path / CLASSES[0] / "a.avif")
    pixels.save(tmp_path / CLASSES[0] / "b.jfif", "JPEG")
    (tmp_path / CLASSES[1] / "c.heic").write_bytes(b"heic")
    (tmp_path / CLASSES[1] / "Thumbs.db").write_bytes(b"")
    pixels.save(tmp_path / "stray.png")
    suite = suite_of(tmp_path)
    assert sum(map(len, suite.parts.values())) == 14
    stray, unread = suite.notes
    assert stray == "1 image is in no class folder and left out: stray.png"
    assert "(1 .heic): green_thing/c.heic; .heic cannot be read, JPEG or PNG can" in unread
    (tmp_path / CLASSES[1]).rename(tmp_path / "kept")
    (tmp_path / CLASSES[1]).mkdir()
    shutil.move(tmp_path / "kept" / "c.heic", tmp_path / CLASSES[1] / "c.heic")
    with pytest.raises(DataError, match=r"has no images; 1 file is no image.*\(1 \.heic\)"):
        suite_of(tmp_path)


def test_folder_suite__limits_names_and_hidden_files(photos, tmp_path):
    suite = suite_of(photos, limits={"train": 7}, class_names={"red_thing": "apple"})
    assert len(suite.parts["train"]) == 7
    assert suite.class_names == ("blue thing", "green thing", "apple")
    with pytest.raises(SpecError, match="'rd_thing'.*it has"):
        suite_of(photos, class_names={"rd_thing": "apple"})
    write_classes(tmp_path, n=5)
    (tmp_path / CLASSES[0] / "._000.png").write_bytes(b"a resource fork")
    (tmp_path / CLASSES[0] / "notes.txt").write_text("hello")
    (tmp_path / ".cache").mkdir()
    assert sum(map(len, suite_of(tmp_path).parts.values())) == 15


def test_suite__evaluations_are_id_then_shifts_then_corruptions(photos, paintings, home):
    suite = suite_of(
        photos,
        shifts={"art": f"folder:{paintings}"},
        corruptions={"names": ["contrast", "fog"], "severities": [1, 5], "limit": 4},
    )
    seen = [(images.name, role, len(images)) for images, role, *_ in suite.evaluations()]
    n_test = len(suite.parts["test"])
    corrupted = [(f"{name}/{k}", "corruption", 4) for name in ("contrast", "fog") for k in (1, 5)]
    assert seen == [("photos/test", "id", n_test), ("art", "shift", 24), *corrupted]


def test_suite__unknown_names_and_absent_folders_are_an_error(tmp_path, photos):
    with pytest.raises(UnknownNameError, match="unknown suite 'fashion-mist'.*'fashion-mnist'"):
        load_suite(SuiteSpec(id="fashion-mist"))
    with pytest.raises(DataUnavailableError, match="there is no folder .*gone.*one folder of"):
        suite_of(tmp_path / "gone")
    with pytest.raises(
        SpecError, match="expected folder:PATH, .* hf:FOLDER or torchvision:NAME:ROOT, got 'art'"
    ):
        suite_of(photos, shifts={"art": "art"})


def test_suite__a_class_that_a_shift_lacks_or_adds_is_named(photos, tmp_path):
    write_classes(tmp_path, (*CLASSES[:2], "violet_thing"), n=2)
    with pytest.raises(DataError) as caught:
        suite_of(photos, shifts={"art": f"folder:{tmp_path}"})
    sentence = str(caught.value)
    assert "the shift 'art'" in sentence
    assert "lacks the class folders red_thing" in sentence
    assert "has violet_thing" in sentence


def test_suite__what_is_empty_or_absent_is_named(tmp_path, photos):
    write_classes(tmp_path / "empty", n=2)
    (tmp_path / "empty" / "yellow_thing").mkdir()
    with pytest.raises(DataError, match="class folder 'yellow_thing' in .* has no images"):
        suite_of(tmp_path / "empty")
    write_classes(tmp_path / "parts" / "val", n=2)
    with pytest.raises(DataError, match=r"part folders \['val'\] but no train folder"):
        suite_of(tmp_path / "parts")
    with pytest.raises(DataError, match=r"no images in its pretrain part, it has \{'validation'"):
        suite_of(photos).part("pretrain")


def test_suite__unreadable_images_are_named_before_anything_starts(tmp_path):
    write_classes(tmp_path, n=5)
    (tmp_path / CLASSES[0] / "text.jpg").write_text("I am no picture")
    (tmp_path / CLASSES[2] / "empty.png").write_bytes(b"")
    with pytest.raises(UnreadableImageError) as caught:
        check_headers(suite_of_all(tmp_path))
    assert "text.jpg" in str(caught.value)
    assert "empty.png" in str(caught.value)
    with pytest.raises(UnreadableImageError, match=r"is not an image that can be read \(JPEG, PNG"):
        suite_of(tmp_path)


def suite_of_all(root: Path) -> ImageSet:
    from calift_core.data.suites.folders import scan

    return scan(root, CLASSES, "all", "")


def test_decode_all__finds_every_bad_image(tmp_path):
    write_classes(tmp_path, n=5)
    cut = tmp_path / CLASSES[1] / "cut.jpg"
    Image.fromarray(noise(64, 64)).save(cut)
    cut.write_bytes(cut.read_bytes()[:-600])  # its header is whole
    (tmp_path / CLASSES[2] / "empty.png").write_bytes(b"")
    found = decode_all(suite_of_all(tmp_path))
    assert found.n == 17
    assert {name.rpartition("/")[2] for name in found.unreadable} == {"cut.jpg", "empty.png"}


def test_decode__what_is_cut_too_large_or_of_another_format_is_refused(tmp_path, monkeypatch):
    for name in ("cut.jpg", "cut.png"):
        path = tmp_path / name
        Image.fromarray(noise(64, 64)).save(path)
        path.write_bytes(path.read_bytes()[:-600])
        with pytest.raises(UnreadableImageError, match=f"{name}' is damaged"):
            decode(path)
    buffer = io.BytesIO()
    Image.fromarray(noise(8, 8)).save(buffer, "PDF")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(UnreadableImageError):
        decode(path)
    Image.fromarray(noise(20, 30)).save(path)
    monkeypatch.setattr("calift_core.data.decode.MAX_PIXELS", 599)
    with pytest.raises(UnreadableImageError, match="has 30 × 20 pixels, at most 599"):
        decode(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow also says what it read past
@few
@given(st.binary(max_size=200), st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"]))
def test_decode__damage_of_any_kind_is_a_sentence(tmp_path_factory, garbage, kind):
    buffer = io.BytesIO()
    Image.fromarray(noise(12, 12)).save(buffer, kind)
    content = bytearray(buffer.getvalue())
    at = len(garbage) % len(content)
    content[at : at + len(garbage)] = garbage
    path = tmp_path_factory.getbasetemp() / "garbage.img"
    path.write_bytes(content)
    try:
        pixels = decode(path)
    except UnreadableImageError as error:
        assert "garbage.img" in error.message  # noqa: PT017 - some damage does no harm
    else:
        assert pixels.ndim == 3


@pytest.mark.parametrize(
    ("kind", "orientation"),
    [*(("JPEG", turn) for turn in range(1, 9)), ("PNG", 6), ("WEBP", 7), ("TIFF", 8)],
)
def test_decode__exif_orientation_is_undone_as_pil_does(tmp_path, kind, orientation):
    path = tmp_path / f"turned.{kind.lower()}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(6, 10)).save(path, kind, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(decode(path), expected)


def test_random_crop__of_the_whole_image_is_the_plain_one_or_its_mirror():
    pixels = noise(16, 16)
    seen = set()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        out = random_resized_crop(pixels, Preprocess(16), rng=rng, scale=(1.0, 1.0), flip=True)
        seen.add((np.array_equal(out, pixels), np.array_equal(out, pixels[:, ::-1])))
    assert seen == {(True, False), (False, True)}


def test_corrupted__is_the_corruption_seeded_by_each_images_name():
    base = array_set(4, side=32)
    images = corrupted(base.take([2, 0], "part"), "gaussian_noise", 3, seed=5)
    assert images.name == "gaussian_noise/3"
    for position, image_id in enumerate(("2.png", "0.png")):
        seed = image_seed(5, image_id, "gaussian_noise", 3)
        original = base.image(int(image_id[0]))
        expected = corrupt(original, "gaussian_noise", 3, seed=seed)
        assert np.array_equal(images.image(position), expected)
        assert not np.array_equal(expected, original)


def photos_of_many_sizes(folder: Path, n: int = 10) -> ImageSet:
    """PNGs and JPEGs of different sizes, one of them on its side."""
    folder.mkdir()
    paths = []
    for i in range(n):
        image = Image.fromarray(noise(9 + i, 14 - i // 2, seed=i))
        exif = Image.Exif()
        if i == 1:
            exif[0x0112] = 6
        paths.append(folder / f"{i}.{'jpg' if i % 2 else 'png'}")
        image.save(paths[-1], exif=exif)
    positions = np.arange(n)
    source = FileSource(tuple(paths))
    return ImageSet("photos", source, tuple(map(str, range(n))), positions % 3, positions)


@pytest.mark.parametrize("workers", [0, 2])
def test_kept_in_memory__batches_are_the_same_and_the_second_epoch_reads_no_file(tmp_path, workers):
    images = photos_of_many_sizes(tmp_path / "photos").take([7, 0, 1, 2, 9, 4, 5, 3], "some")
    plain = batches(view_of(images), total=4)
    view = view_of(cached_in_memory(images))
    first = batches(view, total=2, workers=workers)
    shutil.rmtree(tmp_path / "photos")
    second = batches(view, start=2, total=4, workers=workers)
    assert all(equal(a, b) for a, b in zip(plain, first + second, strict=True))


def test_kept_in_memory__what_changes_is_read_and_what_does_not_fit_or_is_there_stays(tmp_path):
    images = photos_of_many_sizes(tmp_path / "photos")
    kept = cached_in_memory(images)
    larger = noise(40, 50)
    Image.fromarray(larger).save(tmp_path / "photos" / "0.png")
    for _ in range(2):
        assert np.array_equal(kept.image(0), larger)
    assert np.array_equal(kept.image(2), images.image(2))
    for images in (array_set(3), photos_of_many_sizes(tmp_path / "none").take([], "none")):
        assert cached_in_memory(images, available=0) is images


def test_kept_in_memory__another_process_that_is_started_afresh_has_the_same_images(tmp_path):
    images = photos_of_many_sizes(tmp_path / "photos")
    kept = cached_in_memory(images)
    again = pickle.loads(pickle.dumps(kept))
    assert again.sha256 == kept.sha256
    for i in (0, 1, 1):
        assert np.array_equal(again.image(i), images.image(i))


def test_kept_in_memory__what_does_not_fit_is_refused_with_both_sizes(tmp_path):
    images = photos_of_many_sizes(tmp_path / "photos")
    needed = sum(images.image(i).nbytes for i in range(len(images)))
    assert cached_in_memory(images, available=int(needed / CACHE_SHARE) + 2) is not images
    with pytest.raises(DataError, match=r"10 images of photos take about .* MiB .* at most") as e:
        cached_in_memory(images, available=int(needed / CACHE_SHARE) - 2)
    assert "cache_images" in e.value.hint


def view_of(images: ImageSet, **changes: Any) -> TrainView:
    options = {"n_templates": 4, "seed": 3, "crop_scale": (0.5, 1.0), "flip": True}
    return TrainView(images, **({"preprocess": Preprocess(8)} | options | changes))


def batches(view: TrainView, *, start: int = 0, total: int = 7, workers: int = 0) -> list[Any]:
    schedule = {"batch_size": 4, "start_step": start, "total_steps": total}
    return list(train_batches(view, workers=workers, normalise=PLAIN, **schedule))


def equal(one: Any, other: Any) -> bool:
    return all(
        torch.equal(getattr(one, k), getattr(other, k)) for k in ("images", "labels", "captions")
    )


@few
@given(st.integers(0, 9), st.integers(1, 9))
def test_train_batches__from_any_step_on_are_those_of_the_whole_run(start, more):
    view = view_of(array_set(10))
    whole = batches(view, total=start + more)
    rest = batches(view, start=start, total=start + more)
    assert len(whole) == start + more
    assert len(rest) == more
    assert all(equal(a, b) for a, b in zip(whole[start:], rest, strict=True))


@few
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 9), st.integers(1, 9))
def test_feature_batches__have_the_order_of_train_batches(n, batch_size, start, more):
    images = replace(array_set(n), labels=np.arange(n))
    features = torch.arange(n).float()[:, None] * torch.tensor([1.0, 10.0])  # (N, 2)
    schedule = {"batch_size": batch_size, "start_step": start, "total_steps": start + more}
    of_images = train_batches(view_of(images), workers=0, normalise=PLAIN, **schedule)
    of_features = feature_batches(features, torch.arange(n), seed=3, **schedule)
    for one, other in zip(of_images, of_features, strict=True):
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(other.images, features[one.labels])
        assert torch.equal(other.captions, torch.zeros_like(one.labels))


def test_train_batches__leave_the_global_generator_alone():
    before = torch.get_rng_state()
    batches(view_of(array_set(10)))
    list(
        eval_batches(
            array_set(4), preprocess=Preprocess(8), batch_size=2, workers=0, normalise=PLAIN
        )
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_train_batches__epochs_differ_and_captions_belong_to_the_class():
    view = view_of(array_set(12), crop_scale=(1.0, 1.0), flip=False)
    seen = [batch.images for batch in batches(view, total=6)]
    first, second = torch.cat(seen[:3]), torch.cat(seen[3:])
    assert len({image.numpy().tobytes() for image in first}) == 12
    assert {i.numpy().tobytes() for i in first} == {i.numpy().tobytes() for i in second}
    assert not torch.equal(first, second)
    seen = batches(view_of(array_set(12)), total=12)
    for batch in seen:
        assert torch.equal(batch.captions // 4, batch.labels)
    assert len({int(c) % 4 for batch in seen for c in batch.captions}) == 4


@pytest.mark.parametrize(("kind", "workers"), [("train", 0), ("evaluation", 0), ("train", 1)])
def test_batches__a_damaged_image_is_one_sentence(tmp_path, kind, workers):
    write_classes(tmp_path, n=2)
    bad = tmp_path / CLASSES[1] / "000.png"
    bad.write_bytes(bad.read_bytes()[:-400])
    images = suite_of_all(tmp_path)
    options = {"batch_size": 6, "workers": workers, "normalise": PLAIN}
    made = (
        train_batches(view_of(images), start_step=0, total_steps=1, **options)
        if kind == "train"
        else eval_batches(images, preprocess=Preprocess(8), **options)
    )
    with pytest.raises(UnreadableImageError) as caught:
        list(made)
    assert caught.value.message.startswith(f"'{bad}' is damaged")
    assert "\n" not in caught.value.message


@given(st.integers(1, 50), st.integers(0, 2**32 - 1), st.integers(0, 100))
@few
def test_epoch_order__is_a_permutation_of_seed_and_epoch(n, seed, epoch):
    order = epoch_order(n, seed=seed, epoch=epoch)
    assert sorted(order.tolist()) == list(range(n))
    # What a checkpoint goes on with.
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    assert order.tolist() == torch.randperm(n, generator=generator).tolist()


def test_draft_decoding__is_of_large_jpegs_alone_and_leaves_enough_pixels(tmp_path):
    large, small = tmp_path / "large.jpg", tmp_path / "small.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((600, 400), Image.Resampling.BICUBIC).save(large, quality=95)
    Image.fromarray(pixels).save(small, quality=95)
    images = ImageSet(
        "train", FileSource((large, small)), ("large", "small"), np.zeros(2, np.int64), np.arange(2)
    )
    quick = with_draft_decoding(images, smallest_side(Preprocess(64), (0.9, 1.0)))  # 78 pixels
    assert quick.image(0).shape == (100, 150, 3)
    whole = np.asarray(Image.fromarray(images.image(0)).resize((150, 100), Image.Resampling.BOX))
    assert np.abs(quick.image(0).astype(int) - whole).mean() < 3
    assert np.array_equal(quick.image(1), images.image(1))
    kept = cached_in_memory(quick, available=10**9)
    assert kept.source.pixels.nbytes == 3 * (100 * 150 + 40 * 60)
    assert np.array_equal(kept.image(0), quick.image(0))
    assert quick.sha256 == images.sha256


def test_normalise__worked_by_hand():
    pixels = torch.tensor([[[[255, 0, 51]]]], dtype=torch.uint8)
    out = Normalise((0.5, 0.5, 0.2), (0.5, 0.25, 1.0), CPU)(pixels)
    torch.testing.assert_close(out, torch.tensor([1.0, -2.0, 0.0]).view(1, 3, 1, 1))


@pytest.mark.parametrize("name", sorted(STYLES))
def test_styles__keep_size_and_kind_and_change_all_but_the_plain_one(name):
    picture = Image.fromarray(noise(32, 32))
    out = STYLES[name].apply(picture, np.random.default_rng(0))
    assert out.size == picture.size
    assert out.mode == "RGB"
    assert np.array_equal(np.asarray(out), np.asarray(picture)) == (name == "plain")
    again = STYLES[name].apply(picture, np.random.default_rng(0))
    assert np.array_equal(np.asarray(out), np.asarray(again))


def test_train_view__in_styles_tells_the_style_in_the_caption():
    n = sum(len(style.templates) for style in STYLES.values())
    images = array_set(60, side=8)
    view = view_of(images, n_templates=n, learned="styles", crop_scale=(1.0, 1.0), flip=False)
    plain = len(STYLES["plain"].templates)
    seen = set()
    for index in range(60):
        pixels, label, caption = view[(0, index)]
        template = caption - label * n
        assert 0 <= template < n
        is_same = np.array_equal(pixels, images.image(index))
        assert is_same == (template < plain)
        seen.add(template)
    assert len(seen) > n // 2


def test_fashion_mnist__parts_are_disjoint_and_of_the_published_sizes():
    if fashion_mnist_folder() is None:
        pytest.skip("Fashion-MNIST is not on this machine")
    suite = load_suite(SuiteSpec(id="fashion-mnist"))
    sizes = {part: len(images) for part, images in suite.parts.items()}
    assert sizes == {**FASHION_SPLIT, "test": 10_000}
    ids = [image_id for images in suite.parts.values() for image_id in images.ids]
    assert len(set(ids)) == 70_000
    assert suite.parts["test"].image(0).shape == (28, 28, 3)
    for images in suite.parts.values():
        counts = np.bincount(images.labels, minlength=10)
        assert counts.min() > 0.8 * len(images) / 10


def test_fashion_mnist__a_torn_file_is_an_error(tmp_path, monkeypatch):
    folder = fashion_mnist_folder()
    if folder is None:
        pytest.skip("Fashion-MNIST is not on this machine")
    for file in folder.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(
            content[:1000] if "t10k-images" in file.name else content
        )
    monkeypatch.setenv("CALIFT_FASHION_MNIST", str(tmp_path))
    with pytest.raises(DataError, match="t10k-images.* is not a readable IDX file"):
        load_suite(SuiteSpec(id="fashion-mnist"))
