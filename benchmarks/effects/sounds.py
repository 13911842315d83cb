"""The ground of the sound experiments: real recordings that Debian packages carry, cut to one length and split by what must not leak.

- `first word`: French captions of Tux Paint, class = first word (le, la, les …), split by distinct caption;
- `article gender`: Spanish and Catalan captions of Tux Paint, class = gender of the article (un, el; una, la), split by distinct caption;
- `letters`: letters a to z of KLettres, split by language: test speakers and languages are never trained on (English of two countries is one);

    apt-get install -y --no-install-recommends tuxpaint-stamps-default klettres-data
"""

from __future__ import annotations

import hashlib
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from polyadapt.data.dataset import Dataset, Example
from polyadapt.data.readers.card import SpokenCaptionOptions
from polyadapt.data.readers.tux_paint import read_captions
from polyadapt_runtime.audio import read_audio

GENDERS = {"un": "masculine", "el": "masculine", "una": "feminine", "la": "feminine"}
KLETTRES = Path("/usr/share/klettres")
RATE_HZ = 16000
SHARES = {"train": 0.6, "validation": 0.15, "test": 0.25}


@dataclass(frozen=True)
class Clip:
    """One recording. `group` is kept on one side of a split, `unit` is what a bootstrap draws."""

    path: Path
    label: str
    group: str
    unit: str


@dataclass(frozen=True)
class Sounds:
    """One task: where its clips come from, how many seconds of each are heard, and what a bootstrap draws."""

    clips: Callable[[], list[Clip]]
    seconds: float
    unit: str


def first_words() -> list[Clip]:
    """French captions whose first word is among the frequent ones."""
    data = read_captions("", SpokenCaptionOptions(language="fr", minimum=25, check_files=False))
    return _captions((row, str(row.label)) for row in data)


def genders() -> list[Clip]:
    """Spanish and Catalan captions that begin with an article of the singular."""
    data = read_captions("", SpokenCaptionOptions(language="es,ca", minimum=1, check_files=False))
    return _captions((row, GENDERS[str(row.label)]) for row in data if row.label in GENDERS)


def _captions(rows: Iterable[tuple[Example, str]]) -> list[Clip]:
    """Clips grouped by sentence: captions that differ in case or punctuation are one, often one recording too, and so are those
    that are read alike in one of the languages. A recording that comes under two captions belongs to the first.
    """
    first: dict[bytes, str] = {}
    clips = []
    for row, label in rows:
        path = Path(row.raw)
        sentence = first.setdefault(hashlib.sha256(path.read_bytes()).digest(), str(row.extra["caption"]))
        clips.append(Clip(path, label, sentence, sentence))
    return clips


def letters() -> list[Clip]:
    """Letters of the plain alphabet in all languages that name them."""
    found = []
    for sheet in sorted(KLETTRES.glob("*/sounds.xml")):
        # Some of the files name an encoding that they do not have.
        root = ElementTree.fromstring(re.sub(r"<\?xml[^>]*\?>", "", sheet.read_text(encoding="utf-8", errors="replace")))
        for sound in root.iterfind(".//alphabet/sound"):
            name, path = sound.get("name", "").lower(), KLETTRES / sound.get("file", "")
            if len(name) == 1 and name in string.ascii_lowercase and path.is_file():
                language = sheet.parent.name.partition("_")[0]
                found.append(Clip(path, name, language, language))  # a language is one voice, but for English
    return found


TASKS: Mapping[str, Sounds] = {
    "first word": Sounds(first_words, 1.5, "captions"),
    "article gender": Sounds(genders, 1.5, "captions"),
    "letters": Sounds(letters, 1.5, "languages"),
}


def digest(task: str) -> str:
    """Of the clips of a task, so that two installations of the recordings are not taken for one."""
    found = hashlib.sha256()
    for clip in TASKS[task].clips():
        found.update(f"{clip.path.name} {clip.label} {clip.group}\n".encode())
        found.update(clip.path.read_bytes())
    return found.hexdigest()[:16]


def loaded(task: str) -> tuple[list[Clip], list[np.ndarray]]:
    """The clips of a task and their samples at 16 kHz, all of one length."""
    sounds = TASKS[task]
    clips = sounds.clips()
    return clips, [read_audio(clip.path, {"sample_rate_hz": RATE_HZ, "seconds": sounds.seconds, "maximum_seconds": None}) for clip in clips]


def parts_of(task: str, clips: list[Clip], samples: list[np.ndarray], seed: int) -> tuple[dict[str, Dataset], list[str]]:
    """Train, validation and test by group, and the units of the test part in its order; classes that training lacks are left out.

    What the first seed validates on chooses learning rates for all seeds, so no seed tests on it: there it is trained on.
    """
    groups = sorted({clip.group for clip in clips})
    side, chose = sides(groups, seed), sides(groups, 0)
    side = {group: "train" if (name, chose[group]) == ("test", "validation") else name for group, name in side.items()}
    known = Counter(clip.label for clip in clips if side[clip.group] == "train")
    labels = tuple(sorted(known))
    rows: dict[str, list[Example]] = {name: [] for name in SHARES}
    units = []
    for index, (clip, sound) in enumerate(zip(clips, samples, strict=True)):
        if clip.label in known:
            rows[side[clip.group]].append(Example(f"{index}", (sound, RATE_HZ), clip.label))
            if side[clip.group] == "test":
                units.append(clip.unit)
    return {name: Dataset(f"{task} {name}", part, "audio", labels) for name, part in rows.items()}, units


def sides(groups: Sequence[str], seed: int) -> dict[str, str]:
    """The part of every group, drawn by seed."""
    order = np.random.default_rng([seed, 7]).permutation(len(groups))
    edges = np.cumsum([round(share * len(groups)) for share in SHARES.values()])[:-1]
    return {groups[index]: name for name, piece in zip(SHARES, np.split(order, edges), strict=True) for index in piece}
