"""Which files are images, audio or text, and whether they open: headers are read before anything trains."""

from __future__ import annotations

import importlib
import itertools
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from polyadapt.data.dataset import Example
from polyadapt.errors import MissingExtraError, UserError, unknown

logger = logging.getLogger(__name__)

FILMS = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".avi", ".3gp"})
"""Recordings with pictures. A phone puts them beside its photos, so in a folder of pictures they are left out and no mixture of media."""

EXTENSIONS: dict[str, frozenset[str]] = {
    "image": frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}),
    "audio": FILMS | {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64", ".g722", ".aac", ".m4a", ".mka", ".amr", ".wma", ".webm"},
    "text": frozenset({".txt"}),
}


def medium_of(path: Path) -> str | None:
    """`image`, `audio`, `text`, or None for a file of another sort."""
    suffix = path.suffix.lower()
    return next((medium for medium, suffixes in EXTENSIONS.items() if suffix in suffixes), None)


def check_media(examples: Iterable[Example]) -> None:
    """Open the header of every image and audio file.

    Raises:
        UserError: at least one file is broken; the first is named with its fault, the others are counted.
        MissingExtraError: the library that opens this sort of file is not installed.
    """
    faults = []
    for example in examples:
        path = example.file
        if path is not None and (fault := file_fault(path)):
            faults.append(f"{path} ({_where(example)}{fault})")
            logger.info("broken file: %s", faults[-1])
    if faults:
        more = f", and {len(faults) - 1} more like it" if len(faults) > 1 else ""
        raise UserError(f"cannot open {faults[0]}{more}; replace or remove what is broken, or set check_files = false to go on until it is needed")


def file_fault(path: Path) -> str:
    """What is wrong with an image or audio file; empty when its header reads well."""
    if not path.is_file():
        return "no such file"
    if path.stat().st_size == 0:
        return "the file is empty"
    medium = medium_of(path)
    if medium == "image":
        return _image_fault(path)
    return _audio_fault(path) if medium == "audio" else ""


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def library(name: str, package: str, extra: str, needed_for: str) -> ModuleType:
    """Import a library that an extra brings.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(package, extra, needed_for) from error


def check_choice(what: str, asked: str, known: Iterable[str]) -> str:
    """`asked`, or an error with the nearest known name."""
    names = tuple(known)
    if asked not in names:
        raise unknown(what, asked, names)
    return asked


def _image_fault(path: Path) -> str:
    Image = library("PIL.Image", "Pillow", "image", "reading images")

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.verify()
    except Image.DecompressionBombWarning as error:
        return f"too large: {error}"
    except Exception as error:  # Pillow raises anything from SyntaxError to struct.error on broken files
        return f"not a whole image: {type(error).__name__}"
    return ""


def _audio_fault(path: Path) -> str:
    """The first block is decoded by the code that training and inference use; the name of the file says nothing."""
    from polyadapt_runtime.errors import InputError, MissingLibraryError
    from polyadapt_runtime.sound import open_sound

    try:
        frames = sum(len(block) for block in itertools.islice(open_sound(path).mono(), 1))
    except MissingLibraryError as error:
        raise UserError(str(error)) from error
    except InputError as error:
        return f"not whole audio: {str(error).removeprefix(f'cannot read sound {path}: ')}"
    return "" if frames else "it holds no samples"


def _where(example: Example) -> str:
    return f"{example.source}: " if example.source else ""
