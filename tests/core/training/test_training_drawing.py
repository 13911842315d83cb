"""Which rows make a batch: the same ones whatever the number of processes, and of like length where that is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from polyadapt.training.drawing import SPAN, grouped_by_length, in_pieces, order, shuffled
from polyadapt.training.processes import Processes


def test_order_follows_from_seed_and_epoch_alone() -> None:
    assert order(50, 3, 2) == order(50, 3, 2)
    assert sorted(order(50, 3, 2)) == list(range(50))
    assert len({tuple(order(50, seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_rows_of_like_length_share_a_batch() -> None:
    """Rows of a span and sizes of its batches stay; what is filled up becomes little; short batches are not always first."""
    size, batch_size = 5 * SPAN * 4 + 3, 4
    lengths = np.random.default_rng(0).integers(1, 1000, size).tolist()
    plain, grouped = shuffled(size, batch_size), grouped_by_length(shuffled(size, batch_size), lengths)
    before, after = plain(0, 1), grouped(0, 1)
    for start in range(0, len(before), SPAN):
        one, other = before[start : start + SPAN], after[start : start + SPAN]
        assert sorted(row for batch in one for row in batch) == sorted(row for batch in other for row in batch)
        assert sorted(map(len, one)) == sorted(map(len, other))

    def filled(batches: Any) -> float:
        return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches) / sum(lengths)

    assert filled(before) > 1.5 and filled(after) < 1.05
    firsts = [max(lengths[row] for row in batch) for batch in after[:SPAN]]
    assert firsts != sorted(firsts)
    assert after == grouped(0, 1) != grouped(0, 2)


@pytest.mark.parametrize("size", [0, 1, 5, 6, 7])
def test_shares_cover_a_batch_once(size: int) -> None:
    rows = list(range(100, 100 + size))
    shares = [Processes(torch.device("cpu"), rank, 3).share(rows) for rank in range(3)]
    assert [row for share in shares for row in share] == rows
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    pieces = in_pieces(rows, 3)
    assert [row for piece in pieces for row in piece] == rows and all(pieces)
