"""Band-limited resampling, in numpy alone: the same samples in training and beside an exported graph."""

from __future__ import annotations

import functools
import math

import numpy as np

from polyadapt_runtime.errors import InputError

# The filter known as `kaiser_best` (resampy, librosa, torchaudio's docs): a sinc of 64 zero crossings to each side under a Kaiser window.
# Tones up to 0.88 of the new half rate come out right to 1e-5; what lies above 1.02 of it is 120 dB down.
ZERO_CROSSINGS = 64
ROLLOFF = 0.9475937167399596
KAISER_BETA = 14.769656459379492
MOST_HZ = 1_000_000  # ours: no sound card goes as far, and a filter as long as the rates of a damaged header claim would fill the memory
_GROUP = 64  # phases that share one matrix product
_ROWS = 4096  # frames that are copied at a time
_KEPT_BYTES = 64 << 20  # ours: a pair of rates whose filter is larger has it made anew for each sound; all usual pairs stay below 2 MB


def resample(samples: np.ndarray, rate_hz: int, target_hz: int) -> np.ndarray:
    """Band-limited resampling by a polyphase filter; torchaudio's `sinc_interp_kaiser` with the constants of this file.

    Shape:
        float32 [n] -> float32 [ceil(n * target / rate)].

    Raises:
        InputError: a rate that is not a positive whole number, or is above `MOST_HZ`.
    """
    check_rate(rate_hz)
    if rate_hz == target_hz:
        return samples
    step, phases = _reduced(int(rate_hz), target_hz)
    reach = _reach(step, phases)
    length = math.ceil(len(samples) * target_hz / rate_hz)
    frames = math.ceil(length / phases)
    padded = np.pad(samples, (reach, reach + step * 2 + frames * step - min(frames * step, len(samples))))
    result = np.empty((frames, phases), np.float32)
    made = _kernel if _filter_bytes(step, phases) <= _KEPT_BYTES else _kernel.__wrapped__
    for first in range(0, phases, _GROUP):
        offset, kernel = made(step, phases, first)
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[0])[offset::step][:frames]  # (frames, taps)
        for row in range(0, frames, _ROWS):
            copied = np.ascontiguousarray(windows[row : row + _ROWS])  # overlapping rows keep BLAS away
            result[row : row + _ROWS, first : first + _GROUP] = copied @ kernel  # (rows, taps) @ (taps, group)
    return result.reshape(-1)[:length]


def check_rate(rate_hz: float) -> None:
    """Refuse what is no sample rate.

    Raises:
        InputError: it is not a positive whole number, or is above `MOST_HZ`.
    """
    if not 1 <= rate_hz <= MOST_HZ or rate_hz != int(rate_hz):
        raise InputError(f"a sample rate is a positive whole number of Hz, {MOST_HZ} at most, found {rate_hz}")


def _reduced(rate: int, target: int) -> tuple[int, int]:
    """The ratio in lowest terms, widened until a group is full: few wide products beat many narrow ones."""
    common = math.gcd(rate, target)
    step, phases = rate // common, target // common
    widen = math.ceil(_GROUP / phases)
    return step * widen, phases * widen


def _reach(step: int, phases: int) -> int:
    """Input samples to each side that one output sees."""
    return math.ceil(ZERO_CROSSINGS * step / (min(step, phases) * ROLLOFF))


def _filter_bytes(step: int, phases: int) -> int:
    """Size of the kernels of all phases."""
    return phases * (2 * _reach(step, phases) + _GROUP * step // phases) * np.dtype(np.float32).itemsize


@functools.lru_cache(maxsize=1024)
def _kernel(step: int, phases: int, first: int) -> tuple[int, np.ndarray]:
    """Taps of a group of phases: where its window begins within a frame, and the matrix [taps, group].

    Output `i` of a frame stands at input position i * step / phases. With the cutoff c = min(1, phases / step) * rolloff
    in units of the input's half rate, its taps are c * sinc(c t) * kaiser(c t / zero crossings).
    """
    reach, cutoff = _reach(step, phases), min(1.0, phases / step) * ROLLOFF
    centres = np.arange(first, min(first + _GROUP, phases)) * step / phases  # (group,)
    begin = math.floor(centres[0])
    taps = np.arange(begin - reach, math.ceil(centres[-1]) + reach + 1)[:, None] - centres  # (taps, group), in input samples
    t = cutoff * taps
    inside = np.clip(1.0 - (t / ZERO_CROSSINGS) ** 2, 0.0, None)
    window = np.where(np.abs(t) < ZERO_CROSSINGS, np.i0(KAISER_BETA * np.sqrt(inside)) / np.i0(KAISER_BETA), 0.0)
    return begin, (cutoff * np.sinc(t) * window).astype(np.float32)
