"""Transcripts of sounds of any length: consecutive windows as long as the model hears, one after another.

With times, a window begins where the last whole segment of the one before ended, as in Radford et al., "Robust Speech
Recognition via Large-Scale Weak Supervision", section 4.5; without, a word that lies across the end of a window is cut.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from polyadapt_runtime.audio import SILENT
from polyadapt_runtime.beam import Beams
from polyadapt_runtime.errors import InputError
from polyadapt_runtime.generate import WINDOW_TOKENS
from polyadapt_runtime.sound import Sound, open_sound
from polyadapt_runtime.text import TextReader
from polyadapt_runtime.timestamps import Segment, Times, parts
from polyadapt_runtime.windows import sound_spec

if TYPE_CHECKING:
    from polyadapt_runtime.bundle import Bundle
    from polyadapt_runtime.generate import GenerationOptions
    from polyadapt_runtime.slots import Artifact

WINDOW_S = 30.0  # where the model sets no limit
SHORTEST_S = 0.1  # of a rest that is worth a window
LEAST_TOKENS, TOKENS_A_SECOND = (
    24,
    50,
)  # ours: more than anyone says, also in scripts of three tokens a letter; so a model that repeats itself comes to an end

_log = logging.getLogger(__name__)


def transcribe(
    bundle: Bundle, raw: Any, artifact: Artifact | None = None, scale: float = 1.0, max_tokens: int | None = None, **options: Unpack[GenerationOptions]
) -> Iterator[Segment]:
    """What is said in a sound, segment by segment: a window each, or with times whatever the model sets between two of them.

    A model that writes times does so for sounds longer than a window unless `timestamps=False`: without them, words are lost
    where windows meet. Windows of silence are left out. `"".join(segment.text for segment in …)` is the whole text.

    Args:
        bundle: of task `transcription` or `ctc`.
        raw: what `open_sound` takes.
        artifact: as in a call of the bundle.
        scale: as in a call of the bundle.
        max_tokens: the most tokens of one window; None goes by its length.
        options: those of `Bundle.stream`, `language` and `timestamps` among them; with `ctc` none but `beams`.

    Raises:
        InputError: another task, an option that the model does not have, or a sound that cannot be read.
    """
    spec = sound_spec(bundle, ("transcription", "ctc"))
    if bundle.manifest.task == "ctc" and (strange := [name for name in options if name != "beams"]):
        raise InputError(f"a model that reads frame by frame has no option {strange[0]!r}; it knows one language and writes no times")
    window_s = next((float(spec[key]) for key in ("seconds", "maximum_seconds") if spec.get(key) is not None), WINDOW_S)
    sound = open_sound(raw)
    rate, reel, start, is_silent = sound.rate_hz, _Reel(sound), 0, True
    size = round(window_s * rate)
    reel.next(size)
    if "timestamps" not in options and not reel.is_at_end and bundle.manifest.generation.get("timestamps"):
        options["timestamps"] = True
    times = Times.of(bundle.manifest.generation) if options.get("timestamps") else None
    while len(samples := reel.next(size)):
        used = len(samples)
        if np.abs(samples).max() >= SILENT and (len(samples) >= SHORTEST_S * rate or not start):
            is_silent = False
            said, used = _window(bundle, (samples, rate), artifact, scale, max_tokens, options, times, reel.is_at_end)
            yield from (Segment(start / rate + segment.start_s, start / rate + segment.end_s, segment.text) for segment in said)
        reel.advance(used)
        start += used
    if not start:
        raise InputError(f"{sound.name} is empty")
    if is_silent:
        _log.warning("%s is silent; nothing was transcribed", sound.name)


def text_of(segments: Iterable[Segment]) -> str:
    """The segments as one text."""
    return "".join(segment.text for segment in segments).strip()


def _window(
    bundle: Bundle, clip: tuple[np.ndarray, int], artifact: Artifact | None, scale: float, max_tokens: int | None, options: GenerationOptions, times: Times | None, is_last: bool
) -> tuple[list[Segment], int]:
    """Segments of one window, and how many of its samples are done with."""
    samples, rate = clip
    length_s = len(samples) / rate
    tokens = min(WINDOW_TOKENS, LEAST_TOKENS + round(TOKENS_A_SECOND * length_s)) if max_tokens is None else max_tokens
    if bundle.manifest.task == "ctc":
        beams = options.get("beams")
        width = beams.count if isinstance(beams, Beams) else 1 if beams is None else beams
        return [Segment(0.0, length_s, f"{bundle(clip, artifact, scale, beams=width)} ")], len(samples)
    if times is None:
        return [Segment(0.0, length_s, bundle.generate(clip, tokens, artifact, scale, **options))], len(samples)
    reader = TextReader({"inputs": {}}, None if bundle.processor is None else bundle.processor.assets.get("tokenizer"))
    said = parts((token.id for token in bundle.stream(clip, tokens, artifact, scale, **options)), times)
    used = len(samples)
    if len(said) > 1 and said[-1].end_s is None and not is_last:
        said.pop()  # heard again, whole, in the next window
        used = min(used, round((said[-1].end_s or length_s) * rate)) or used
    return [Segment(min(part.start_s, length_s), min(part.end_s if part.end_s is not None else length_s, length_s), reader.decode(part.ids)) for part in said if part.ids], used


class _Reel:
    """A sound that is looked at from a place that moves on."""

    def __init__(self, sound: Sound) -> None:
        self._blocks = sound.mono()
        self._held = np.zeros(0, np.float32)
        self.is_at_end = False

    def next(self, size: int) -> np.ndarray:
        """The next samples; fewer at the end."""
        while len(self._held) <= size and not self.is_at_end:  # one sample more tells whether this is the end
            block = next(self._blocks, None)
            self.is_at_end = block is None
            self._held = self._held if block is None else np.concatenate([self._held, block])
        return self._held[:size]

    def advance(self, count: int) -> None:
        """Go on behind some samples."""
        self._held = self._held[count:]
