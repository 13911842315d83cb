"""Sound: file or array to float32 [samples] at one rate, mono."""

from __future__ import annotations

import functools
import logging
import math
import os
import wave
from collections.abc import Mapping
from typing import Any

import numpy as np

from polyadapt_runtime.errors import InputError, MissingLibraryError

# The filter known as `kaiser_best` (resampy, librosa, torchaudio's docs): a sinc of 64 zero crossings to each side under a Kaiser window.
# Tones up to 0.88 of the new half rate come out right to 1e-5; what lies above 1.02 of it is 120 dB down.
ZERO_CROSSINGS = 64
ROLLOFF = 0.9475937167399596
KAISER_BETA = 14.769656459379492
_GROUP = 64  # phases that share one matrix product
_ROWS = 4096  # frames that are copied at a time

_log = logging.getLogger(__name__)


def read_audio(raw: Any, spec: Mapping[str, Any]) -> np.ndarray:
    """One sound as a tensor.

    Args:
        raw: path; (array, rate in Hz); or an array at the spec's rate. Arrays are [samples] or have a second, shorter
            axis of channels, which are averaged; integers are scaled by their range.
        spec: `sample_rate_hz`; `seconds` to cut or fill up with silence, or None; `maximum_seconds`.

    Shape:
        float32 [samples].

    Raises:
        InputError: no sound, an empty one, or numbers that are not finite.
        MissingLibraryError: the file is no plain WAV and soundfile is not installed.
    """
    target = int(spec["sample_rate_hz"])
    samples, rate = _samples(raw, target)
    samples = _mono(samples)
    if not samples.size or not np.isfinite(samples).all():
        raise InputError("the sound is empty" if not samples.size else "the sound has samples that are not finite numbers")
    seconds, maximum = spec.get("seconds"), spec.get("maximum_seconds")
    limit = seconds if seconds is not None else maximum
    if limit is not None:
        if len(samples) > limit * rate and seconds is None:
            _log.warning("a sound of %.1f s was cut to maximum_seconds = %s", len(samples) / rate, maximum)
        samples = samples[: math.ceil((limit + 1.0) * rate)]  # a second more than needed, so that the cut changes no kept sample
    samples = resample(samples, rate, target)
    if limit is not None:
        samples = samples[: round(limit * target)]
    if seconds is not None:
        samples = np.pad(samples, (0, round(seconds * target) - len(samples)))
    return np.ascontiguousarray(samples)


def resample(samples: np.ndarray, rate_hz: int, target_hz: int) -> np.ndarray:
    """Band-limited resampling by a polyphase filter; torchaudio's `sinc_interp_kaiser` with the constants of this file.

    Shape:
        float32 [n] -> float32 [ceil(n * target / rate)].

    Raises:
        InputError: a rate that is not a positive whole number.
    """
    _check_rate(rate_hz)
    if rate_hz == target_hz:
        return samples
    step, phases = _reduced(int(rate_hz), target_hz)
    reach = _reach(step, phases)
    length = math.ceil(len(samples) * target_hz / rate_hz)
    frames = math.ceil(length / phases)
    padded = np.pad(samples, (reach, reach + step * 2 + frames * step - min(frames * step, len(samples))))
    result = np.empty((frames, phases), np.float32)
    for first in range(0, phases, _GROUP):
        offset, kernel = _kernel(step, phases, first)
        windows = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[0])[offset::step][:frames]  # (frames, taps)
        for row in range(0, frames, _ROWS):
            copied = np.ascontiguousarray(windows[row : row + _ROWS])  # overlapping rows keep BLAS away
            result[row : row + _ROWS, first : first + _GROUP] = copied @ kernel  # (rows, taps) @ (taps, group)
    return result.reshape(-1)[:length]


def _check_rate(rate_hz: float) -> None:
    if not 1 <= rate_hz < math.inf or rate_hz != int(rate_hz):
        raise InputError(f"a sample rate is a positive whole number of Hz, found {rate_hz}")


def _reduced(rate: int, target: int) -> tuple[int, int]:
    """The ratio in lowest terms, widened until a group is full: few wide products beat many narrow ones."""
    common = math.gcd(rate, target)
    step, phases = rate // common, target // common
    widen = math.ceil(_GROUP / phases)
    return step * widen, phases * widen


def _reach(step: int, phases: int) -> int:
    """Input samples to each side that one output sees."""
    return math.ceil(ZERO_CROSSINGS * step / (min(step, phases) * ROLLOFF))


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


def _samples(raw: Any, target: int) -> tuple[np.ndarray, int]:
    if isinstance(raw, str | os.PathLike):
        return _file(os.fspath(raw))
    if isinstance(raw, tuple) and len(raw) == 2 and isinstance(raw[1], int | float | np.integer):
        rate = float(raw[1])
        _check_rate(rate)
        return _scaled(np.asarray(raw[0])), int(rate)
    if isinstance(raw, np.ndarray | list):
        return _scaled(np.asarray(raw)), target
    raise InputError(f"a sound is a path, an array or (array, rate in Hz), found {type(raw).__name__}")


def _file(path: str) -> tuple[np.ndarray, int]:
    """Samples [n, channels] and rate: plain WAV by the standard library, everything else by soundfile."""
    try:
        with wave.open(path, "rb") as stream:
            data, width, channels, rate = stream.readframes(stream.getnframes()), stream.getsampwidth(), stream.getnchannels(), stream.getframerate()
        return _pcm(data[: len(data) // (width * channels) * width * channels], width).reshape(-1, channels), rate
    except OSError as error:
        raise InputError(f"cannot read sound {path}: {error.strerror or error}") from error
    except (wave.Error, EOFError):
        pass  # another format, which soundfile may know
    try:
        import soundfile
    except ImportError as error:
        raise MissingLibraryError("soundfile", "audio", f"{path} is no plain WAV file, and reading it") from error
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise InputError(f"cannot read sound {path}: {error}") from error
    return samples, int(rate)


def _pcm(data: bytes, width: int) -> np.ndarray:
    if width == 3:
        packed = np.frombuffer(data, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(packed), 4), np.uint8)
        wide[:, 1:] = packed  # the low byte stays 0
        return _scaled(wide.view("<i4")[:, 0])
    return _scaled(np.frombuffer(data, {1: "u1", 2: "<i2", 4: "<i4"}[width]))


def _scaled(samples: np.ndarray) -> np.ndarray:
    """Integers to -1..1 by their range, floats as they are."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype in (np.int16, np.int32):
        return samples.astype(np.float32) / np.float32(-float(np.iinfo(samples.dtype).min))
    raise InputError(f"samples are floats, int16, int32 or uint8, found {samples.dtype}")


def _mono(samples: np.ndarray) -> np.ndarray:
    if samples.ndim == 1:
        return samples
    if samples.ndim != 2:
        raise InputError(f"a sound has shape [samples], or [samples, channels] either way round, found {list(samples.shape)}")
    mono: np.ndarray = samples.mean(axis=int(samples.shape[1] <= samples.shape[0]), dtype=np.float32)
    return mono
