"""The adapters inside a mixture: n bottlenecks as stacked matrices, gelu between, zero at the start."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class Experts(nn.Module):
    """n bottlenecks A_i(u) = gelu(u down_i + down_bias_i) up_i + up_bias_i.

    Args:
        count: n.
        n_in, n_out: widths of what is read and made.
        rank: inner width r of each.

    Shape:
        down [n, n_in, r], down_bias [n, r], up [n, r, n_out], up_bias [n, n_out].
    """

    def __init__(self, count: int, n_in: int, n_out: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.zeros(count, n_in, rank))
        self.down_bias = nn.Parameter(torch.zeros(count, rank))
        self.up = nn.Parameter(torch.zeros(count, rank, n_out))
        self.up_bias = nn.Parameter(torch.zeros(count, n_out))

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """Down uniform +-1 / sqrt(n_in), everything else zero: no adapter makes anything yet."""
        bound = 1 / math.sqrt(self.down.shape[1])
        nn.init.uniform_(self.down, -bound, bound, generator=generator)

    def of_slots(self, slots: torch.Tensor) -> torch.Tensor:
        """Each adapter on slots of its own: [batch, n, p, n_in] -> [batch, n, p, n_out]."""
        inner = F.gelu(slots @ self.down + self.down_bias[:, None])  # (B, n, p, r)
        return inner @ self.up + self.up_bias[:, None]

    def weighed(self, u: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Sum of all adapters on every token, weighed by `weights` [batch, tokens, n]: [batch, tokens, n_in] -> [batch, tokens, n_out]."""
        count, n_in, rank = self.down.shape
        inner = F.gelu(u @ self.down.transpose(0, 1).reshape(n_in, count * rank) + self.down_bias.reshape(-1))  # (B, T, n r)
        # Weighing what is narrow is the same as weighing what each adapter makes, and cheaper.
        inner = inner * weights.repeat_interleave(rank, dim=-1)
        return inner @ self.up.reshape(count * rank, -1) + weights @ self.up_bias


def rank_of(width: int, reduction: float) -> int:
    """Inner width d / RR, rounded, at least 1."""
    return max(1, round(width / reduction))
