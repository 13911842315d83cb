"""Speaker encoder of USAT: latent frames to a vector, by a small ECAPA-TDNN (arXiv 2005.07143).

It reads z and not a spectrogram (2404.18094): a reference clip goes through the posterior encoder first.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt_speech.usat.network.norm import ChannelNorm
from polyadapt_speech.usat.network.pooling import AttentivePooling
from polyadapt_speech.usat.network.res2 import Res2Block

DILATIONS = (2, 3, 4)


class SpeakerEncoder(nn.Module):
    """z to speaker vectors of length 1.

    Args:
        latent: channels of z.
        size: of a speaker vector.
        channels: inside (ECAPA's smallest has 512; ours: 128).

    Shape:
        z [batch, latent, frames], mask [batch, 1, frames] -> [batch, size].
    """

    def __init__(self, latent: int, size: int, channels: int = 128) -> None:
        super().__init__()
        self.before, self.norm = nn.Conv1d(latent, channels, 5, padding=2), ChannelNorm(channels)
        self.blocks = nn.ModuleList(Res2Block(channels, 3, dilation) for dilation in DILATIONS)
        self.joined = nn.Conv1d(len(DILATIONS) * channels, 2 * channels, 1)
        self.pooling = AttentivePooling(2 * channels, channels // 2)
        self.after = nn.Linear(4 * channels, size)

    def forward(self, z: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x, outputs = F.relu(self.norm(self.before(z * mask))) * mask, []
        for block in self.blocks:
            x = block(x, mask)
            outputs.append(x)
        seen = F.relu(self.joined(torch.cat(outputs, 1)))  # (B, 2C, F)
        return F.normalize(self.after(self.pooling(seen, mask)), dim=-1)
