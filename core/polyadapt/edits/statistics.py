"""Running statistics of adapters, which forward passes in training mode move."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def keeping_statistics(forms: nn.Module) -> Iterator[None]:
    """Put all buffers of forms back behind the block: for passes that only look."""
    kept = [(value, value.clone()) for value in forms.buffers()]
    try:
        yield
    finally:
        for value, before in kept:
            value.copy_(before)
