"""Dilated depth-separable convolutions, the body of VITS' duration predictor (arXiv 2106.06103 appendix A)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt_speech.usat.network.norm import ChannelNorm


class Separable(nn.Module):
    """Residual layers of a depthwise convolution with dilation kernel^i and a pointwise one, each normed and followed by GELU.

    Shape:
        x [batch, width, tokens], mask [batch, 1, tokens] -> [batch, width, tokens].
    """

    def __init__(self, width: int, kernel: int, layers: int) -> None:
        super().__init__()
        steps = [kernel**index for index in range(layers)]
        self.depthwise = nn.ModuleList(nn.Conv1d(width, width, kernel, groups=width, dilation=step, padding=step * (kernel - 1) // 2) for step in steps)
        self.pointwise = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in steps)
        self.norms1 = nn.ModuleList(ChannelNorm(width) for _ in steps)
        self.norms2 = nn.ModuleList(ChannelNorm(width) for _ in steps)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for depthwise, norm1, pointwise, norm2 in zip(self.depthwise, self.norms1, self.pointwise, self.norms2, strict=True):
            inner = F.gelu(norm1(depthwise(x * mask)))
            x = x + F.gelu(norm2(pointwise(inner)))
        return x * mask
