"""Normalising flow of VITS: affine couplings without a scale, so that the volume is kept (arXiv 2106.06103 section 2.2.1)."""

from __future__ import annotations

import torch
from torch import nn

from polyadapt_speech.usat.network.config import VoiceConfig, WaveNetConfig
from polyadapt_speech.usat.network.wavenet import WaveNet


class Coupling(nn.Module):
    """Half of the channels is moved by a function of the other half.

    Shape:
        z [batch, channels, frames], mask [batch, 1, frames], speaker [batch, size, 1] or None -> z's shape.
    """

    def __init__(self, channels: int, config: WaveNetConfig, speaker_size: int) -> None:
        super().__init__()
        self.before = nn.Conv1d(channels // 2, config.width, 1)
        self.wavenet = WaveNet(config, speaker_size)
        self.after = nn.Conv1d(config.width, channels // 2, 1)
        assert self.after.bias is not None
        nn.init.zeros_(self.after.weight)
        nn.init.zeros_(self.after.bias)

    def forward(self, z: torch.Tensor, mask: torch.Tensor, speaker: torch.Tensor | None = None) -> torch.Tensor:
        kept, moved = z.chunk(2, 1)  # (B, C/2, F) each
        return torch.cat([kept, (moved + self._shift(kept, mask, speaker)) * mask], 1)

    def inverse(self, z: torch.Tensor, mask: torch.Tensor, speaker: torch.Tensor | None = None) -> torch.Tensor:
        kept, moved = z.chunk(2, 1)  # (B, C/2, F) each
        return torch.cat([kept, (moved - self._shift(kept, mask, speaker)) * mask], 1)

    def _shift(self, kept: torch.Tensor, mask: torch.Tensor, speaker: torch.Tensor | None) -> torch.Tensor:
        inner = self.wavenet(self.before(kept) * mask, mask, speaker)  # (B, W, F)
        result: torch.Tensor = self.after(inner) * mask  # (B, C/2, F)
        return result


class Flow(nn.Module):
    """Couplings in a row, with the halves exchanged after each. Forward takes a recording's z to the text's prior, inverse back."""

    def __init__(self, config: VoiceConfig) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(Coupling(config.latent, config.flow, config.speaker_size) for _ in range(config.couplings))

    def forward(self, z: torch.Tensor, mask: torch.Tensor, speaker: torch.Tensor | None = None) -> torch.Tensor:
        for coupling in self.couplings:
            z = coupling(z, mask, speaker).flip(1)
        return z

    def inverse(self, z: torch.Tensor, mask: torch.Tensor, speaker: torch.Tensor | None = None) -> torch.Tensor:
        for coupling in reversed(self.couplings):
            assert isinstance(coupling, Coupling)
            z = coupling.inverse(z.flip(1), mask, speaker)
        return z
