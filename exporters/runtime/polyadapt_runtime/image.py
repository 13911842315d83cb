"""Images: file, PIL image or array to float32 [channels, height, width] in 0..1.

Resizing is Pillow's, with antialiasing, and the sizes are those of timm's evaluation transform: the picture
is brought to size / crop_fraction (its short side, or both sides when squashed), then the centre is cut out.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from polyadapt_runtime.errors import InputError, MissingLibraryError
from polyadapt_runtime.fields import LONGEST_SIDE_PX

MOST_PIXELS = LONGEST_SIDE_PX**2  # of a picture that covers what is cut out of it; a long and narrow one grows beyond all memory

_MODES = {3: "RGB", 1: "L"}
_FILTERS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


def read_image(raw: Any, spec: Mapping[str, Any]) -> np.ndarray:
    """One image as a tensor.

    Args:
        raw: path, PIL image, or array [height, width], [height, width, 1 | 3 | 4]: uint8, or floats in 0..1.
        spec: `size_px` [height, width], `resize`, `crop_fraction`, `interpolation`, `channels`.

    Shape:
        float32 [channels, height, width] in 0..1.

    Raises:
        InputError: the raw input is no image.
        MissingLibraryError: Pillow is not installed.
    """
    channels, (height, width) = int(spec.get("channels", 3)), spec["size_px"]
    if spec.get("interpolation", "bicubic") not in _FILTERS or spec.get("resize", "crop") not in ("crop", "squash") or channels not in _MODES:
        raise InputError(f"image spec: interpolation must be one of {', '.join(_FILTERS)}, resize crop or squash, channels 1 or 3; found {dict(spec)}")
    planes = [_fit(plane, height, width, spec) for plane in _planes(raw, channels)]
    pixels = np.stack([np.asarray(plane, dtype=np.float32) for plane in planes], axis=-1) if len(planes) > 1 else np.asarray(planes[0], dtype=np.float32)
    if planes[0].mode == "F":
        pixels = pixels.clip(0.0, 1.0)  # bicubic and lanczos overshoot
    else:
        pixels = pixels / np.float32(255)
    return np.ascontiguousarray(pixels.reshape(height, width, channels).transpose(2, 0, 1))  # (C, H, W)


def _planes(raw: Any, channels: int) -> list[Any]:
    """PIL images that together hold the picture: one of 8 bits a channel, or one of floats for each channel."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingLibraryError("Pillow", "image", "reading an image") from error
    if isinstance(raw, np.ndarray):
        return _planes_of_array(raw, channels, Image)
    if not isinstance(raw, str | os.PathLike | Image.Image):
        raise InputError(f"an image is a path, a PIL image or an array, found {type(raw).__name__}")
    try:
        if isinstance(raw, Image.Image):
            return [_eight_bits(raw, channels, ImageOps)]  # read only now, where it was opened from a file
        with Image.open(raw) as image:
            return [_eight_bits(image, channels, ImageOps)]
    except InputError:
        raise
    except Exception as error:  # Pillow raises anything from SyntaxError to struct.error on broken files
        raise InputError(f"cannot read image {raw}: {error}") from error


def _eight_bits(image: Any, channels: int, operations: Any) -> Any:
    """The picture upright, as its camera noted, with the wanted channels."""
    if image.mode[0] in "IF":
        raise InputError(f"the image has mode {image.mode}, more than 8 bits a channel; give it as a float array in 0..1")
    return operations.exif_transpose(image).convert(_MODES[channels])


def _planes_of_array(raw: np.ndarray, channels: int, image: Any) -> list[Any]:
    pixels = raw[..., None] if raw.ndim == 2 else raw
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or pixels.size == 0:
        raise InputError(f"an image array has shape [height, width] or [height, width, 1, 3 or 4], found {list(raw.shape)}")
    pixels = pixels[..., :3]  # without alpha
    if pixels.dtype == np.uint8:
        whole = image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))
        return [whole.convert(_MODES[channels])]
    if pixels.dtype.kind != "f" or not (np.isfinite(pixels).all() and pixels.min() >= 0.0 and pixels.max() <= 1.0):
        raise InputError(f"an image array is uint8, or floats in 0..1; found {pixels.dtype} from {pixels.min()} to {pixels.max()}")
    if channels == 1 and pixels.shape[2] == 3:
        pixels = pixels @ np.array([[0.299], [0.587], [0.114]])  # luma of ITU-R 601, as Pillow's mode L
    if channels == 3 and pixels.shape[2] == 1:
        pixels = pixels.repeat(3, axis=2)
    return [image.fromarray(np.ascontiguousarray(pixels[..., index], dtype=np.float32)) for index in range(channels)]


def _fit(image: Any, height: int, width: int, spec: Mapping[str, Any]) -> Any:
    """Resize and cut out the centre."""
    from PIL import Image

    fraction = float(spec.get("crop_fraction", 1.0))
    to_height, to_width = math.floor(height / fraction), math.floor(width / fraction)
    if spec.get("resize", "crop") == "crop":
        to_height, to_width = _covering(image.height, image.width, to_height, to_width)
        if to_height * to_width > MOST_PIXELS:
            whole, made = f"{image.width} x {image.height}", f"{to_width} x {to_height}"
            raise InputError(f"a picture of {whole} px would be {made} px before its centre is cut out, more than {MOST_PIXELS} pixels; crop it first")
    image = image.resize((to_width, to_height), Image.Resampling[spec.get("interpolation", "bicubic").upper()])
    top, left = round((to_height - height) / 2.0), round((to_width - width) / 2.0)
    return image.crop((left, top, left + width, top + height))


def _covering(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int]:
    """The size of a picture scaled, its shape kept, until it just covers a target."""
    if height * to_width < width * to_height:  # height is the tighter side
        return to_height, max(to_width, int(to_height * width / height))
    return max(to_height, int(to_width * height / width)), to_width
