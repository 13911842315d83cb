"""Texts from frames: the best path and the prefix beam search, against an enumeration of all paths."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from polyadapt_runtime.ctc import best_path, prefix_beam, read_frames
from polyadapt_runtime.errors import InputError


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != 0)


def by_enumeration(logits: np.ndarray) -> tuple[int, ...]:
    """The text whose paths have the largest probability together."""
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    total: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(logits.shape[1]), repeat=logits.shape[0]):
        total[collapsed(path)] = total.get(collapsed(path), 0.0) + float(np.prod([chances[frame, symbol] for frame, symbol in enumerate(path)]))
    return max(total, key=lambda text: total[text])


@pytest.mark.parametrize("seed", range(20))
def test_a_wide_beam_finds_the_likeliest_text(seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(5, 4), scale=1.5)
    assert tuple(prefix_beam(logits, 0, 1000)) == by_enumeration(logits)


def test_the_sum_over_paths_can_beat_the_best_path() -> None:
    """Blank is the likeliest symbol of both frames (0.4 and 0.4), but 'a' has three paths: 0.3 * 0.3 + 2 * 0.3 * 0.4 = 0.33 against 0.16."""
    logits = np.log(np.array([[0.4, 0.3, 0.3], [0.4, 0.3, 0.3]]))
    assert best_path(logits, 0) == []
    assert prefix_beam(logits, 0, 8) == [1]
    assert read_frames(logits, ["-", "a", "b"], 0, None) == "" and read_frames(logits, ["-", "a", "b"], 0, None, beams=8) == "a"


@pytest.mark.parametrize("reader", [best_path, lambda logits, blank: prefix_beam(logits, blank, 4)])
def test_a_symbol_stands_twice_only_with_a_blank_between(reader: object) -> None:
    def frames(path: list[int]) -> np.ndarray:
        return np.where(np.arange(3) == np.array(path)[:, None], 0.0, -30.0)

    assert callable(reader)
    assert reader(frames([1, 1, 2]), 0) == [1, 2]
    assert reader(frames([1, 0, 1]), 0) == [1, 1]
    assert reader(frames([0, 2, 2, 0]), 0) == [2]
    assert reader(np.zeros((0, 3)), 0) == []


def test_the_blank_need_not_stand_first() -> None:
    logits = np.where(np.arange(3) == np.array([0, 2, 0])[:, None], 0.0, -30.0)
    assert best_path(logits, 2) == prefix_beam(logits, 2, 4) == [0, 0]


def test_a_beam_has_a_width() -> None:
    with pytest.raises(InputError, match="at least 1 text, found 0"):
        read_frames(np.zeros((2, 3)), [], 0, None, beams=0)
