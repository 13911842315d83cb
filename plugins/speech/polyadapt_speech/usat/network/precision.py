"""What half precision would spoil stays in float32 under autocast: spectra, the likelihood of durations, and densities that are summed over channels."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch


def in_float32(where: torch.device) -> AbstractContextManager[Any]:
    """A block without autocast; who enters it brings its values to float32."""
    return torch.autocast(where.type, enabled=False)
