"""What trains the duration predictor: a bound of the likelihood of whole durations (arXiv 2106.06103 section 2.2.2).

Durations d are whole, so u in [0, 1) is drawn and d - u is modelled (variational dequantisation); a flow of one
dimension would be poor, so v is drawn beside it (data augmentation). Both come from a posterior flow q(u, v | d, text).
A voice that only speaks needs none of this.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt_speech.usat.network.config import DurationConfig
from polyadapt_speech.usat.network.durations import Affine, DurationPredictor, SplineCoupling
from polyadapt_speech.usat.network.separable import Separable

LEAST_DURATION = 1e-5  # below it the logarithm of d - u is cut


class DurationPosterior(nn.Module):
    """q(u, v | d, text), and the first spline of the predictor's flow, which only the likelihood needs."""

    def __init__(self, config: DurationConfig) -> None:
        super().__init__()
        self.before = nn.Conv1d(1, config.width, 1)
        self.separable = Separable(config.width, config.kernel, config.layers)
        self.after = nn.Conv1d(config.width, config.width, 1)
        self.affine = Affine()
        self.flows = nn.ModuleList(SplineCoupling(config) for _ in range(config.flows))
        self.first = SplineCoupling(config)

    def forward(
        self, predictor: DurationPredictor, hidden: torch.Tensor, mask: torch.Tensor, durations: torch.Tensor, noise: torch.Tensor, speaker: torch.Tensor | None = None
    ) -> torch.Tensor:
        """An upper bound of -log p(durations | text), summed over tokens.

        Args:
            predictor: whose flow is trained.
            hidden: of the text encoder, which this loss does not train.
            mask: 1 for real tokens.
            durations: frames of every token.
            noise: standard normal.
            speaker: the speaker vector, not trained by this loss either.

        Shape:
            hidden [batch, width, tokens], mask [batch, 1, tokens], durations [batch, tokens], noise [batch, 2, tokens]
            -> [batch].
        """
        counted = durations[:, None, :].to(hidden.dtype) * mask  # (B, 1, T)
        condition = predictor.condition(hidden.detach(), mask, None if speaker is None else speaker.detach())
        given = self.after(self.separable(self.before(counted), mask)) * mask  # (B, W, T)
        noise = noise * mask
        drawn, volume = self._through(noise, mask, condition + given, self.affine, list(self.flows))
        raw_u, v = drawn.chunk(2, 1)  # (B, 1, T) each
        volume = volume + ((F.logsigmoid(raw_u) + F.logsigmoid(-raw_u)) * mask).sum((1, 2))
        log_q = _log_normal(noise, mask) - volume
        log_left = (counted - raw_u.sigmoid()).clamp_min(LEAST_DURATION).log() * mask
        z, volume = self._through(torch.cat([log_left, v], 1), mask, condition, predictor.affine, [self.first, *predictor.flows])
        log_p = _log_normal(z, mask) + volume - log_left.sum((1, 2))
        return log_q - log_p

    def _through(self, z: torch.Tensor, mask: torch.Tensor, condition: torch.Tensor, affine: Affine, flows: list[nn.Module]) -> tuple[torch.Tensor, torch.Tensor]:
        """An affine flow and couplings with the channels exchanged after each; also the log-determinant [batch]."""
        z, volume = affine(z, mask)
        for flow in flows:
            z, more = flow(z, mask, condition)
            z, volume = z.flip(1), volume + more
        return z, volume


def _log_normal(z: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Log density under the standard normal of what the mask keeps: [batch]."""
    return (-0.5 * (math.log(2 * math.pi) + z.square()) * mask).sum((1, 2))
