"""Sound: file, clip, array or stream to float32 [samples] at one rate, mono."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from polyadapt_runtime.cutting import tell_cut
from polyadapt_runtime.errors import InputError
from polyadapt_runtime.resampling import resample
from polyadapt_runtime.sound import Sound, open_sound

LONGEST_S = 600.0  # ours: of a sound that is answered as a whole, where the model sets no limit
SILENT = 1e-4  # ours: a peak of -80 dB
CLIPPED_SHARE = 1e-3  # ours: of samples that repeat the one before at full scale
_FULL_SCALE = 0.99

_log = logging.getLogger(__name__)


def read_audio(raw: Any, spec: Mapping[str, Any]) -> np.ndarray:
    """One sound as a tensor. Of a long file only as much is read as is kept.

    Args:
        raw: what `open_sound` takes: a path, a `Clip`, a `Sound`, or (array, rate in Hz).
        spec: `sample_rate_hz`; `seconds` to cut or fill up with silence, or None; `minimum_seconds` and `maximum_seconds`; `refuse_silence`
            and `refuse_cut`, without which what is cut is said in a warning.

    Shape:
        float32 [samples].

    Raises:
        InputError: no sound, an empty, too short or too long one, a silent one where that is refused, or numbers that are not finite.
        MissingLibraryError: the file's format needs a library that is not installed.
    """
    target = int(spec["sample_rate_hz"])
    sound = open_sound(raw)
    seconds, maximum = spec.get("seconds"), spec.get("maximum_seconds")
    limit = seconds if seconds is not None else maximum
    samples, is_whole = _beginning(sound, LONGEST_S if limit is None else limit)
    if not samples.size:
        raise InputError(f"{sound.name} is empty")
    if limit is None and not is_whole:
        raise InputError(f"{sound.name} is longer than {LONGEST_S:g} s and this model sets no limit of its own; answer it in windows, or give shorter clips")
    setting = "maximum_seconds" if seconds is None else "seconds"
    if limit is not None and not is_whole and spec.get("refuse_cut"):
        raise InputError(f"{sound.name} is longer than {setting} = {limit:g} s, and its text is of all of it; cut both, or raise {setting}")
    if limit is not None and not is_whole:
        tell_cut(sound.name, setting, float(limit), "windows (infer --window, transcribe) hear all of a sound")
    if spec.get("refuse_silence") and float(np.abs(samples).max()) < SILENT:
        raise InputError(f"{sound.name} is silent, and this model needs to hear something in it; give another clip")
    _warn(samples, sound.name)
    samples = resample(samples, sound.rate_hz, target)
    if limit is not None:
        samples = samples[: round(limit * target)]
    shortest = spec.get("minimum_seconds") or 0.0
    if seconds is None and len(samples) < round(shortest * target):
        raise InputError(f"{sound.name} lasts {len(samples) / target:.3f} s, and this model hears {shortest:g} s at least; give a longer clip")
    if seconds is not None:
        samples = np.pad(samples, (0, round(seconds * target) - len(samples)))
    return np.ascontiguousarray(samples)


def _beginning(sound: Sound, limit_s: float) -> tuple[np.ndarray, bool]:
    """The samples up to a limit and a second more, so that the later cut changes no kept sample; and whether that is all within the limit."""
    wanted, parts, found = math.ceil((limit_s + 1.0) * sound.rate_hz), [np.zeros(0, np.float32)], 0
    for block in sound.mono():
        parts.append(block[: wanted - found])
        found += len(parts[-1])
        if found >= wanted:
            break
    return np.concatenate(parts), found <= round(limit_s * sound.rate_hz)  # rounded as windows are, none of which is too long


def _warn(samples: np.ndarray, name: str) -> None:
    """Say what is suspicious about a sound and still has an answer."""
    peak = float(np.abs(samples).max())
    if peak < SILENT:
        _log.warning("%s is silent (its loudest sample is %.1g of full scale)", name, peak)
        return
    if peak < _FULL_SCALE:
        return
    flat = float(np.mean((np.abs(samples[1:]) >= _FULL_SCALE) & (samples[1:] == samples[:-1]))) if len(samples) > 1 else 0.0
    if peak > 2.0:
        _log.warning("%s has samples up to %.3g; full scale is 1, so it should be divided by its range", name, peak)
    elif flat > CLIPPED_SHARE:
        _log.warning("%s is clipped: %.1f %% of its samples stay at full scale", name, 100 * flat)
