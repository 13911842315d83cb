"""Clips on one device, cut into frames, of which windows are drawn.

Each clip keeps `edge` reflected samples at both ends, so that a window's spectrogram is that of the whole clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from polyadapt_speech.usat.spectrogram import Spectrogram


@dataclass(frozen=True)
class Windows:
    """Parts of clips.

    Shape:
        samples [batch, frames * hop + 2 edge], mask [batch, 1, frames], first int64 [batch]: the frame where each begins, counted over all clips.
    """

    samples: torch.Tensor
    mask: torch.Tensor
    first: torch.Tensor


class Segments:
    """Clips in one row.

    Args:
        clips: each longer than a frame and `edge`.
        spectrogram: whose hop and edge count.
        device: where everything lies.
    """

    def __init__(self, clips: Sequence[torch.Tensor], spectrogram: Spectrogram, device: torch.device) -> None:
        hop, edge = spectrogram.hop, spectrogram.edge
        self.hop, self.edge = hop, edge
        frames = [len(clip) // hop for clip in clips]
        pieces = [torch.nn.functional.pad(clip[None, None, : count * hop].float(), (edge, edge), mode="reflect")[0, 0] for clip, count in zip(clips, frames, strict=True)]
        self.samples = torch.cat(pieces).to(device)
        self.frames = torch.tensor(frames, device=device)  # (clips,)
        sizes = torch.tensor([len(piece) for piece in pieces], device=device)
        self.starts = sizes.cumsum(0) - sizes  # (clips,) in samples
        self.first = self.frames.cumsum(0) - self.frames  # (clips,) in frames, over all clips

    def __len__(self) -> int:
        return len(self.frames)

    def windows(self, rows: torch.Tensor, frames: int) -> Windows:
        """A window of each row, drawn from torch's default generator of the CPU; where a clip is shorter, its end is masked."""
        room = (self.frames[rows] - frames).clamp_min(0)  # (B,)
        begin = (torch.rand(len(rows)).to(room.device) * (room + 1)).long().clamp(max=room)
        places = torch.arange(frames * self.hop + 2 * self.edge, device=room.device)
        index = (self.starts[rows] + begin * self.hop)[:, None] + places
        mask = (torch.arange(frames, device=room.device) < self.frames[rows, None]).float()[:, None]  # (B, 1, frames)
        return Windows(self.samples[index.clamp(max=len(self.samples) - 1)], mask, self.first[rows] + begin)

    def whole(self, row: int) -> torch.Tensor:
        """All samples of a clip with its edges: [1, frames * hop + 2 edge]."""
        start = int(self.starts[row])
        return self.samples[None, start : start + int(self.frames[row]) * self.hop + 2 * self.edge]

    def sound(self, windows: Windows, begin: torch.Tensor, frames: int) -> torch.Tensor:
        """Samples of a part of each window: [batch, frames * hop]."""
        places = torch.arange(frames * self.hop, device=begin.device)
        return windows.samples.gather(1, self.edge + (begin * self.hop)[:, None] + places)


def parts(values: torch.Tensor, begin: torch.Tensor, frames: int) -> torch.Tensor:
    """A part of each row: values [batch, channels, F], begin [batch] -> [batch, channels, frames]."""
    index = begin[:, None] + torch.arange(frames, device=begin.device)
    return values.gather(2, index[:, None].expand(-1, values.shape[1], -1))


def drawn(mask: torch.Tensor, frames: int) -> torch.Tensor:
    """Where a part of so many frames begins within what a mask keeps: int64 [batch]."""
    room = (mask.sum((1, 2)).long() - frames).clamp_min(0)  # (B,)
    return (torch.rand(len(room)).to(room.device) * (room + 1)).long().clamp(max=room)
