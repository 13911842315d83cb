"""Stochastic duration predictor of VITS: a flow from noise to log durations, given the text (arXiv 2106.06103 section 2.2.2).

The flow carries two channels, log duration and a helper. What it needs to be trained by likelihood stands in
`duration_posterior.py`: a voice that only speaks does not have it.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from polyadapt_speech.usat.network.config import DurationConfig
from polyadapt_speech.usat.network.separable import Separable
from polyadapt_speech.usat.network.speaker import speaker_projection
from polyadapt_speech.usat.network.spline import Spline, spline


class Affine(nn.Module):
    """A shift and a scale for each of the two channels.

    Shape:
        z [batch, 2, tokens], mask [batch, 1, tokens]; log-determinant [batch].
    """

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.log_scale = nn.Parameter(torch.zeros(2, 1)), nn.Parameter(torch.zeros(2, 1))

    def forward(self, z: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (self.shift + self.log_scale.exp() * z) * mask, (self.log_scale * mask).sum((1, 2))

    def inverse(self, z: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (z - self.shift) * (-self.log_scale).exp() * mask


class SplineCoupling(nn.Module):
    """The second channel goes through a spline whose knots follow from the first channel and the text.

    Shape:
        z [batch, 2, tokens], mask [batch, 1, tokens], condition [batch, width, tokens]; log-determinant [batch].
    """

    def __init__(self, config: DurationConfig) -> None:
        super().__init__()
        self.bins, self.bound = config.bins, config.bound
        self.before = nn.Conv1d(1, config.width, 1)
        self.separable = Separable(config.width, config.kernel, config.layers)
        self.after = nn.Conv1d(config.width, 3 * config.bins - 1, 1)
        assert self.after.bias is not None
        nn.init.zeros_(self.after.weight)
        nn.init.zeros_(self.after.bias)

    def forward(self, z: torch.Tensor, mask: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept, moved = z.chunk(2, 1)  # (B, 1, T) each
        moved, log_derivative = self._spline(kept, mask, condition)(moved)
        return torch.cat([kept, moved], 1) * mask, (log_derivative * mask).sum((1, 2))

    def inverse(self, z: torch.Tensor, mask: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        kept, moved = z.chunk(2, 1)  # (B, 1, T) each
        moved, _ = self._spline(kept, mask, condition).inverse(moved)
        return torch.cat([kept, moved], 1) * mask

    def _spline(self, kept: torch.Tensor, mask: torch.Tensor, condition: torch.Tensor) -> Spline:
        inner = self.separable(self.before(kept) + condition, mask)  # (B, W, T)
        raw = (self.after(inner) * mask).transpose(1, 2).unsqueeze(1)  # (B, 1, T, 3K - 1)
        widths, heights, slopes = raw.split([self.bins, self.bins, self.bins - 1], -1)
        calm = math.sqrt(self.before.out_channels)
        return spline(widths / calm, heights / calm, slopes, self.bound)


class DurationPredictor(nn.Module):
    """Noise to log durations, token by token.

    Args:
        config: its sizes.
        width: of the text encoder's hidden states.
        speaker_size: of speaker vectors; 0 for none.
    """

    def __init__(self, config: DurationConfig, width: int, speaker_size: int = 0) -> None:
        super().__init__()
        self.before = nn.Conv1d(width, config.width, 1)
        self.speaker = speaker_projection(speaker_size, config.width)
        self.separable = Separable(config.width, config.kernel, config.layers)
        self.after = nn.Conv1d(config.width, config.width, 1)
        self.affine = Affine()
        # The first of `config.flows` moves the helper channel alone, whose value at the end is not used: only training runs it.
        self.flows = nn.ModuleList(SplineCoupling(config) for _ in range(config.flows - 1))

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor, speaker: torch.Tensor | None = None) -> torch.Tensor:
        """Log durations in frames.

        Args:
            hidden: of the text encoder.
            mask: 1 for real tokens.
            noise: normal values times the wanted noise scale; zeros give the most usual durations.
            speaker: the speaker vector.

        Shape:
            hidden [batch, width, tokens], mask [batch, 1, tokens], noise [batch, 2, tokens], speaker [batch, size, 1]
            -> [batch, tokens].
        """
        condition, z = self.condition(hidden, mask, speaker), noise
        for flow in reversed(self.flows):
            assert isinstance(flow, SplineCoupling)
            z = flow.inverse(z.flip(1), mask, condition)
        return self.affine.inverse(z.flip(1), mask)[:, 0]  # (B, T)

    def condition(self, hidden: torch.Tensor, mask: torch.Tensor, speaker: torch.Tensor | None = None) -> torch.Tensor:
        """What the flows are told of text and speaker: [batch, predictor's width, tokens]."""
        x = self.before(hidden)
        if self.speaker is not None and speaker is not None:
            x = x + self.speaker(speaker)
        result: torch.Tensor = self.after(self.separable(x, mask)) * mask
        return result
