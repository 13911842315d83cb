"""How a speaker vector enters a network: a projection that starts at 0, so that a voice without speakers stays what it is."""

from __future__ import annotations

from torch import nn


def speaker_projection(size: int, width: int) -> nn.Conv1d | None:
    """A projection of speaker vectors [batch, size, 1] to [batch, width, 1], all zeros; None for a size of 0."""
    if size == 0:
        return None
    made = nn.Conv1d(size, width, 1)
    nn.init.zeros_(made.weight)
    assert made.bias is not None
    nn.init.zeros_(made.bias)
    return made
