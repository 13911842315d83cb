"""Times in transcripts: the tokens `<|0.00|>`, `<|0.02|>` … that models of Whisper's kind write around what they heard.

`generation` of a manifest says what is needed: `languages` {code: id} and `timestamps` {"first_id", "off_id", "step_s"}.
The rules are those of the paper's decoding: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision",
section 4.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyadapt_runtime.errors import InputError, nearest
from polyadapt_runtime.sampling import ScoreRules

FIRST_AT_MOST_S = 1.0  # the first words begin within the first second


@dataclass(frozen=True)
class Times:
    """How a model writes times.

    Attributes:
        first_id: of 0.00 s; larger ids are later times.
        off_id: the token that asks for a transcript without times.
        step_s: between two ids.
    """

    first_id: int
    off_id: int
    step_s: float

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Times:
        """The times of a manifest's `generation`.

        Raises:
            InputError: the model writes none.
        """
        table = settings.get("timestamps")
        if not isinstance(table, Mapping) or not {"first_id", "off_id", "step_s"} <= set(table):
            raise InputError("this model writes no times; leave timestamps out")
        return cls(int(table["first_id"]), int(table["off_id"]), float(table["step_s"]))

    def seconds(self, token: int) -> float:
        """The time that a token stands for."""
        return (token - self.first_id) * self.step_s


@dataclass(frozen=True)
class Segment:
    """Some words with the times between which they were said."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True)
class Said:
    """Token ids between two times; `end_s` is None where the closing time was not written."""

    start_s: float
    end_s: float | None
    ids: tuple[int, ...]


def start_ids(settings: Mapping[str, Any], language: str | None, timestamps: bool) -> list[int]:
    """What stands before a transcript: the manifest's `start_ids`, in another language, with times.

    Raises:
        InputError: a language that the model does not know, or times that it does not write.
    """
    ids = [int(token) for token in settings.get("start_ids") or [0]]
    if language is not None:
        known = settings.get("languages") or {}
        if not known:
            raise InputError(f"this model has no choice of languages, asked was {language!r}; leave language out")
        if language not in known:
            raise InputError(f"this model knows no language {language!r}{nearest(language, known)}")
        ids = [int(known[language]) if token in known.values() else token for token in ids]
    if timestamps:
        off = Times.of(settings).off_id
        ids = [token for token in ids if token != off]
    return ids


@dataclass(frozen=True)
class TimedRules:
    """Scores under which times come in pairs, never run back, and stand wherever a time is likelier than any word.

    Attributes:
        rules: what holds besides.
        times: how the model writes them.
        prompt: tokens that stand before the text.
        ends: ids that end a text.
    """

    rules: ScoreRules
    times: Times
    prompt: int
    ends: frozenset[int]

    def apply(self, scores: np.ndarray, seen: Sequence[int], is_first: bool) -> np.ndarray:
        """Scores [vocabulary] of the next token, as a new array."""
        first, written = self.times.first_id, list(seen[self.prompt :])
        ruled = self.rules.apply(scores, seen, is_first)
        ruled[self.times.off_id] = -np.inf
        is_time = [token >= first for token in written]
        if is_first:
            ruled[:first] = -np.inf
            ruled[first + round(FIRST_AT_MOST_S / self.times.step_s) + 1 :] = -np.inf
            return ruled
        after_time = bool(is_time) and is_time[-1]
        is_closed = after_time and len(is_time) > 1 and not is_time[-2]
        if is_closed:  # the next segment begins, or the text ends
            ends = {token: ruled[token] for token in self.ends}
            ruled[:first] = -np.inf
            for token, score in ends.items():
                ruled[token] = score
        elif after_time:  # a segment has begun
            ruled[first:] = -np.inf
        if spoken := [token for token, timed in zip(written, is_time, strict=True) if timed]:
            ruled[first : spoken[-1] + (0 if is_closed else 1)] = -np.inf
        if _log_sum(ruled[first:]) > ruled[:first].max():
            ruled[:first] = -np.inf
        return ruled


def parts(ids: Iterable[int], times: Times) -> list[Said]:
    """What stands between times. What nothing closes comes last, without an end: text, or none where only its beginning was written."""
    found: list[Said] = []
    start, words, is_open = 0.0, list[int](), False
    for token in ids:
        if token < times.first_id:
            words.append(token)
            continue
        is_open = not words
        if words:
            found.append(Said(start, times.seconds(token), tuple(words)))
            words = []
        start = times.seconds(token)
    return [*found, Said(start, None, tuple(words))] if words or is_open else found


def _log_sum(scores: np.ndarray) -> float:
    """log(sum(exp(scores))); minus infinity where nothing is allowed."""
    highest = float(scores.max()) if scores.size else -np.inf
    return highest if np.isneginf(highest) else highest + float(np.log(np.exp(scores.astype(np.float64) - highest).sum()))
