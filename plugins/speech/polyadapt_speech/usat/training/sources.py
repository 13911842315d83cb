"""Where the speakers of a corpus come from: collections that Debian packages bring, and the program espeak-ng.

One speaker a language of a collection. Some collections may have several voices in a language; nothing tells them apart.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polyadapt.data.dataset import Dataset, Example
from polyadapt.data.trim import loud_part
from polyadapt.errors import UserError
from polyadapt_runtime.audio import read_audio
from polyadapt_runtime.errors import InputError, MissingLibraryError
from polyadapt_runtime.sound import Clip
from polyadapt_speech.usat.network.loudness import levelled
from polyadapt_speech.usat.training.corpus import Speaker, Spoken
from polyadapt_speech.usat.training.sentences import SENTENCES

LEAST_S, MOST_S = 0.7, 6.0  # of a clip; letters are joined to it
TRIM_DB = 40.0


@dataclass(frozen=True)
class Collection:
    """A reader's data, and how much of each of its speakers is taken.

    Attributes:
        seconds: of each speaker.
        texts: whether the texts are what is said; those of Asterisk's other languages are English.
    """

    name: str
    uri: str
    options: Mapping[str, Any]
    seconds: float
    texts: bool = True


COLLECTIONS = (
    Collection("tux-paint", "data:tux-paint-captions", {"language": "be,bg,ca,da,el,es,fr,ro,ru", "minimum": 1}, 60.0),
    Collection("asterisk-en", "data:asterisk-prompts", {"language": "en"}, 90.0),
    Collection("asterisk", "data:asterisk-prompts", {"language": "fr,it,ru"}, 40.0, texts=False),
    Collection("klettres", "data:klettres", {"part": "all", "minimum": 1}, 15.0),
)
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp")
VARIANTS = ("m1", "m3", "m7", "f1", "f2", "f4", "Andrea", "Denis", "Hugo", "steph", "klatt2", "belinda", "Mike")
PITCHES = (35, 50, 65)
SPEEDS = (150, 165, 180)
STEP = 7  # sentences between the beginnings of two voices
HELD_OUT = ("tux-paint-be", "tux-paint-el", "espeak-en-gb+f5", "espeak-en-us+Pablo")
SYNTHETIC_S = 18.0
GOLDEN = (5**0.5 - 1) / 2

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A speaker, how much of it is taken, and its clips one after another, as many as there are."""

    speaker: Speaker
    seconds: float
    clips: Iterator[Spoken]


def speakers_of(collection: Collection, data: Dataset, rate_hz: int) -> Iterator[Source]:
    """The speakers of a collection."""
    rows: dict[str, list[Example]] = {}
    for example in data:
        rows.setdefault(str(example.extra.get("language") or collection.name), []).append(example)
    for language, examples in rows.items():
        name = collection.name if collection.name.endswith(f"-{language}") else f"{collection.name}-{language}"
        speaker = Speaker(name, language.replace("_", "-").lower(), collection.uri, data.licence)  # as espeak-ng writes en-gb
        yield Source(speaker, collection.seconds, _joined(speaker, _spread(examples), rate_hz, collection.texts))


def synthetic(name: str, number: int, rate_hz: int) -> Source:
    """A voice of espeak-ng, such as `espeak-en-us+f1`; each begins elsewhere in the list of sentences and has its own pitch and speed.

    Raises:
        UserError: espeak-ng is not installed.
    """
    program = shutil.which("espeak-ng")
    if program is None:
        raise UserError("synthetic speakers are made by the program espeak-ng, which is not installed; run: apt install espeak-ng")
    manner = ("-v", name.removeprefix("espeak-"), "-p", str(PITCHES[number % len(PITCHES)]), "-s", str(SPEEDS[number // 2 % len(SPEEDS)]))
    speaker = Speaker(name, "en-us", "espeak-ng", "made by a program under GPL-3.0-or-later")
    return Source(speaker, SYNTHETIC_S, _said((program, *manner), speaker, STEP * number, rate_hz))


def synthetic_names() -> tuple[str, ...]:
    """Voices of espeak-ng: every variant in two accents."""
    pairs = [(ACCENTS[(place + turn) % len(ACCENTS)], variant) for turn in (0, 1) for place, variant in enumerate(VARIANTS)]
    found = tuple(f"espeak-{accent}+{variant}" for accent, variant in pairs)
    return (*found, *(name for name in HELD_OUT if name.startswith("espeak-") and name not in found))


def heard(raw: Any, rate_hz: int) -> NDArray[np.float32]:
    """A recording, mono, without the silence at its ends."""
    clip = loud_part(raw if isinstance(raw, Clip) else Clip(Path(raw)), TRIM_DB)
    return read_audio(clip, {"sample_rate_hz": rate_hz, "seconds": None, "maximum_seconds": 60.0})


def at_one_loudness(samples: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    """As a voice brings to it whatever it hears; clips are longer than a hundredth of a second."""
    return levelled(torch.from_numpy(samples)[None], torch.tensor([len(samples)]), rate_hz // 100)[0].numpy()


def _said(command: tuple[str, ...], speaker: Speaker, start: int, rate_hz: int) -> Iterator[Spoken]:
    """Every sentence once. Raises UserError where espeak-ng does not know the voice."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "said.wav"
        for index in range(len(SENTENCES)):
            place = (start + index) % len(SENTENCES)
            done = subprocess.run([*command, "-w", str(path), SENTENCES[place]], capture_output=True, check=False)
            if done.returncode:
                raise UserError(f"espeak-ng cannot speak as {speaker.name!r}: {done.stderr.decode(errors='replace').strip()[:200]}")
            yield Spoken(f"{speaker.name}/{place}", speaker.name, SENTENCES[place], at_one_loudness(heard(path, rate_hz), rate_hz))


def _joined(speaker: Speaker, examples: list[Example], rate_hz: int, has_texts: bool) -> Iterator[Spoken]:
    """Recordings of a collection, with what is said. Short ones, such as letters, are joined until they last `LEAST_S`; long ones and broken ones are left out."""
    waiting: list[tuple[NDArray[np.float32], str]] = []
    for example in examples:
        try:
            samples = heard(example.raw, rate_hz)
        except (InputError, UserError) as error:
            if isinstance(error.__cause__ or error, MissingLibraryError):
                raise
            _log.warning("%s: left out, %s", example.source or example.id, error)
            continue
        if len(samples) > MOST_S * rate_hz:
            continue
        waiting.append((samples, example.text or ""))
        if sum(len(part) for part, _ in waiting) >= LEAST_S * rate_hz:
            texts = [text for _, text in waiting]
            text = _together(texts) if has_texts and all(texts) else ""
            yield Spoken(f"{speaker.name}/{example.id}", speaker.name, text, at_one_loudness(np.concatenate([part for part, _ in waiting]), rate_hz))
            waiting = []


def _together(texts: list[str]) -> str:
    """Texts one after another. What stands in capitals, as letters and syllables do, would be spelled letter by letter."""
    return ", ".join(text.lower() if text.isupper() else text for text in texts)


def _spread(examples: list[Example]) -> list[Example]:
    """All of them, by multiples of the golden ratio: every beginning of the list is spread over the whole collection."""
    order = np.argsort((np.arange(len(examples)) * GOLDEN) % 1.0, kind="stable")
    return [examples[int(place)] for place in order]
