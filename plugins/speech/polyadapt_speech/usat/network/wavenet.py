"""WaveNet residual stack: gated dilated convolutions with skip connections (arXiv 1609.03499, as in WaveGlow and VITS)."""

from __future__ import annotations

import torch
from torch import nn

from polyadapt_speech.usat.network.config import WaveNetConfig
from polyadapt_speech.usat.network.speaker import speaker_projection


class WaveNet(nn.Module):
    """Frames to frames, optionally conditioned on a speaker vector.

    Shape:
        x [batch, width, frames], mask [batch, 1, frames], speaker [batch, size, 1] or None -> [batch, width, frames].
    """

    def __init__(self, config: WaveNetConfig, speaker_size: int = 0) -> None:
        super().__init__()
        width, kernel, last = config.width, config.kernel, config.layers - 1
        steps = [config.dilation_rate**index for index in range(config.layers)]
        self.dilated = nn.ModuleList(nn.Conv1d(width, 2 * width, kernel, dilation=step, padding=step * (kernel - 1) // 2) for step in steps)
        self.skip = nn.ModuleList(nn.Conv1d(width, width if index == last else 2 * width, 1) for index in range(config.layers))
        self.speaker = speaker_projection(speaker_size, 2 * width * config.layers)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, speaker: torch.Tensor | None = None) -> torch.Tensor:
        conditions = self._conditions(speaker)
        total = torch.zeros_like(x)
        for index, (dilated, skip) in enumerate(zip(self.dilated, self.skip, strict=True)):
            inner = dilated(x)  # (B, 2W, F)
            if conditions is not None:
                inner = inner + conditions[index]
            filters, gates = inner.chunk(2, 1)
            out = skip(filters.tanh() * gates.sigmoid())  # (B, 2W or W, F)
            if index < len(self.skip) - 1:
                residual, out = out.chunk(2, 1)
                x = (x + residual) * mask
            total = total + out
        return total * mask

    def _conditions(self, speaker: torch.Tensor | None) -> tuple[torch.Tensor, ...] | None:
        """What each layer adds for the speaker: [batch, 2 width, 1] each."""
        if self.speaker is None or speaker is None:
            return None
        return self.speaker(speaker).chunk(len(self.skip), 1)  # type: ignore[no-any-return]
