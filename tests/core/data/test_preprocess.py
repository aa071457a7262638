"""What a model sees of an image file is what open_clip would show it, bit for bit.

The reference is `open_clip.image_transform_v2` for evaluation on the image as open_clip's own data
sets give it: opened by Pillow and converted to RGB.
"""

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps
from torch import Tensor

from calift_core.data import preprocess as preprocess_module
from calift_core.data.crops import random_resized_crop
from calift_core.data.decode import decode
from calift_core.data.images import ImageSet
from calift_core.data.loader import Normalise, TrainView, eval_batches, train_batches
from calift_core.data.preprocess import Preprocess
from calift_core.data.sources import ArraySource, FileSource
from calift_core.errors import ModelError, UnreadableImageError

few = settings(max_examples=60)
CPU = torch.device("cpu")
MODES = ("shortest", "longest", "squash")
INTERPOLATIONS = ("bicubic", "bilinear")
#: Odd, tall, wide, tiny, square, of the input's own size and next to it.
SIZES = (
    (97, 131), (131, 97), (480, 31), (31, 480), (5, 7), (1, 1), (3, 64), (61, 61), (64, 64),
    (63, 65), (65, 64), (224, 223), (500, 375),
)  # fmt: skip


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Waves and noise in three channels."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    waves = np.stack([np.sin(7 * x + 2 * y), np.cos(5 * y + x), np.sin(9 * x * y)], axis=-1)
    noise = np.random.default_rng(seed).normal(0, 12, waves.shape)
    return Image.fromarray(np.clip(128 + 90 * waves + noise, 0, 255).astype(np.uint8))


def reference(preprocess: Preprocess, image: Image.Image) -> Tensor:
    """open_clip's own input (3, S, S)."""
    transform = image_transform_v2(PreprocessCfg(**preprocess.described()), is_train=False)
    return transform(image)


def input_of(preprocess: Preprocess, pixels: Any) -> Tensor:
    """The input (3, S, S) that an evaluation makes of decoded pixels (H, W, 3)."""
    images = ImageSet(
        "one", ArraySource(pixels[None], "k"), ("a",), np.zeros(1, np.int64), np.arange(1)
    )
    (batch,) = eval_batches(
        images,
        preprocess=preprocess,
        batch_size=1,
        workers=0,
        normalise=Normalise(preprocess.mean, preprocess.std, CPU),
    )
    return batch[0]


def grey_levels(preprocess: Preprocess, image: Image.Image) -> Any:
    """open_clip's pixels (S, S, 3) before they are normalised."""
    plain = Preprocess.of({**preprocess.described(), "mean": (0, 0, 0), "std": (1, 1, 1)})
    return (reference(plain, image) * 255).round().permute(1, 2, 0).numpy().astype(int)


@pytest.mark.parametrize(
    ("mode", "interpolation", "size"),
    [("shortest", "bicubic", 224), ("longest", "bilinear", 64), ("squash", "bicubic", 64)],
)
def test_input__equals_open_clips_bit_for_bit_whatever_the_shape(mode, interpolation, size):
    preprocess = Preprocess(
        size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), interpolation, mode, fill_color=7
    )
    for height, width in SIZES:
        image = picture(height, width)
        expected = reference(preprocess, image)
        assert torch.equal(input_of(preprocess, np.asarray(image)), expected), (height, width)


@few
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 48),
    st.sampled_from(MODES),
    st.sampled_from(INTERPOLATIONS),
    st.integers(0, 255),
)
def test_fit__equals_open_clips_pixels_for_any_shape(
    height, width, size, mode, interpolation, fill
):
    assume(mode != "longest" or round(size * min(height, width) / max(height, width)) >= 1)
    preprocess = Preprocess(size, interpolation=interpolation, resize_mode=mode, fill_color=fill)
    image = picture(height, width)
    assert np.array_equal(preprocess.fit(np.asarray(image)), grey_levels(preprocess, image))


