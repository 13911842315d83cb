"""Beam search: the most likely whole texts are followed side by side, and the best finished one is the answer.

The length penalty is that of Wu et al., arXiv 1609.08144, in the plain form score / length ** penalty. Candidates,
finished texts and the end of the search follow what transformers' `generate(num_beams=…)` does, so that both say the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from polyadapt_runtime.decoding import Decoding
from polyadapt_runtime.errors import InputError
from polyadapt_runtime.sampling import ScoreRules


@dataclass(frozen=True)
class Beams:
    """A beam search.

    Attributes:
        count: texts that are followed side by side.
        length_penalty: exponent of the length that divides a text's log-probability; above 0 favours long texts.
        early_stopping: end as soon as `count` texts are finished; otherwise when none that runs looks better any more.
    """

    count: int
    length_penalty: float = 1.0
    early_stopping: bool = False

    def __post_init__(self) -> None:
        if self.count < 1 or not np.isfinite(self.length_penalty):
            raise InputError(f"a beam search follows at least 1 text with a finite length penalty, found {self.count} and {self.length_penalty}")


@dataclass(frozen=True)
class Text:
    """New tokens and their log-probability, or for a finished text that by its length."""

    ids: tuple[int, ...]
    score: float


def search(decoding: Decoding, prompt: Sequence[int], beams: Beams, rules: ScoreRules, stops: Collection[int], max_tokens: int) -> list[int]:
    """The best text's new tokens, without the one that ends it.

    Args:
        decoding: at its start.
        prompt: ids that stand before the text.
        beams: how to search.
        rules: what changes scores.
        stops: ids that end a text.
        max_tokens: the most new tokens.
    """
    running, finished = [Text((), 0.0)], list[Text]()
    scores = decoding.scores(np.array([prompt], np.int64))  # (1, vocabulary)
    for length in range(1, max_tokens + 1):
        ruled = [rules.apply(log_softmax(row), [*prompt, *text.ids], length == 1) + text.score for row, text in zip(scores, running, strict=True)]
        candidates = _best(np.stack(ruled), max(2, 1 + len(stops)) * beams.count)
        ends = [token in stops or length == max_tokens for _, token, _ in candidates]
        for (row, token, score), is_end in list(zip(candidates, ends, strict=True))[: beams.count]:
            if is_end:
                finished.append(Text((*running[row].ids, token), score / length**beams.length_penalty))
        finished = sorted(finished, key=lambda text: -text.score)[: beams.count]
        kept = [candidate for candidate, is_end in zip(candidates, ends, strict=True) if not is_end][: beams.count]
        if not kept or _is_over(finished, kept[0][2] / length**beams.length_penalty, beams):
            break
        running = [Text((*running[row].ids, token), score) for row, token, score in kept]
        decoding.take(np.array([row for row, _, _ in kept], np.int64))
        scores = decoding.scores(np.array([[token] for _, token, _ in kept], np.int64))  # (beams, vocabulary)
    best = list(finished[0].ids) if finished else []
    return best[:-1] if best and best[-1] in stops else best


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities of scores [vocabulary], in float64."""
    shifted = scores.astype(np.float64) - scores.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _best(scores: np.ndarray, count: int) -> list[tuple[int, int, float]]:
    """(row, token, score) of the best continuations of all rows, the best first."""
    flat = scores.reshape(-1)  # (rows * vocabulary,)
    places = np.argpartition(-flat, min(count, flat.size) - 1)[:count]
    places = places[np.argsort(-flat[places], kind="stable")]
    return [(int(place) // scores.shape[1], int(place) % scores.shape[1], float(flat[place])) for place in places if np.isfinite(flat[place])]


def _is_over(finished: Sequence[Text], best_running: float, beams: Beams) -> bool:
    """Whether nothing that runs can still change the answer, by the rule of the search."""
    return len(finished) == beams.count and (beams.early_stopping or best_running <= finished[-1].score)
