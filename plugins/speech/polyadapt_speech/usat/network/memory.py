"""Memory between latent frames and decoder (USAT, arXiv 2404.18094): every frame becomes a mixture of learned vectors.

    m = softmax(z M^T / sqrt(C)) M            z' = z + g (m - z)

The paper feeds m alone. Here a gate g, 0 at the start, lets a finished voice's decoder hear what it is used to; 1 is the paper's.
"""

from __future__ import annotations

import math

import torch
from torch import nn


class Memory(nn.Module):
    """Attention over a codebook, with a gate.

    Args:
        slots: vectors of the codebook (the paper's number is not known; ours: 256).
        channels: of z.

    Shape:
        z [batch, channels, frames] -> the same.
    """

    def __init__(self, slots: int, channels: int) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(slots, channels))
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        mixed = (self.weights(z) @ self.codebook).transpose(1, 2)  # (B, C, F)
        return z + self.gate * (mixed - z)

    def weights(self, z: torch.Tensor) -> torch.Tensor:
        """How much of each vector a frame takes: [batch, frames, slots], rows of sum 1."""
        scores = z.transpose(1, 2) @ self.codebook.T / math.sqrt(self.codebook.shape[1])  # (B, F, slots)
        return scores.softmax(-1)
