"""Self-attention with relative positions: Shaw et al., arXiv 1803.02155, as in VITS' text encoder.

With a window w, keys and values at a distance of at most w get a learned vector by their distance, shared by the heads:

    score(i, j) = q_i (k_j + a_{j-i}) / sqrt(d)        out_i = sum_j weight(i, j) (v_j + b_{j-i})

Both sums over distances are gathers from a band of 2w + 1 columns, so a text may be shorter than the window.
"""

from __future__ import annotations

import math

import torch
from torch import nn

MASKED = -1e4  # finite, so that a text without any token stays finite too; its exponential is 0 in float32


class RelativeAttention(nn.Module):
    """Multi-head attention over a text.

    Args:
        width: of the input and the output.
        heads: divides `width`.
        window: w above.

    Shape:
        x [batch, tokens, width], mask [batch, tokens] -> [batch, tokens, width].
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window, size = heads, window, width // heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.k_offsets, self.v_offsets = (nn.Parameter(torch.randn(2 * window + 1, size) * size**-0.5) for _ in range(2))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.q, self.k, self.v))  # (B, H, T, d)
        q = q / math.sqrt(q.shape[-1])
        places = torch.arange(x.shape[1], device=x.device)  # (T,)
        scores = q @ k.transpose(-2, -1) + self._by_distance(q, places)  # (B, H, T, T)
        weights = scores.masked_fill(mask[:, None, None, :] == 0, MASKED).softmax(-1)
        mixed = weights @ v + self._band(weights, places) @ self.v_offsets  # (B, H, T, d)
        result: torch.Tensor = self.o(mixed.transpose(1, 2).flatten(2))  # (B, T, D)
        return result

    def _by_distance(self, q: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """q_i a_{j-i} for all pairs, 0 beyond the window: [batch, heads, tokens, tokens]."""
        distance = places[None, :] - places[:, None]  # (T, T)
        near = distance.abs() <= self.window
        column = (distance + self.window).clamp(0, 2 * self.window)
        products = q @ self.k_offsets.T  # (B, H, T, 2w + 1)
        return products.gather(-1, column.expand(*q.shape[:2], -1, -1)) * near

    def _band(self, weights: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Weights by distance, 0 outside the text: [batch, heads, tokens, 2w + 1]."""
        key = places[:, None] + torch.arange(-self.window, self.window + 1, device=places.device)  # (T, 2w + 1)
        inside = (key >= 0) & (key <= places[-1])
        nearest = key.clamp_min(0).minimum(places[-1])
        return weights.gather(-1, nearest.expand(*weights.shape[:2], -1, -1)) * inside
