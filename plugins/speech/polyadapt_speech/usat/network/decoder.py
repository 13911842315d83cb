"""HiFi-GAN generator: frames to a waveform by transposed convolutions and residual blocks of many fields of view.

Paper: Kong et al., arXiv 2010.05646, section 2.2 and appendix A.1.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt_speech.usat.network.config import DecoderConfig

SLOPE = 0.1  # of the leaky ReLUs; torch's default 0.01 before the last convolution, as in the authors' code


class SingleBlock(nn.Module):
    """The paper's ResBlock2: one convolution a layer.

    Shape:
        x [batch, width, frames], mask [batch, 1, frames] -> x's shape.
    """

    def __init__(self, width: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.first = nn.ModuleList(_same(width, kernel, step) for step in dilations)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for first in self.first:
            x = x + first(F.leaky_relu(x, SLOPE) * mask)
        return x


class PairedBlock(nn.Module):
    """The paper's ResBlock1: a dilated and a plain convolution a layer. Same shapes as `SingleBlock`."""

    def __init__(self, width: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.first = nn.ModuleList(_same(width, kernel, step) for step in dilations)
        self.second = nn.ModuleList(_same(width, kernel, 1) for _ in dilations)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for first, second in zip(self.first, self.second, strict=True):
            inner = first(F.leaky_relu(x, SLOPE) * mask)
            x = x + second(F.leaky_relu(inner, SLOPE) * mask)
        return x


class Decoder(nn.Module):
    """Latent frames to samples in -1..1.

    Biases fill what is behind a row's end, so it is silenced before every convolution: a row sounds as it does alone.

    Shape:
        z [batch, latent, frames], mask [batch, 1, frames] -> [batch, frames * hop].
    """

    def __init__(self, config: DecoderConfig, latent: int) -> None:
        super().__init__()
        widths = [config.width // 2**index for index in range(len(config.rates) + 1)]
        block = PairedBlock if config.paired else SingleBlock
        self.rates = config.rates
        self.before = nn.Conv1d(latent, config.width, 7, padding=3)
        sizes = zip(widths[:-1], widths[1:], config.rates, config.kernels, strict=True)
        self.ups = nn.ModuleList(nn.ConvTranspose1d(n_in, n_out, kernel, rate, padding=(kernel - rate) // 2) for n_in, n_out, rate, kernel in sizes)
        fields = list(zip(config.residual_kernels, config.dilations, strict=True))
        self.residual = nn.ModuleList(block(width, kernel, dilations) for width in widths[1:] for kernel, dilations in fields)
        self.after = nn.Conv1d(widths[-1], 1, 7, padding=3, bias=False)

    def forward(self, z: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.before(z * mask)
        count = len(self.residual) // len(self.ups)
        for stage, (up, rate) in enumerate(zip(self.ups, self.rates, strict=True)):
            x = up(F.leaky_relu(x, SLOPE) * mask)  # (B, C / 2, F * rate)
            mask = mask.repeat_interleave(rate, -1)
            x = sum(block(x, mask) for block in self.residual[stage * count : (stage + 1) * count]) / count
        return self.after(F.leaky_relu(x) * mask).tanh().squeeze(1)  # type: ignore[no-any-return]  # (B, S)


def _same(width: int, kernel: int, dilation: int) -> nn.Conv1d:
    """A convolution that keeps the length."""
    return nn.Conv1d(width, width, kernel, dilation=dilation, padding=dilation * (kernel - 1) // 2)
