"""Layer norm over the channels of a sequence that has them first."""

from __future__ import annotations

import torch
from torch import nn


class ChannelNorm(nn.LayerNorm):
    """Layer norm of every frame.

    Shape:
        [batch, channels, frames] -> the same.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Not a view: what follows goes through values in the order in which convolutions answer their gradients.
        return super().forward(x.transpose(1, 2)).transpose(1, 2).contiguous()
