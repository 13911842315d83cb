"""Where an adapter A stands at a span f: what it reads, and what becomes of its output.

b is the span's input, s a number that an artifact brings (`skip`; 0 where the place does not name it):

    parallel       f(b) + A(b)                      before         f(b'),         b' = (1 + s) b + A(b)
    parallel+skip  f(b) + A(b) + s b                before+carry   f(b') + A(b)
    sequential     f + A(f)
    sequential+skip  (1 + s) f + A(f)

An adapter that gives zero, with s = 0, is no adapter at every place: so an empty slot leaves the base as it is, also where
a trained artifact takes the place of what the base computes (s = -1).

Source: the grid of Cappellazzo et al., arXiv 2312.03694, section 4.
"""

from __future__ import annotations

import torch

from polyadapt.edits.kinds.kind import along

PARALLEL = "parallel"
SEQUENTIAL = "sequential"
PLACES = (PARALLEL, f"{PARALLEL}+skip", SEQUENTIAL, f"{SEQUENTIAL}+skip", "before", "before+carry")
SKIP = "skip"


def is_before(place: str) -> bool:
    """Whether what the adapter makes replaces the span's input."""
    return place.startswith("before")


def reads_output(place: str) -> bool:
    """Whether the adapter reads the span's output."""
    return place.startswith(SEQUENTIAL)


def has_skip(place: str) -> bool:
    """Whether an edit at this place brings the number s."""
    return is_before(place) or place.endswith(f"+{SKIP}")


def entered(x: torch.Tensor, made: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """The span's input with an adapter before the span.

    Args:
        x: the input [batch, …, in].
        made: what the adapter made of it, of the same shape.
        skip: s [1], or one for each row [batch, 1].
    """
    return x * (1.0 + along(skip, x, -1)) + made


def placed(place: str, u: torch.Tensor, made: torch.Tensor, h: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
    """The span's output with an adapter at a place.

    Args:
        place: one of `PLACES`.
        u: what the adapter read [batch, …, width].
        made: what it made of it [batch, …, out].
        h: the span's output [batch, …, out].
        skip: s [1], or one for each row [batch, 1]; None where the place has none.
    """
    if is_before(place):
        return h + made if place.endswith("+carry") else h
    if skip is None:
        return h + made
    if reads_output(place):
        return h * (1.0 + along(skip, h, -1)) + made
    return h + made + u * along(skip, u, -1)
