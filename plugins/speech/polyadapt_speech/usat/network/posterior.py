"""Posterior encoder of VITS: a linear spectrogram to the latent frames z (arXiv 2106.06103 section 2.1.2)."""

from __future__ import annotations

import torch
from torch import nn

from polyadapt_speech.usat.network.config import WaveNetConfig
from polyadapt_speech.usat.network.wavenet import WaveNet

LAYERS = 16


class PosteriorEncoder(nn.Module):
    """Spectrogram to a normal distribution of z.

    Args:
        bins: of the spectrogram; half the FFT and one.
        latent: channels of z.
        config: of its WaveNet; 16 layers in the paper.

    Shape:
        spectrogram [batch, bins, frames], mask [batch, 1, frames], noise [batch, latent, frames] -> z, mean and log
        deviation, each [batch, latent, frames].
    """

    def __init__(self, bins: int, latent: int, config: WaveNetConfig | None = None) -> None:
        super().__init__()
        config = config or WaveNetConfig(latent, LAYERS)
        self.before = nn.Conv1d(bins, config.width, 1)
        self.wavenet = WaveNet(config)
        self.after = nn.Conv1d(config.width, 2 * latent, 1)

    def forward(self, spectrogram: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        inner = self.wavenet(self.before(spectrogram) * mask, mask)  # (B, W, F)
        mean, log_deviation = (self.after(inner) * mask).chunk(2, 1)  # (B, C, F) each
        return (mean + noise * log_deviation.exp()) * mask, mean, log_deviation
