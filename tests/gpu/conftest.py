"""Tests that need an NVIDIA GPU: `make test-gpu`. Everywhere else they are skipped, with the reason."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """Without TF32 a GPU computes in the same precision as a processor, and the same tolerances hold."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU is seen by torch; on a machine that has one: make test-gpu")
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
