"""Tux Paint's captions read aloud, as clips and transcripts of several languages, split by distinct caption text.

Clips are brought to 16 kHz, silence at both ends goes, and what is longer than 2.2 seconds is left out (3 % of the clips). Transcripts are in
lower case and hold letters, apostrophes and single spaces. A language has few speakers, the same ones in every part.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace

import numpy as np

from polyadapt.api import open_dataset
from polyadapt.data.dataset import Dataset, Example
from polyadapt_runtime.audio import read_audio

RATE_HZ = 16000
SECONDS = 2.2
FRAME = 320  # samples over which loudness is measured
FASTEST = 30  # characters a second: what has more was not read as it is written
QUIET = 10 ** (-35 / 20)  # of the loudest frame: below it is silence
MARGIN = 3  # frames of it that stay at each end

Parts = dict[str, Dataset]


def language_parts(language: str, train: int, validation: int, test: int, seed: int = 0) -> Parts:
    """Train, validation and test clips of one language; equal captions are on one side, and the same ones whatever `train` is."""
    clips = [found for example in open_dataset("data:tux-paint-captions", language=language, minimum=1) if (found := usable(example, language)) is not None]
    texts = sorted({str(example.text) for example in clips})
    rank = {texts[place]: position for position, place in enumerate(np.random.default_rng(seed).permutation(len(texts)))}
    ordered = sorted(clips, key=lambda example: (rank[str(example.text)], example.id))
    parts: Parts = {}
    for name, count in (("test", test), ("validation", validation), ("train", train)):
        chosen: list[Example] = []
        while ordered and (len(chosen) < count or str(ordered[0].text) == str(chosen[-1].text)):
            chosen.append(ordered.pop(0))
        parts[name] = Dataset(f"tux-paint {language} {name}", chosen, "audio")
    return parts


def usable(example: Example, language: str) -> Example | None:
    """A clip with its transcript, or None where it is too long, holds what is no letter, or cannot be what was read."""
    text = transcript(str(example.text))
    sound = trimmed(read_audio(example.raw, {"sample_rate_hz": RATE_HZ}))
    seconds = len(sound) / RATE_HZ
    if not text or not 0.2 <= seconds <= SECONDS or len(text) > FASTEST * seconds:
        return None
    return replace(example, id=f"{language}/{example.id}", raw=(sound, RATE_HZ), label=None, text=text, extra={"language": language})


def transcript(caption: str) -> str:
    """A caption in lower case without punctuation; empty where it holds digits or symbols, which are read in words."""
    text = unicodedata.normalize("NFC", caption).lower().replace("’", "'")
    text = re.sub(r"[.,;:!?«»\"“”„()…·\-–—/]", " ", text)
    text = " ".join(text.split())
    return text if re.fullmatch(r"[^\W\d_]+(?:[ '][^\W\d_]+)*'?", text) else ""


def trimmed(sound: np.ndarray) -> np.ndarray:
    """Without silence at both ends, float32 [samples]."""
    frames = sound[: len(sound) // FRAME * FRAME].reshape(-1, FRAME)
    loudness = np.sqrt((frames.astype(np.float64) ** 2).mean(1))
    heard = np.flatnonzero(loudness > QUIET * loudness.max(initial=0.0))
    return sound[max(0, heard[0] - MARGIN) * FRAME : (heard[-1] + 1 + MARGIN) * FRAME] if len(heard) else sound[:0]


def joined(parts: list[Dataset], name: str) -> Dataset:
    """Several languages as one set."""
    return Dataset(name, [example for part in parts for example in part], "audio")


def minutes(dataset: Dataset) -> float:
    """How long all clips take."""
    return sum(len(samples) for samples, _ in (example.raw for example in dataset)) / RATE_HZ / 60