def _save(folder: Path, kind: str) -> Path:
    """A file of a kind."""
    image = picture(97, 131)
    path = folder / f"{kind}.{'jpg' if 'JPEG' in kind else 'tif' if 'TIFF' in kind else 'png'}"
    if kind == "grey":
        image = image.convert("L")
    elif kind == "grey and alpha":
        image = image.convert("LA")
    elif kind == "palette":
        image = image.convert("P")
    elif kind == "one bit":
        image = image.convert("1")
    elif kind in ("opaque", "transparent"):
        levels = np.random.default_rng(1).integers(0, 256, (97, 131), dtype=np.uint8)
        image.putalpha(255 if kind == "opaque" else Image.fromarray(levels))
    elif "CMYK" in kind:
        image = image.convert("CMYK")
    elif kind == "turned JPEG":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(path, exif=exif)
        return path
    image.save(path)
    return path


KINDS = (
    "colours", "JPEG", "grey", "grey and alpha", "palette", "one bit", "opaque", "transparent",
    "CMYK JPEG", "CMYK TIFF", "turned JPEG",
)  # fmt: skip


@pytest.mark.parametrize(("kind", "mode"), list(zip(KINDS, MODES * 4, strict=False)))
def test_input__of_every_kind_of_file_equals_open_clips_of_its_rgb_image(tmp_path, kind, mode):
    """As open_clip's data sets read files: turned upright (which those leave out), then RGB."""
    path = _save(tmp_path, kind)
    with Image.open(path) as image:
        rgb = ImageOps.exif_transpose(image).convert("RGB")
    for interpolation in INTERPOLATIONS:
        preprocess = Preprocess(64, interpolation=interpolation, resize_mode=mode)
        assert torch.equal(input_of(preprocess, decode(path)), reference(preprocess, rgb))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "colours.ppm"])
def test_decode__sixteen_bits_are_read_as_the_same_picture_in_eight(tmp_path, name):
    """`Image.convert` cuts 16-bit grey at 255: open_clip alone would see a white picture.

    Colours of 16 bits are scaled so by Pillow itself.
    """
    levels = np.asarray(picture(40, 50)).astype(np.uint16) * 256 + 201
    path = tmp_path / name
    if name.startswith("colours"):
        path.write_bytes(b"P6 50 40 65535\n" + levels.astype(">u2").tobytes())
    elif name.endswith("pgm"):
        levels = levels[:, :, :1]
        path.write_bytes(b"P5 50 40 65535\n" + levels.astype(">u2").tobytes())
    else:
        levels = levels[:, :, :1]
        Image.fromarray(levels[:, :, 0]).save(path)
    eight = np.broadcast_to(np.rint(levels / 257), (40, 50, 3)).astype(np.uint8)
    assert np.array_equal(decode(path), eight)
    preprocess = Preprocess(32)
    assert torch.equal(
        input_of(preprocess, decode(path)), reference(preprocess, Image.fromarray(eight))
    )


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_decode__grey_levels_of_unknown_range_are_refused(tmp_path, kind):
    path = tmp_path / "a.tif"
    Image.fromarray(np.arange(600, dtype=kind).reshape(20, 30)).save(path)
    with pytest.raises(UnreadableImageError, match="grey levels of 32 bits.*8 or 16 bits"):
        decode(path)


@few
@given(st.integers(1, 40), st.integers(1, 400), st.integers(1, 48), st.sampled_from(INTERPOLATIONS))
def test_fit__cropping_a_thin_image_first_shows_the_same(short, more, size, interpolation):
    preprocess = Preprocess(size, interpolation=interpolation)
    for shape in ((short, short + more), (short + more, short)):
        image = picture(*shape)
        whole = preprocess.fit(np.asarray(image)).astype(int)
        # Weights of the same pixels, computed from another origin: pixels of the first direction
        # are rounded by one more or less, the second sums them with weights whose magnitudes add up
        # to less than 1.5, and rounds by one again.
        assert np.abs(np.asarray(preprocess._centre(image)).astype(int) - whole).max() <= 3


