"""Residual block of many scales with squeeze and excitation, the body of ECAPA-TDNN (arXiv 2005.07143 section 3.2).

Channels are split into groups (Res2Net, 1904.01169): each group is convolved after the result of the one before was added
to it, so that later groups see further. Layer norm stands where the paper has batch norm: a voice of one speaker keeps no
running statistics of many.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt_speech.usat.network.norm import ChannelNorm


class Res2Block(nn.Module):
    """x + excited(pointwise(groups(pointwise(x)))).

    Args:
        channels: divided by `groups`.
        kernel: of the groups' convolutions.
        dilation: the same.
        groups: the first of which is passed on as it is.

    Shape:
        x [batch, channels, frames], mask [batch, 1, frames] -> x's shape.
    """

    def __init__(self, channels: int, kernel: int, dilation: int, groups: int = 4) -> None:
        super().__init__()
        part, padding = channels // groups, dilation * (kernel - 1) // 2
        self.groups = groups
        self.before, self.norm1 = nn.Conv1d(channels, channels, 1), ChannelNorm(channels)
        self.convs = nn.ModuleList(nn.Conv1d(part, part, kernel, dilation=dilation, padding=padding) for _ in range(groups - 1))
        self.norms = nn.ModuleList(ChannelNorm(part) for _ in range(groups - 1))
        self.after, self.norm2 = nn.Conv1d(channels, channels, 1), ChannelNorm(channels)
        self.squeeze, self.excite = nn.Linear(channels, part), nn.Linear(part, channels)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        first, *others = F.relu(self.norm1(self.before(x))).chunk(self.groups, 1)  # (B, C / groups, F) each
        done, last = [first], torch.zeros_like(first)
        for part, conv, norm in zip(others, self.convs, self.norms, strict=True):
            last = F.relu(norm(conv((part + last) * mask)))
            done.append(last)
        inner = F.relu(self.norm2(self.after(torch.cat(done, 1)))) * mask  # (B, C, F)
        mean = inner.sum(-1) / mask.sum(-1).clamp_min(1.0)  # (B, C)
        excited = inner * self.excite(F.relu(self.squeeze(mean))).sigmoid()[..., None]
        result: torch.Tensor = (x + excited) * mask
        return result
