"""The two discriminators of USAT (arXiv 2404.18094). They serve training alone and are dropped afterwards."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt_speech.usat.network.pooling import AttentivePooling
from polyadapt_speech.usat.network.res2 import Res2Block


class TimbreDiscriminator(nn.Module):
    """D_t: does a sequence in the prior's space still hold a timbre? Res2Net layers and attentive statistics pooling.

    Shape:
        l [batch, latent, frames], mask [batch, 1, frames] -> logits [batch], high for the text's own prior.
    """

    def __init__(self, latent: int, channels: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.before = nn.Conv1d(latent, channels, 5, padding=2)
        self.blocks = nn.ModuleList(Res2Block(channels, 3, 2 + layer) for layer in range(layers))
        self.pooling = AttentivePooling(channels, channels // 2)
        self.after = nn.Linear(2 * channels, 1)

    def forward(self, sequence: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.before(sequence * mask)) * mask
        for block in self.blocks:
            x = block(x, mask)
        result: torch.Tensor = self.after(self.pooling(x, mask)).squeeze(-1)
        return result


class LeakageDiscriminator(nn.Module):
    """D_p: do two speaker vectors come from one utterance, so that they may share its words?

    Shape:
        left and right [batch, size] -> logits [batch], high for one utterance.
    """

    def __init__(self, size: int, inner: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2 * size, inner), nn.LeakyReLU(0.2), nn.Linear(inner, inner), nn.LeakyReLU(0.2), nn.Linear(inner, 1))

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        both = torch.cat([left * right, (left - right).abs()], -1)  # (B, 2 size), the same for both orders
        result: torch.Tensor = self.layers(both).squeeze(-1)
        return result
