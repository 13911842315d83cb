"""Frames of symbol scores to text: the best path, or a prefix beam search, which adds up all paths that spell one text.

Connectionist temporal classification (Graves et al. 2006): repeats join, blanks go. The search follows Hannun et al.,
arXiv 1408.2873, without a language model: a text ends in a blank or in a symbol, and both cases are counted apart, because
only a blank between them lets a symbol stand twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyadapt_runtime.errors import InputError

NEVER = -np.inf
LEAST = np.log(1e-4)  # symbols below this share of a frame start no new text: they cost time and change nothing


def read_frames(logits: np.ndarray, labels: Sequence[str], blank: int, separator: str | None, beams: int = 1) -> str:
    """The text of frames [frames, vocabulary].

    Args:
        logits: before softmax.
        labels: symbols; those beyond them are written as their number.
        blank: the symbol that stands for none.
        separator: the symbol between words; None where that is a space already.
        beams: texts that are followed side by side; 1 takes the best path.

    Raises:
        InputError: less than one beam.
    """
    symbols = best_path(logits, blank) if beams == 1 else prefix_beam(logits, blank, beams)
    text = "".join(labels[index] if index < len(labels) else f"<{index}>" for index in symbols)
    return (text.replace(separator, " ") if separator else text).strip()


def best_path(logits: np.ndarray, blank: int) -> list[int]:
    """The likeliest symbol of every frame, repeats joined and blanks dropped."""
    best = logits.argmax(axis=-1)  # (frames,)
    kept = best[np.concatenate([[True], best[1:] != best[:-1]])] if len(best) else best
    return [index for index in kept.tolist() if index != blank]


def prefix_beam(logits: np.ndarray, blank: int, beams: int) -> list[int]:
    """The likeliest text, over all its paths, among those that a beam of that width keeps.

    Raises:
        InputError: less than one beam.
    """
    if beams < 1:
        raise InputError(f"a beam search follows at least 1 text, found {beams}")
    running: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, NEVER)}  # text -> log-probability of ending in a blank, in a symbol
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    for scores in shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)):  # (vocabulary,)
        likely = [int(symbol) for symbol in np.flatnonzero(scores >= min(LEAST, scores.max())) if symbol != blank]
        coming: dict[tuple[int, ...], tuple[float, float]] = {}
        for text, (silent, spoken) in running.items():
            either = float(np.logaddexp(silent, spoken))
            last = text[-1] if text else blank
            _add(coming, text, either + float(scores[blank]), spoken + float(scores[last]) if text else NEVER)
            for symbol in likely:
                before = silent if symbol == last else either
                if before > NEVER:
                    _add(coming, (*text, symbol), NEVER, before + float(scores[symbol]))
        running = dict(sorted(coming.items(), key=lambda item: -np.logaddexp(*item[1]))[:beams])
    return list(max(running.items(), key=lambda item: np.logaddexp(*item[1]))[0])


def _add(texts: dict[tuple[int, ...], tuple[float, float]], text: tuple[int, ...], silent: float, spoken: float) -> None:
    held = texts.get(text, (NEVER, NEVER))
    texts[text] = (float(np.logaddexp(held[0], silent)), float(np.logaddexp(held[1], spoken)))
