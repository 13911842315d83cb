"""Linear spectrogram of VITS (arXiv 2106.06103 section 3): windows of four hops, each frame centred on its own hop.

A windowed DFT is a convolution with cosine and sine waves, so it becomes part of an exported graph; the result equals
`torch.stft` on the reflected sound. Magnitudes are sqrt(|.|^2 + 1e-6), as in the authors' code.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt.sources.logmel import dft_basis

HOPS_A_WINDOW = 4
_FLOOR = 1e-6


class Spectrogram(nn.Module):
    """Samples to magnitudes.

    Args:
        hop: samples of a frame; 256 in VITS, with windows of 1024.

    Shape:
        samples [batch, samples], more than `edge` of them -> [batch, bins, samples // hop].
    """

    basis: torch.Tensor

    def __init__(self, hop: int) -> None:
        super().__init__()
        self.hop, self.window = hop, HOPS_A_WINDOW * hop
        self.edge = (self.window - hop) // 2  # samples that are reflected at each end
        # Not a weight: it is the same for every voice of this hop.
        self.register_buffer("basis", torch.from_numpy(dft_basis(self.window)), persistent=False)  # (2 bins, 1, window)

    @staticmethod
    def bins(hop: int) -> int:
        """Frequencies that are told apart."""
        return HOPS_A_WINDOW * hop // 2 + 1

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        # `narrow` states the length; a slice of a sound of unknown length has an unknown one, and cannot be traced.
        left = samples.narrow(1, 1, self.edge).flip(1)  # (B, edge)
        right = samples.narrow(1, samples.shape[1] - self.edge - 1, self.edge).flip(1)  # (B, edge)
        return self.of_surrounded(torch.cat([left, samples, right], 1))

    def of_surrounded(self, samples: torch.Tensor) -> torch.Tensor:
        """The same of samples that have `edge` further ones at each end: [batch, samples + 2 edge] -> [batch, bins, samples // hop]."""
        power = F.conv1d(samples.unsqueeze(1), self.basis, stride=self.hop).square()  # (B, 2 bins, F)
        real, imaginary = power.chunk(2, 1)  # (B, bins, F) each
        return (real + imaginary + _FLOOR).sqrt()

    def whole(self, lengths: torch.Tensor, frames: int) -> torch.Tensor:
        """Frames whose window ends within a row's sound, as a mask [batch, 1, frames]; one at least."""
        counts = (torch.div(lengths - self.window + self.edge, self.hop, rounding_mode="floor") + 1).clamp_min(1)  # (B,)
        places = torch.arange(frames, device=lengths.device)
        return (places[None, :] < counts[:, None]).to(self.basis.dtype).unsqueeze(1)  # (B, 1, F)
