"""Tokens to frames: every token is repeated as often as it lasts. Shape operations only, so that graphs take any length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Frames:
    """Which token every frame belongs to.

    Shape:
        token int64 [batch, frames], mask float [batch, 1, frames], lengths int64 [batch] in frames.
    """

    token: torch.Tensor
    mask: torch.Tensor
    lengths: torch.Tensor

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Values of tokens [batch, channels, tokens] as values of frames [batch, channels, frames], 0 behind a row's end."""
        return values.gather(2, self.token[:, None, :].expand(-1, values.shape[1], -1)) * self.mask


def frames_of(durations: torch.Tensor, count: int | None = None) -> Frames:
    """Frames for durations of tokens, int64 [batch, tokens]; a row lasts one frame at least.

    Args:
        durations: whole frames of every token.
        count: frames that rows are filled up to; those of the longest row when None.
    """
    ends = durations.cumsum(-1)  # (B, T)
    lengths = ends[:, -1].clamp_min(1)  # (B,)
    longest: Any = lengths.max().item() if count is None else count
    torch._check(longest >= 1)  # type: ignore[no-untyped-call]  # for the tracer, to which the number of frames is unknown
    places = torch.arange(longest, device=durations.device)  # (F,)
    token = (places[None, :, None] >= ends[:, None, :-1]).sum(-1)  # (B, F)
    mask = (places[None, :] < lengths[:, None]).to(torch.float32).unsqueeze(1)  # (B, 1, F)
    return Frames(token, mask, lengths)
