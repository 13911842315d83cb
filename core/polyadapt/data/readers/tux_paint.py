"""`data:tux-paint-…` reads the stamps of Tux Paint (GPL-2) as Debian packages them.

A stamp is `x.txt` (its caption in English and, as `fr.utf8=…`, in some seventy languages), a picture `x.png`
or `x.svg`, and recordings `x_desc_fr.ogg` of the caption being read. The first folder is its category.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from polyadapt.data.dataset import Dataset, Example, natural_key
from polyadapt.data.media import check_media
from polyadapt.data.readers.card import CaptionOptions, PictureOptions, SpokenCaptionOptions
from polyadapt.data.readers.debian import find_directory
from polyadapt.data.readers.recordings import language_codes, prepared
from polyadapt.errors import UserError, unknown

PACKAGE = "tuxpaint-stamps-default"
DIRECTORIES = ("/usr/share/tuxpaint/stamps",)
LICENCE = "GPL-2.0-only"

ChosenT = TypeVar("ChosenT")


@dataclass(frozen=True)
class Stamp:
    """One stamp: name relative to the root, category, captions by language."""

    name: str
    category: str
    captions: dict[str, str]
    path: Path

    def recording(self, language: str) -> Path:
        """Where the caption read in a language would be."""
        return self.path.with_name(f"{self.path.stem}_desc_{language}.ogg")

    @property
    def picture(self) -> Path:
        """Where its PNG picture would be."""
        return self.path.with_suffix(".png")


def read_captions(rest: str, options: SpokenCaptionOptions) -> Dataset:
    """Captions read aloud: raw is the recording, label the first word, text the caption.

    The extra column `caption` holds the English caption, a single one of those that are read alike in one of the languages:
    split by `group:caption` keeps one sentence on one side, in all of them. `language` holds the recording's language.

    Raises:
        UserError: the stamps are not installed, or there are no recordings in a language.
    """
    data = "data:tux-paint-captions"
    stamps, languages = _stamps(data, options.directory), language_codes(options.language)
    spoken = [(stamp, language) for language in languages for stamp in stamps if stamp.captions.get(language) and stamp.recording(language).is_file()]
    for language in languages:
        if language not in {found for _, found in spoken}:
            raise unknown("language of recorded captions", language, recorded_languages(stamps))
    kept = _frequent(spoken, lambda pair: first_word(pair[0].captions[pair[1]]), options.minimum, data)
    examples, sentence = [], _sentences(spoken)
    for stamp, language in kept:
        caption, path = stamp.captions[language], stamp.recording(language)
        extra = {"caption": sentence[stamp.captions["en"]], "category": stamp.category, "language": language}
        name = stamp.name if len(languages) == 1 else f"{stamp.name} ({language})"
        examples.append(Example(name, path, first_word(caption), caption, extra, f"{stamp.name}_desc_{language}.ogg"))
    return Dataset(f"{data} ({', '.join(languages)})", prepared(examples, options), "audio", licence=LICENCE)


def _sentences(spoken: Iterable[tuple[Stamp, str]]) -> dict[str, str]:
    """English captions to the first of those that are read alike, whatever their case and punctuation: several may be one in Spanish."""
    first: dict[str, str] = {}
    by_text: dict[tuple[str, str], str] = {}

    def found(caption: str) -> str:
        while first.setdefault(caption, caption) != caption:
            caption = first[caption]
        return caption

    for stamp, language in spoken:
        text = " ".join(re.findall(r"\w+", stamp.captions[language].casefold()))
        first[found(stamp.captions["en"])] = found(by_text.setdefault((language, text), stamp.captions["en"]))
    return {caption: found(caption) for caption in first}


def recorded_languages(stamps: Iterable[Stamp]) -> set[str]:
    """Languages in which at least one caption is written and read aloud."""
    return {language for stamp in stamps for language in stamp.captions if stamp.recording(language).is_file()}


def read_text_captions(rest: str, options: CaptionOptions) -> Dataset:
    """Captions as text: raw is the caption, label its category, text the same caption in `target_language`.

    Raises:
        UserError: the stamps are not installed, or a language is unknown.
    """
    stamps = _stamps("data:tux-paint-text", options.directory)
    languages = {language for stamp in stamps for language in stamp.captions}
    wanted = [options.language] + ([options.target_language] if options.target_language else [])
    for language in wanted:
        if language not in languages:
            raise unknown("language of captions", language, languages)
    captioned = [stamp for stamp in stamps if all(stamp.captions.get(language) for language in wanted)]
    kept = _frequent(captioned, lambda stamp: stamp.category, options.minimum, "data:tux-paint-text")
    examples = []
    for stamp in kept:
        text = stamp.captions[options.target_language] if options.target_language else None
        examples.append(Example(stamp.name, stamp.captions[options.language], stamp.category, text, {"caption": stamp.captions["en"]}, f"{stamp.name}.txt"))
    return Dataset(f"data:tux-paint-text ({', '.join(wanted)})", examples, "text", licence=LICENCE)


def read_pictures(rest: str, options: PictureOptions) -> Dataset:
    """PNG pictures: label is the category, text the English caption.

    Raises:
        UserError: the stamps are not installed.
    """
    stamps = [stamp for stamp in _stamps("data:tux-paint-pictures", options.directory) if stamp.picture.is_file()]
    kept = _frequent(stamps, lambda stamp: stamp.category, options.minimum, "data:tux-paint-pictures")
    examples = [Example(stamp.name, stamp.picture, stamp.category, stamp.captions["en"], {}, f"{stamp.name}.png") for stamp in kept]
    if options.check_files:
        check_media(examples)
    return Dataset("data:tux-paint-pictures", examples, "image", licence=LICENCE)


def first_word(caption: str) -> str:
    """The first word in lower case without punctuation; an elided article counts as a word (`l'`)."""
    found = re.match(r"\W*(\w+['’]?)", caption.lower())
    return found[1].replace("’", "'") if found else ""


def parse_captions(text: str) -> dict[str, str]:
    """Captions by language: the first line is English, others are `fr.utf8=…`."""
    lines = text.splitlines()
    captions = {"en": lines[0].strip()} if lines and lines[0].strip() else {}
    for line in lines[1:]:
        language, equals, caption = line.partition(".utf8=")
        if equals and caption.strip():
            captions[language.strip()] = caption.strip()
    return captions


def _stamps(data: str, directory: str) -> list[Stamp]:
    root = find_directory(data, PACKAGE, DIRECTORIES, directory)
    stamps = []
    for path in sorted(root.rglob("*.txt"), key=lambda path: natural_key(path.relative_to(root).as_posix())):
        captions = parse_captions(path.read_text(encoding="utf-8", errors="replace"))
        name = path.relative_to(root).with_suffix("").as_posix()
        if "en" in captions and "/" in name:
            stamps.append(Stamp(name, name.partition("/")[0], captions, path))
    if not stamps:
        raise UserError(f"{data}: no stamps below {root}; run: apt install {PACKAGE}")
    return stamps


def _frequent(found: Iterable[ChosenT], label: Callable[[ChosenT], str], minimum: int, data: str) -> list[ChosenT]:
    chosen = list(found)
    counts = Counter(label(one) for one in chosen)
    kept = [one for one in chosen if label(one) and counts[label(one)] >= minimum]
    if not kept:
        raise UserError(f"{data}: no class has {minimum} examples ({len(chosen)} examples found); lower the option minimum")
    return kept
