"""Long sounds and streams answered window by window, with times."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from polyadapt_runtime.errors import InputError
from polyadapt_runtime.postprocess import Prediction
from polyadapt_runtime.sound import open_sound

if TYPE_CHECKING:
    from polyadapt_runtime.bundle import Bundle
    from polyadapt_runtime.slots import Choice

_EVERY_CLASS = 1 << 30


@dataclass(frozen=True)
class Window:
    """The answer for one stretch of a sound; `top` names every class."""

    start_s: float
    end_s: float
    label: str
    score: float
    top: tuple[tuple[str, float], ...]


def classify_windows(bundle: Bundle, raw: Any, window_s: float = 1.0, hop_s: float | None = None, artifact: Choice = None, scale: float = 1.0) -> Iterator[Window]:
    """Classes of a long sound or of a stream, as soon as each window has been heard. Memory does not grow with the length.

    Each window is answered as a clip of its own. The last one ends with the sound, so that nothing is left out; a sound
    that is shorter than a window is one window.

    Args:
        bundle: of task `classification` that takes sound.
        raw: what `open_sound` takes: a path, (array, rate in Hz), or `pcm_sound(stream, rate)`.
        window_s: length of a window.
        hop_s: from the start of one to the start of the next; None for the window's length.
        artifact: as in a call of the bundle.
        scale: as in a call of the bundle.

    Raises:
        InputError: another task, a window that the model would cut, or a sound that is empty or cannot be read.
    """
    spec = sound_spec(bundle, ("classification",))
    hop_s = window_s if hop_s is None else hop_s
    limit = next((spec[key] for key in ("seconds", "maximum_seconds") if spec.get(key) is not None), None)
    least = spec.get("minimum_seconds") or 0.0
    if not least <= window_s < math.inf or not window_s > 0:
        raise InputError(f"a window is longer than 0 s and as long as this model hears at least ({least:g} s); asked were windows of {window_s:g} s")
    if not 0 < hop_s <= window_s:
        raise InputError(f"windows of {window_s:g} s every {hop_s:g} s would leave sound out; the hop is above 0 and at most the window")
    if limit is not None and window_s > limit:
        raise InputError(f"this model hears {limit:g} s at most, asked were windows of {window_s:g} s; take shorter ones")
    sound = open_sound(raw)
    rate = sound.rate_hz
    size, hop = max(1, round(window_s * rate)), max(1, round(hop_s * rate))
    first = -1
    for first, samples in cut(sound.mono(), size, hop):
        found = bundle((samples, rate), artifact, scale, top=_EVERY_CLASS)
        yield Window(first / rate, (first + len(samples)) / rate, found.label, found.score, found.top)
    if first < 0:
        raise InputError(f"{sound.name} is empty")


def mean_prediction(windows: Iterable[Window], top: int = 5) -> Prediction:
    """The answer for the whole sound: the mean of the windows' probabilities.

    Raises:
        InputError: there is no window.
    """
    sums: dict[str, float] = {}
    count = 0
    for window in windows:
        count += 1
        for label, score in window.top:
            sums[label] = sums.get(label, 0.0) + score
    if not count:
        raise InputError("the sound is empty")
    best = sorted(((label, total / count) for label, total in sums.items()), key=lambda pair: -pair[1])[: max(1, top)]
    return Prediction(best[0][0], best[0][1], tuple(best))


def cut(blocks: Iterable[np.ndarray], size: int, hop: int) -> Iterator[tuple[int, np.ndarray]]:
    """Windows of a sound that arrives in blocks of any length: place of the first sample, and float32 [size].

    The last window is moved back, so that it ends with the sound. A sound shorter than `size` gives one shorter window.
    """
    held, begin = np.zeros(0, np.float32), 0  # what may still be needed, and the place of its first sample
    place = 0  # of the next window
    for block in blocks:
        held = np.concatenate([held, block])
        total = begin + len(held)
        while place + size <= total:
            yield place, held[place - begin : place - begin + size]
            place += hop
        done = max(0, min(place, total - size) - begin)
        held, begin = held[done:], begin + done
    total = begin + len(held)
    if not place and total:
        yield 0, held
    elif place and place - hop + size < total:
        yield total - size, held[total - size - begin :]


def sound_spec(bundle: Bundle, tasks: tuple[str, ...]) -> dict[str, Any]:
    """The pre-processing of a bundle that takes sound and does one of some tasks.

    Raises:
        InputError: it does not.
    """
    if bundle.processor is None or bundle.processor.kind != "audio" or bundle.manifest.task not in tasks:
        kind = "nothing" if bundle.processor is None else bundle.processor.kind
        raise InputError(f"this needs a model of sound for {' or '.join(tasks)}; the bundle takes {kind} and does {bundle.manifest.task!r}")
    return bundle.processor.spec
