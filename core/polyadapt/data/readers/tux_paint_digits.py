"""`data:tux-paint-digits` reads the digits of Tux Paint (GPL-2) that people spoke in some two dozen languages.

Beside the stamp `7.txt` lie `7.ogg` (English), `7_de.ogg`, `7_desc_fr.ogg` and so on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from polyadapt.data.dataset import Dataset, Example
from polyadapt.data.readers.card import DigitOptions
from polyadapt.data.readers.debian import find_directory
from polyadapt.data.readers.recordings import language_codes, prepared
from polyadapt.data.readers.tux_paint import DIRECTORIES, LICENCE, PACKAGE, parse_captions
from polyadapt.errors import UserError, unknown

DATA = "data:tux-paint-digits"
FOLDER = "symbols/math"
_NAME = re.compile(r"([0-9])(?:_desc)?(?:_([A-Za-z_]+))?\.ogg")


def read(rest: str, options: DigitOptions) -> Dataset:
    """Read the recordings: label is the digit, text its name where the stamp has it, and the column `language` the language.

    Raises:
        UserError: the stamps are not installed, or a language is not there.
    """
    root = find_directory(DATA, PACKAGE, DIRECTORIES, options.directory)
    found = list(_recordings(root / FOLDER))
    installed = sorted({language for _, _, language in found})
    if not found:
        raise UserError(f"{DATA}: no spoken digits in {root / FOLDER}; run: apt install {PACKAGE}")
    languages = language_codes(options.language, installed)
    for language in languages:
        if language not in installed:
            raise unknown(f"language of {DATA}", language, installed)
    captions = {digit: _captions(root / FOLDER / f"{digit}.txt") for digit in "0123456789"}
    examples = [
        Example(path.name, path, digit, captions[digit].get(language), {"language": language}, f"{FOLDER}/{path.name}") for path, digit, language in found if language in languages
    ]
    return Dataset(f"{DATA} ({', '.join(languages)})", prepared(examples, options), "audio", licence=LICENCE)


def _recordings(folder: Path) -> Iterable[tuple[Path, str, str]]:
    """(file, digit, language) of every spoken digit."""
    for path in sorted(folder.glob("*.ogg")):
        if name := _NAME.fullmatch(path.name):
            yield path, name[1], name[2] or "en"


def _captions(path: Path) -> dict[str, str]:
    return parse_captions(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else {}
