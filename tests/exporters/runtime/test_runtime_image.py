"""Images against torchvision and timm: the same pixels, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polyadapt_runtime import InputError, Processor


def spec(**changes: Any) -> dict[str, Any]:
    return {"kind": "image", "input": "image", "size_px": [64, 64], "resize": "crop", "crop_fraction": 0.875, "interpolation": "bicubic", "channels": 3, **changes}


def picture(height: int = 90, width: int = 131, channels: int = 3, low: int = 0, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, (height, width, channels), dtype=np.uint8)


def soft(channels: int) -> np.ndarray:
    """Noise so weak that no filter overshoots 0 or 255: Pillow clips 8-bit pictures between its two passes."""
    return picture(channels=channels, low=90, high=170)


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("fraction", [0.875, 0.93, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("height", "width"), [(90, 133), (133, 90), (40, 40), (64, 64), (300, 70)])
def test_equals_timms_evaluation_transform(height: int, width: int, interpolation: str, fraction: float, mode: str) -> None:
    transforms_imagenet_eval = pytest.importorskip("timm.data.transforms_factory", reason="an oracle that the runtime alone does without").transforms_imagenet_eval
    image = Image.fromarray(picture(height, width))
    peer = transforms_imagenet_eval(64, crop_pct=fraction, crop_mode=mode, interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1))(image).numpy()
    found = Processor(spec(crop_fraction=fraction, interpolation=interpolation, resize="crop" if mode == "center" else "squash"))(image)["image"]
    assert found.dtype == np.float32 and found.shape == (3, 64, 64) and found.flags.c_contiguous
    assert np.array_equal(found, peer)


def test_equals_torchvisions_transforms_on_a_large_picture() -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2", reason="an oracle that the runtime alone does without")
    image = Image.fromarray(picture(333, 517))
    steps = v2.Compose([v2.Resize(256, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)])
    peer = np.asarray(steps(image), dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    assert np.array_equal(Processor(spec(size_px=[224, 224]))(image)["image"], peer)


@pytest.mark.parametrize(("height", "width"), [(90, 131), (131, 90), (300, 70), (70, 300)])
@pytest.mark.parametrize("size", [(48, 96), (96, 48)])
def test_other_shapes_are_covered_and_centred(height: int, width: int, size: tuple[int, int]) -> None:
    """A ramp along each axis stays centred, and no pixel comes from outside the picture."""
    ramp = np.broadcast_to(np.linspace(50, 200, height)[:, None, None], (height, width, 1)).astype(np.uint8)
    found = Processor(spec(size_px=list(size), channels=1))(ramp)["image"]
    assert found.shape == (1, *size) and found.min() >= 0.19
    assert abs(float(found.mean()) * 255 - 125) < 2.0


def test_every_way_in_gives_the_same(tmp_path: Path) -> None:
    pixels = picture()
    Image.fromarray(pixels).save(tmp_path / "p.png")
    processor = Processor(spec())
    expected = processor(Image.fromarray(pixels))["image"]
    for raw in (pixels, tmp_path / "p.png", str(tmp_path / "p.png"), np.dstack([pixels, pixels[..., :1]])):
        assert np.array_equal(processor(raw)["image"], expected)


def test_floats_keep_their_precision() -> None:
    pixels = soft(3)
    processor = Processor(spec())
    as_floats = processor(pixels.astype(np.float64) / 255)["image"]
    # Only Pillow's rounding to 8 bits, after each of its two passes, stands between them.
    assert np.abs(as_floats - processor(pixels)["image"]).max() <= 1.6 / 255
    loud = processor(picture().astype(np.float32) / 255)["image"]
    assert loud.min() == 0.0 and loud.max() == 1.0  # bicubic overshoots noise
    flat = np.full((70, 70), 0.1234567, np.float32)
    assert np.abs(processor(flat)["image"] - 0.1234567).max() <= 2e-7


@pytest.mark.parametrize("raw", [soft(3), soft(1), soft(1)[..., 0]])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour(raw: np.ndarray, channels: int) -> None:
    found = Processor(spec(channels=channels))(raw)["image"]
    floats = Processor(spec(channels=channels))(raw.astype(np.float32) / 255)["image"]
    assert found.shape == (channels, 64, 64)
    assert np.abs(found - floats).max() <= 2.6 / 255
    if raw.ndim == 2 and channels == 3:
        assert np.array_equal(found[0], found[2])


def test_pictures_stand_upright(tmp_path: Path) -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20] = 255  # bright above
    exif = Image.Exif()
    exif[274] = 3  # the camera was upside down
    Image.fromarray(pixels[::-1, ::-1]).save(tmp_path / "turned.png", exif=exif)
    processor = Processor(spec(size_px=[40, 40], crop_fraction=1.0))
    assert np.array_equal(processor(tmp_path / "turned.png")["image"], processor(pixels)["image"])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros((3, 4, 5), np.uint8), r"found \[3, 4, 5\]"),
        (np.zeros((0, 4, 3), np.uint8), "found"),
        (np.full((4, 4), 2.0), "floats in 0..1; found float64 from 2.0"),
        (np.full((4, 4), np.nan), "floats in 0..1"),
        (np.zeros((4, 4), np.int64), "uint8"),
        (3, "found int"),
        ("missing.png", "cannot read image missing.png"),
        (Image.new("I;16", (4, 4)), "more than 8 bits"),
        (np.zeros((1, 65500, 3), np.uint8), r"a picture of 65500 x 1 px would be \d{7,} x \d+ px before its centre is cut out"),
    ],
)
def test_what_is_no_image_says_so(raw: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Processor(spec())(raw)


def test_a_broken_file_says_so(tmp_path: Path) -> None:
    Image.fromarray(picture()).save(tmp_path / "p.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "p.png").read_bytes()[:900])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="cannot read image"):
        Processor(spec())(Image.open(tmp_path / "cut.png"))  # opened, and not read yet
    for name in ("cut.png", "text.png"):
        with pytest.raises(InputError, match=f"cannot read image .*{name}"):
            Processor(spec())(tmp_path / name)


def test_pictures_of_any_size_make_a_batch() -> None:
    processor = Processor(spec())
    examples = [processor(picture(70, 90)), processor(picture(200, 64))]
    batch = processor.collate(examples)["image"]
    assert batch.shape == (2, 3, 64, 64) and np.array_equal(batch[1], examples[1]["image"])
