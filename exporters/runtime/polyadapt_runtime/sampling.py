"""How the next token is chosen from scores: what may not be said, penalties, temperature, top-k, top-p, and the draw.

Repetition penalty: Keskar et al., CTRL, arXiv 1909.05858, section 4.1. Top-p: Holtzman et al., arXiv 1904.09751.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from polyadapt_runtime.errors import GraphError, InputError
from polyadapt_runtime.postprocess import softmax


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: penalty, then temperature, then top-k, then top-p, then a draw.

    Attributes:
        temperature: divides the scores; 0 takes the most likely token.
        top_k: how many of the best tokens stay; None for all.
        top_p: the smallest set of best tokens with at least this probability stays.
        seed: of the draws; None draws differently each time.
        repetition_penalty: makes tokens less likely that stand in the prompt or the text already; 1 for none.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf") or not 0.0 < self.top_p <= 1.0 or (self.top_k is not None and self.top_k < 1):
            raise InputError(f"temperature is 0 or above, top_p above 0 and at most 1, top_k at least 1; found {self.temperature}, {self.top_p}, {self.top_k}")
        if self.seed is not None and (isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0):
            raise InputError(f"seed is a whole number, 0 or above, found {self.seed!r}")
        if not 0.0 < self.repetition_penalty < float("inf"):
            raise InputError(f"repetition_penalty is above 0 (1 for none), found {self.repetition_penalty}")

    def chances(self, scores: np.ndarray) -> np.ndarray:
        """Probability of every token that the draw uses; scores [vocabulary] -> float64 [vocabulary]."""
        scaled = scores.astype(np.float64) / self.temperature
        if self.top_k is not None and self.top_k < len(scaled):
            scaled[scaled < np.partition(scaled, -self.top_k)[-self.top_k]] = -np.inf
        kept = softmax(scaled)  # (vocabulary,)
        if self.top_p < 1.0:
            order = np.argsort(-kept, kind="stable")
            count = int(np.searchsorted(np.cumsum(kept[order]), self.top_p)) + 1  # the token that reaches top_p stays
            kept[order[count:]] = 0.0
        return np.asarray(kept / kept.sum())

    def pick(self, scores: np.ndarray, generator: np.random.Generator) -> int:
        """The next token from scores [vocabulary].

        Raises:
            GraphError: a score is not a number.
        """
        if np.isnan(scores).any():
            raise GraphError("the graph gives scores that are not numbers; look at the input and, with an artifact, at its scale")
        if self.temperature == 0.0:
            return int(scores.argmax())
        return int(generator.choice(len(scores), p=self.chances(scores)))


class ScoreRules(Protocol):
    """What changes scores before a token is chosen."""

    def apply(self, scores: np.ndarray, seen: Sequence[int], is_first: bool) -> np.ndarray:
        """Scores [vocabulary] of the next token, as a new array; `seen` holds the prompt and what was said."""


@dataclass(frozen=True)
class Rules:
    """What changes scores before a token is chosen: ids that are never said, ids that do not begin a text, the penalty."""

    never: np.ndarray
    first: np.ndarray
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, settings: Mapping[str, Any], sampling: Sampling) -> Rules:
        """The rules of a manifest's `generation` and of one call."""
        never, first = (np.array(settings.get(key) or (), np.int64) for key in ("suppress_ids", "begin_suppress_ids"))
        return cls(never, first, sampling.repetition_penalty)

    def apply(self, scores: np.ndarray, seen: Sequence[int], is_first: bool) -> np.ndarray:
        """Scores [vocabulary] under the rules, as a new array.

        Args:
            scores: of one text, or their log-softmax.
            seen: ids of its prompt and of what was said; for an encoder-decoder those of the decoder.
            is_first: whether the token will be the first of the text.
        """
        ruled = scores.copy()
        if self.repetition_penalty != 1.0:
            known = np.unique(np.asarray(seen, np.int64))
            ruled[known] = np.where(ruled[known] < 0, ruled[known] * self.repetition_penalty, ruled[known] / self.repetition_penalty)
        ruled[self.never] = -np.inf
        if is_first:
            ruled[self.first] = -np.inf
        return ruled
