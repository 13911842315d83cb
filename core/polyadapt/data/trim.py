"""Silence at both ends of recordings, and recordings that are too long, are left out. Files stay as they are: what is kept are parts of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from polyadapt.data.dataset import Example
from polyadapt.data.media import medium_of
from polyadapt.errors import UserError
from polyadapt_runtime.errors import BundleError
from polyadapt_runtime.sound import Clip, open_sound

FRAME_S = 0.01  # ours: loudness is measured over
MARGIN_S = 0.05  # ours: kept before the first and behind the last loud frame


def trimmed(examples: Iterable[Example], trim_db: float) -> list[Example]:
    """Examples whose recordings begin and end where they are louder than their loudest 10 ms less `trim_db`.

    A recording that is silent throughout stays whole. What is no recording stays as it is.

    Raises:
        UserError: a file cannot be read.
    """
    return [replace(example, raw=loud_part(clip, trim_db)) if (clip := _clip(example)) is not None else example for example in examples]


def not_longer(examples: Sequence[Example], seconds: float) -> list[Example]:
    """Examples whose recordings last at most so long, and what is no recording.

    Raises:
        UserError: a file cannot be read, or nothing is left.
    """
    lengths = [(example, clip_seconds(clip) if (clip := _clip(example)) is not None else 0.0) for example in examples]
    kept = [example for example, length in lengths if length <= seconds]
    if not kept:
        raise UserError(f"no recording lasts at most maximum_seconds = {seconds:g}: the shortest takes {min(length for _, length in lengths):.2f} s; raise it")
    return kept


def clip_seconds(clip: Clip) -> float:
    """How long a recording, or a part of one, lasts.

    Raises:
        UserError: the file cannot be read.
    """
    if clip.end_s is not None:
        return clip.end_s - clip.start_s
    try:
        sound = open_sound(clip)
        return sum(len(block) for block in sound.blocks) / sound.rate_hz
    except BundleError as error:
        raise UserError(str(error)) from error


def loud_part(clip: Clip, trim_db: float) -> Clip:
    """The part of a recording from its first loud frame to its last, with a margin.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        powers, frame_s, length_s = _powers(clip)  # (frames,)
    except BundleError as error:
        raise UserError(str(error)) from error
    loud = np.flatnonzero(powers > powers.max(initial=0.0) * 10.0 ** (-trim_db / 10.0))
    if not loud.size:
        return clip
    start_s = max(0.0, float(loud[0]) * frame_s - MARGIN_S)
    end_s = min(length_s, float(loud[-1] + 1) * frame_s + MARGIN_S)
    return Clip(clip.path, round(clip.start_s + start_s, 4), round(clip.start_s + end_s, 4))


def _clip(example: Example) -> Clip | None:
    if isinstance(example.raw, Clip):
        return example.raw
    return Clip(example.file) if example.file is not None and medium_of(example.file) == "audio" else None


def _powers(clip: Clip) -> tuple[np.ndarray, float, float]:
    """Mean squares of frames, how long one is (a whole number of samples, so about `FRAME_S`), and how long all is, in seconds."""
    sound = open_sound(clip)
    size, rest, found, total = max(1, round(FRAME_S * sound.rate_hz)), np.zeros(0, np.float32), [np.zeros(0)], 0
    for block in sound.mono():
        total += len(block)
        held = np.concatenate([rest, block])
        whole = len(held) // size * size
        found.append(np.square(held[:whole], dtype=np.float64).reshape(-1, size).mean(axis=1))  # (frames,)
        rest = held[whole:]
    if rest.size:
        found.append(np.array([float(np.square(rest, dtype=np.float64).mean())]))
    return np.concatenate(found), size / sound.rate_hz, math.floor(total / sound.rate_hz * 1e4) / 1e4