def test_fit__a_thin_image_does_not_fill_the_memory(monkeypatch):
    """Its shorter side made 224, 1 × 4,000,000 pixels are 200 gigapixels."""
    stripes = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (1, 15_625, 3))
    assert Preprocess(224).fit(stripes).shape == (224, 224, 3)
    assert Preprocess(224).fit(stripes.transpose(1, 0, 2)).shape == (224, 224, 3)
    with pytest.raises(UnreadableImageError, match="4000000 × 1 pixels has nothing left"):
        Preprocess(224, resize_mode="longest").fit(stripes)
    monkeypatch.setattr(preprocess_module, "_MOST_PIXELS", 0)
    image = picture(31, 480)
    limited = Preprocess(24).fit(np.asarray(image)).astype(int)
    assert np.abs(limited - grey_levels(Preprocess(24), image)).max() <= 1


def test_preprocess__reads_back_what_it_describes_and_travels():
    one = Preprocess(32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", "longest", 9)
    assert Preprocess.of(one.described()) == one
    sent = pickle.loads(pickle.dumps(one))
    assert sent == one
    pixels = np.asarray(picture(20, 30))
    assert np.array_equal(sent.fit(pixels), one.fit(pixels))


def test_preprocess__open_clips_defaults_and_short_forms():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        default = PreprocessCfg()
    made = Preprocess.of({})
    assert (made.size, made.mean, made.std) == (default.size, default.mean, default.std)
    assert (made.interpolation, made.resize_mode) == ("bicubic", "shortest")
    short = Preprocess.of({"size": (24, 24), "mean": 0, "std": 1, "interpolation": "random"})
    assert short == Preprocess(24, (0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"size": [16, 32]}, r"must be square, got a size of \[16, 32\]"),
        ({"size": 0}, "must be square, got a size of 0"),
        ({"mode": "L"}, "must be RGB, got the mode 'L'"),
        ({"interpolation": "nearest"}, "interpolation must be one of bicubic, bilinear, got 'near"),
        ({"resize_mode": "stretch"}, "resize_mode must be one of .*squash, got 'stretch'"),
        ({"mean": [0.5]}, r"mean must be a number for each of 3 channels, got \[0.5\]"),
        ({"std": [1, 0, 1]}, "std must be above 0"),
        ({"fill_color": 256}, "fill_color must be a grey level in 0 … 255, got 256"),
    ],
)
def test_preprocess__refuses_what_open_clip_does_not_have(body, words):
    with pytest.raises(ModelError, match=words):
        Preprocess.of(body)


@few
@given(st.integers(0, 999), st.sampled_from(INTERPOLATIONS))
def test_random_crop__is_resized_by_the_models_interpolation(seed, interpolation):
    image = picture(40, 60)
    out = random_resized_crop(
        np.asarray(image),
        Preprocess(24, interpolation=interpolation),
        rng=np.random.default_rng(seed),
        scale=(0.3, 0.6),
    )
    rng = np.random.default_rng(seed)
    while True:
        area = 40 * 60 * rng.uniform(0.3, 0.6)
        aspect = float(np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))))
        width, height = (area * aspect) ** 0.5, (area / aspect) ** 0.5
        if width <= 60 and height <= 40:
            break
    left, top = rng.uniform(0, 60 - width), rng.uniform(0, 40 - height)
    kernel = getattr(Image.Resampling, interpolation.upper())
    box = (left, top, left + width, top + height)
    assert np.array_equal(out, np.asarray(image.resize((24, 24), kernel, box=box)))


def test_train_batches__whole_images_are_what_an_evaluation_sees(tmp_path):
    """Without a crop and a flip: the same resize mode, interpolation, mean and deviation."""
    paths = []
    for i, shape in enumerate([(40, 60), (61, 24), (24, 24)]):
        paths.append(tmp_path / f"{i}.png")
        picture(*shape, seed=i).save(paths[-1])
    images = ImageSet("i", FileSource(tuple(paths)), tuple("abc"), np.arange(3), np.arange(3))
    for mode in MODES:
        preprocess = Preprocess(24, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "bilinear", mode)
        normalise = Normalise(preprocess.mean, preprocess.std, CPU)
        view = TrainView(images, preprocess, 1, 0, (1.0, 1.0), False)
        (batch,) = train_batches(
            view, batch_size=3, start_step=0, total_steps=1, workers=0, normalise=normalise
        )
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            with Image.open(paths[label]) as file:
                assert torch.equal(image, reference(preprocess, file))
