"""Discriminators of waveforms: HiFi-GAN's multi-period ones (arXiv 2010.05646 section 2.3) and spectrograms at several resolutions (2106.07889).

Both are lighter than the papers'. They serve training alone and are dropped afterwards.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt_speech.usat.network.precision import in_float32

SLOPE = 0.1
PERIODS = (2, 3, 5, 7)
RESOLUTIONS = ((512, 128), (1024, 256), (2048, 512))  # FFT and hop in samples


class WaveDiscriminators(nn.Module):
    """All of them.

    Args:
        channels: of the first layer; it doubles up to eightfold (ours: 16).

    Shape:
        sound [batch, samples] -> for each discriminator the activations of every layer, the scores last.
    """

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.periods = nn.ModuleList(PeriodDiscriminator(period, channels) for period in PERIODS)
        self.resolutions = nn.ModuleList(ResolutionDiscriminator(window, hop, channels) for window, hop in RESOLUTIONS)

    def forward(self, sound: torch.Tensor) -> list[list[torch.Tensor]]:
        return [part(sound) for part in (*self.periods, *self.resolutions)]


class PeriodDiscriminator(nn.Module):
    """Looks at every p-th sample: the sound as a picture of p columns."""

    def __init__(self, period: int, channels: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, channels, 2 * channels, 4 * channels, 8 * channels]
        self.layers = nn.ModuleList(nn.Conv2d(n_in, n_out, (5, 1), (3, 1), (2, 0)) for n_in, n_out in pairwise(widths))
        self.after = nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0))

    def forward(self, sound: torch.Tensor) -> list[torch.Tensor]:
        padded = F.pad(sound, (0, -sound.shape[1] % self.period))
        return _through(padded.reshape(len(sound), 1, -1, self.period), self.layers, self.after)


class ResolutionDiscriminator(nn.Module):
    """Looks at magnitudes of one window size."""

    def __init__(self, window: int, hop: int, channels: int) -> None:
        super().__init__()
        self.window, self.hop = window, hop
        widths = [1, channels, 2 * channels, 2 * channels]
        self.layers = nn.ModuleList(nn.Conv2d(n_in, n_out, (5, 3), (2, 1), (2, 1)) for n_in, n_out in pairwise(widths))
        self.after = nn.Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, sound: torch.Tensor) -> list[torch.Tensor]:
        return _through(magnitudes(sound, self.window, self.hop).unsqueeze(1), self.layers, self.after)


def magnitudes(sound: torch.Tensor, window: int, hop: int) -> torch.Tensor:
    """Short-time spectrum under a Hann window: [batch, samples] -> [batch, window // 2 + 1, frames]."""
    with in_float32(sound.device):
        shape = torch.hann_window(window, device=sound.device)
        spectrum = torch.stft(sound.float(), window, hop, window=shape, pad_mode="constant", return_complex=True)
        return (spectrum.real.square() + spectrum.imag.square() + 1e-7).sqrt()


def _through(x: torch.Tensor, layers: nn.ModuleList, after: nn.Module) -> list[torch.Tensor]:
    seen = []
    for layer in layers:
        x = F.leaky_relu(layer(x), SLOPE)
        seen.append(x)
    return [*seen, after(x)]
