"""`data:klettres` reads the letters and syllables of KLettres (GPL-2+) as Debian packages them.

Each language is a folder with `sounds.xml`, whose parts `alphabet` and `syllables` list `<sound name="A" file="en/alpha/A.ogg"/>`.
"""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from polyadapt.data.dataset import Dataset, Example
from polyadapt.data.readers.debian import find_directory
from polyadapt.data.readers.recordings import language_codes, prepared
from polyadapt.errors import UserError, unknown
from polyadapt_speech.readers.card import KLettresOptions

logger = logging.getLogger(__name__)

DATA = "data:klettres"
PACKAGE = "klettres-data"
DIRECTORIES = ("/usr/share/klettres",)
PARTS = ("alphabet", "syllables")


def read(rest: str, options: KLettresOptions) -> Dataset:
    """Read the recordings: label and text are the letter or syllable, extra columns `language` and `part`.

    Raises:
        UserError: the package is not installed, a language is not there, or no letter has enough recordings.
    """
    root = find_directory(DATA, PACKAGE, DIRECTORIES, options.directory)
    installed = sorted(path.parent.name for path in root.glob("*/sounds.xml"))
    if not installed:
        raise UserError(f"{DATA}: no */sounds.xml below {root}; run: apt install {PACKAGE}")
    parts = PARTS if options.part == "all" else (options.part,)
    examples: list[Example] = []
    for language in language_codes(options.language, installed):
        if language not in installed:
            raise unknown(f"language of {DATA}", language, installed)
        found = _sounds(root, language, parts)
        if not found and options.language:
            raise UserError(f"{DATA}: no recordings of {' and '.join(parts)} in language {language!r} below {root}; choose another language or part")
        examples.extend(found)
    counts = Counter(example.label for example in examples)
    kept = [example for example in examples if counts[example.label] >= options.minimum]
    if not kept:
        raise UserError(f"{DATA}: no letter has {options.minimum} recordings ({len(examples)} found); lower the option minimum, or take more languages")
    return Dataset(DATA, prepared(kept, options), "audio", licence="GPL-2.0-or-later")


def _sounds(root: Path, language: str, parts: tuple[str, ...]) -> list[Example]:
    """The recordings of one language in the order of its file. Some lists name files that were never recorded."""
    listing = root / language / "sounds.xml"
    try:
        tree = ElementTree.parse(listing)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # also an encoding that Python's parser does not take
        raise UserError(f"{DATA}: {listing} is not well-formed ({error}); run: apt install --reinstall {PACKAGE}") from error
    examples: dict[str, Example] = {}
    missing = 0
    for part in parts:
        for sound in tree.iterfind(f".//{part}/sound"):
            name, file = (sound.get("name") or "").strip(), sound.get("file") or ""
            path = root / file
            if not name or not path.resolve().is_relative_to(root.resolve()) or not path.is_file():
                missing += 1
                continue
            examples.setdefault(file, Example(file, path, name, name, {"language": language, "part": part}, file))
    if missing:
        logger.info("%s: %d recordings that %s lists are not there", DATA, missing, listing)
    return list(examples.values())
