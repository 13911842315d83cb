"""Sounds for models of pictures: a log-mel spectrogram as a picture, time to the right and pitch downwards.

Source: Gong et al., AST, arXiv 2104.01778, section 2.2, which starts its spectrogram transformer from one of pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from polyadapt.signature import Signature
from polyadapt.sources.fbank import KaldiFbank

if TYPE_CHECKING:
    from polyadapt.families.base import Family
    from polyadapt.signature import Task

BANDS = 128
MEAN, DEVIATION = -4.2677393, 4.5689974  # of AudioSet, as AST's feature extractor has them


class FbankPicture(nn.Module):
    """Waveform to a picture of its spectrogram, normalised as AST does it, the same in every channel.

    Args:
        frames: width of the picture; shorter clips get silence, longer ones are cut.
        channels: of the picture.

    Shape:
        audio float32 [batch, samples] at 16 kHz -> image [batch, channels, 128, frames].
    """

    output, frequency_axis = "image", 2

    def __init__(self, frames: int, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.fbank = KaldiFbank(BANDS, frames, MEAN, DEVIATION, output=self.output)

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        made = self.fbank(**inputs)
        picture = made[self.output].transpose(1, 2).unsqueeze(1)  # (batch, 1, bands, frames)
        return {**made, self.output: picture.expand(-1, self.channels, -1, -1)}  # (batch, channels, bands, frames)

    def signature(self, inner: Signature) -> Signature:
        """The family's signature with the waveform in place of the picture."""
        return self.fbank.signature(inner)

    def example(self, sizes: Mapping[str, int], generator: torch.Generator, family: Family, backbone: nn.Module, task: Task) -> dict[str, torch.Tensor]:
        """Seeded noise, longer for larger batches."""
        return self.fbank.example(sizes, generator, family, backbone, task)
