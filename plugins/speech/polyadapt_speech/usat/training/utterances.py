"""Clips as the flow sees them: the posterior's frames, and what the frozen text encoder says of the texts. All computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from polyadapt_speech.usat.network.voice import Voice
from polyadapt_speech.usat.training.segments import Segments

LENGTHS_STEP = 32


@dataclass(frozen=True)
class Batch:
    """Utterances, filled up with zeros.

    Shape:
        mean and log_deviation of the posterior [batch, latent, frames], mask [batch, 1, frames]; hidden [batch, width, tokens],
        prior_mean and prior_log_deviation [batch, latent, tokens], token_mask [batch, 1, tokens].
    """

    mean: torch.Tensor
    log_deviation: torch.Tensor
    mask: torch.Tensor
    hidden: torch.Tensor
    prior_mean: torch.Tensor
    prior_log_deviation: torch.Tensor
    token_mask: torch.Tensor


Row = tuple[Segments, int, torch.Tensor, int]
"""Where a clip lies, its place there, its ids (none where there is no text), and its speaker's number."""


class Utterances:
    """Clips of many speakers, some with texts.

    Args:
        voice: whose posterior and text encoder are finished.
        rows: the clips.
    """

    @torch.no_grad()
    def __init__(self, voice: Voice, rows: Sequence[Row]) -> None:
        assert voice.posterior is not None and voice.spectrogram is not None
        self.posterior: list[torch.Tensor] = []  # (frames, 2 latent) each
        self.prior: dict[int, torch.Tensor] = {}  # (tokens, width + 2 latent) each
        self.speakers = [speaker for _, _, _, speaker in rows]
        self.latent, self.width = voice.config.latent, voice.config.width
        for place, (segments, row, ids, _) in enumerate(rows):
            seen = voice.spectrogram.of_surrounded(segments.whole(row))
            _, mean, log_deviation = voice.posterior(seen, torch.ones_like(seen[:, :1]), seen.new_zeros(1))
            self.posterior.append(torch.cat([mean, log_deviation], 1)[0].T)
            if 0 < len(ids) <= seen.shape[2]:  # a token lasts one frame at least
                tokens = ids[None].to(seen.device)
                told = voice.text_encoder(tokens, torch.ones_like(tokens, dtype=torch.float32))
                self.prior[place] = torch.cat(told, 1)[0].T
        self.by_speaker: dict[int, list[int]] = {}
        for row, speaker in enumerate(self.speakers):
            self.by_speaker.setdefault(speaker, []).append(row)

    def groups(self) -> list[list[int]]:
        """Utterances with texts, by speaker; of speakers with one clip there is no reference, so they are left out."""
        found = ([row for row in rows if row in self.prior] for rows in self.by_speaker.values() if len(rows) > 1)
        return [rows for rows in found if rows]

    def batch(self, rows: Sequence[int]) -> Batch:
        """Utterances with texts."""
        posterior, mask = _stacked([self.posterior[row] for row in rows])
        prior, token_mask = _stacked([self.prior[row] for row in rows])
        mean, log_deviation = posterior.chunk(2, 1)
        hidden, prior_mean, prior_log_deviation = torch.split(prior, [self.width, self.latent, self.latent], 1)
        return Batch(mean, log_deviation, mask, hidden, prior_mean, prior_log_deviation, token_mask)

    def others(self, rows: Sequence[int]) -> list[int]:
        """For each row another one of the same speaker, drawn from torch's default generator of the CPU."""
        found = []
        for row, draw in zip(rows, torch.rand(len(rows)).tolist(), strict=True):
            among = [other for other in self.by_speaker[self.speakers[row]] if other != row]
            found.append(among[int(draw * len(among))])
        return found

    def cuts(self, rows: Sequence[int], frames: int, count: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Parts of the posterior's mean of each row, with their masks.

        One part of a row that is shorter is all of it. Several overlap by half at least and are not the same: of a short row
        they are two thirds, so that there is room to move.

        Shape:
            [batch, latent, frames or fewer] and [batch, 1, frames or fewer] each.
        """
        made = []
        lengths = [len(self.posterior[row]) for row in rows]
        sizes = [min(frames, length if count == 1 else max(1, 2 * length // 3)) for length in lengths]
        begins = [_within(length - size) for length, size in zip(lengths, sizes, strict=True)]
        for _ in range(count):
            pieces = [self.posterior[row][begin : begin + size, : self.latent] for row, begin, size in zip(rows, begins, sizes, strict=True)]
            made.append(_stacked(pieces))
            begins = [_beside(begin, size // 2, length - size) for begin, size, length in zip(begins, sizes, lengths, strict=True)]
        return made


def _within(room: int) -> int:
    """A place from 0 to `room`, drawn from torch's default generator of the CPU."""
    return int(torch.randint(room + 1, ()))


def _beside(place: int, reach: int, room: int) -> int:
    """Another place from 0 to `room`, at most `reach` away; the same only where there is no other."""
    first, last = max(0, place - reach), min(room, place + reach)
    drawn = first + _within(max(0, last - first - 1))
    return drawn if drawn < place else min(drawn + 1, last)


def _stacked(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """[length, channels] each -> [batch, channels, longest or a few more], and a mask [batch, 1, the same].

    Lengths are multiples of `LENGTHS_STEP`: a processor compiles its convolutions for every length that it meets, which would
    take as long as the step itself.
    """
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    padded = pad_sequence(rows, batch_first=True)
    stacked = F.pad(padded, (0, 0, 0, -padded.shape[1] % LENGTHS_STEP)).transpose(1, 2)
    return stacked, (torch.arange(stacked.shape[2], device=lengths.device) < lengths[:, None]).float()[:, None]
