"""Which rows make a batch: it follows from (seed, epoch) alone, so a run that goes on takes what it would have taken."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

SPAN = 16  # ours: batches among which rows of like length are put together; more would draw them less freely

Batches = Callable[[int, int], Sequence[Sequence[int]]]
"""(seed, epoch) -> the rows of every batch of an epoch, equally many in each epoch."""


def order(size: int, seed: int, epoch: int) -> list[int]:
    """The order of examples in one epoch. The number of processes does not enter."""
    return [int(row) for row in np.random.default_rng([seed, epoch]).permutation(size)]


def in_batches(rows: Sequence[int], batch_size: int) -> Iterator[Sequence[int]]:
    """Consecutive pieces; the last may be shorter."""
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]


def in_pieces(rows: Sequence[int], count: int) -> list[Sequence[int]]:
    """At most `count` pieces of nearly equal size, none empty."""
    if count == 1:
        return [rows] if rows else []
    whole, rest = divmod(len(rows), count)
    edges = [index * whole + min(index, rest) for index in range(count + 1)]
    return [rows[start:stop] for start, stop in itertools.pairwise(edges) if stop > start]


def shuffled(size: int, batch_size: int) -> Batches:
    """All examples in an order of each epoch's own."""
    return lambda seed, epoch: list(in_batches(order(size, seed, epoch), batch_size))


def grouped_by_length(batches: Batches, lengths: Sequence[int]) -> Batches:
    """Rows exchanged among every `SPAN` consecutive batches, so that a batch holds rows of like length and little is filled up.

    Rows of an epoch and sizes of its batches stay. Batches of a span come in an order drawn anew, short ones are not always first.

    Args:
        batches: how rows are drawn.
        lengths: of every row, in any unit.
    """

    def alike(seed: int, epoch: int) -> list[Sequence[int]]:
        given, draws, made = batches(seed, epoch), np.random.default_rng([seed, epoch, 1]), list[Sequence[int]]()
        for start in range(0, len(given), SPAN):
            span = given[start : start + SPAN]
            rows = iter(sorted((row for batch in span for row in batch), key=lengths.__getitem__))
            pieces = [list(itertools.islice(rows, len(batch))) for batch in span]
            made += [pieces[place] for place in draws.permutation(len(pieces))]
        return made

    return alike
