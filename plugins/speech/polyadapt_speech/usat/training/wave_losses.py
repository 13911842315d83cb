"""How far a sound is from another: mel spectra, spectra at several resolutions, and what discriminators say."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt.sources.logmel import mel_filters
from polyadapt_speech.usat.network.precision import in_float32
from polyadapt_speech.usat.network.wave_discriminators import RESOLUTIONS, WaveDiscriminators, magnitudes
from polyadapt_speech.usat.spectrogram import Spectrogram

BANDS = 80
_FLOOR = 1e-5


class MelDistance(nn.Module):
    """L1 distance of log mel spectra, as VITS takes it (arXiv 2106.06103 section 2.1.2).

    Shape:
        made and true [batch, samples] -> [].
    """

    filters: torch.Tensor

    def __init__(self, hop: int, rate_hz: int) -> None:
        super().__init__()
        self.spectrogram = Spectrogram(hop)
        bands = min(BANDS, self.spectrogram.window // 8)
        self.register_buffer("filters", torch.from_numpy(mel_filters(bands, rate_hz, self.spectrogram.window)), persistent=False)

    def forward(self, made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        return F.l1_loss(self.levels(made), self.levels(true))

    def levels(self, sound: torch.Tensor) -> torch.Tensor:
        """Log mel spectrum [batch, bands, frames]."""
        with in_float32(sound.device):
            spectrum: torch.Tensor = self.spectrogram(sound.float())
            return (self.filters @ spectrum).clamp_min(_FLOOR).log()


def spectral_distance(made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Multi-resolution STFT loss: spectral convergence and log magnitudes (arXiv 1910.11480 section 2.2)."""
    total = made.new_zeros(())
    for window, hop in RESOLUTIONS:
        ours, theirs = magnitudes(made, window, hop), magnitudes(true, window, hop)
        total = total + (ours - theirs).norm() / theirs.norm().clamp_min(_FLOOR) + F.l1_loss(ours.clamp_min(_FLOOR).log(), theirs.clamp_min(_FLOOR).log())
    return total / len(RESOLUTIONS)


def adversarial_losses(discriminators: WaveDiscriminators, made: torch.Tensor, true: torch.Tensor) -> dict[str, torch.Tensor]:
    """Least squares and feature matching (arXiv 2010.05646 equations 1 to 5), of which each trains one side alone.

    Returns:
        `discriminator` for the discriminators; `generator` and `features` for what made the sound.
    """
    real, fake = discriminators(true), discriminators(made.detach())
    frozen = {name: parameter.detach() for name, parameter in discriminators.named_parameters()}
    seen: list[list[torch.Tensor]] = torch.func.functional_call(discriminators, frozen, (made,))
    losses = dict.fromkeys(("discriminator", "generator", "features"), made.new_zeros(()))
    for right, wrong, ours in zip(real, fake, seen, strict=True):
        losses["discriminator"] = losses["discriminator"] + (right[-1] - 1).square().mean() + wrong[-1].square().mean()
        losses["generator"] = losses["generator"] + (ours[-1] - 1).square().mean()
        matched = [F.l1_loss(mine, theirs.detach()) for mine, theirs in zip(ours[:-1], right[:-1], strict=True)]
        losses["features"] = losses["features"] + torch.stack(matched).sum()
    return losses
