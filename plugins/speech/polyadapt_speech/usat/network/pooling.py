"""Attentive statistics pooling: Okabe et al., arXiv 1803.10963, with the context of ECAPA-TDNN (2005.07143) section 3.1."""

from __future__ import annotations

import torch
from torch import nn

LEAST_VARIANCE = 1e-6


class AttentivePooling(nn.Module):
    """Weighted mean and deviation of the frames; weights differ by channel and see the recording's plain mean and deviation.

    Shape:
        x [batch, channels, frames], mask [batch, 1, frames] -> [batch, 2 channels].
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.hidden = nn.Conv1d(3 * channels, inner, 1)
        self.scores = nn.Conv1d(inner, channels, 1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        plain = _statistics(x, mask / mask.sum(-1, keepdim=True).clamp_min(1.0))  # (B, 2C)
        seen = torch.cat([x, plain[..., None].expand(-1, -1, x.shape[-1])], 1)  # (B, 3C, F)
        scores = self.scores(self.hidden(seen).tanh()).masked_fill(mask == 0, -1e4)  # (B, C, F)
        return _statistics(x, scores.softmax(-1))


def _statistics(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Mean and deviation under weights of sum 1: [batch, 2 channels]."""
    mean = (x * weights).sum(-1)  # (B, C)
    variance = ((x - mean[..., None]).square() * weights).sum(-1)
    return torch.cat([mean, variance.clamp_min(LEAST_VARIANCE).sqrt()], 1)
