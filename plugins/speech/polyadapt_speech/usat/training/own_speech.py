"""What the start voice says: sentences with the latent frames that its decoder got, the pairs that a posterior encoder is distilled from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from polyadapt.errors import UserError
from polyadapt.model import Model
from polyadapt.sources.common import seeded
from polyadapt_speech.usat.network.voice import Manner, Voice
from polyadapt_speech.usat.training.corpus import evenly
from polyadapt_speech.usat.training.segments import Segments

BATCH = 16
LONGEST_FRAMES = 1000
LEAST_FRAMES = 40  # of a sentence, for a window's worth of sound


@dataclass(frozen=True)
class OwnSpeech:
    """Clips of one voice, with their ids and z of every frame.

    Shape:
        z [latent, frames of all clips], in the order of the clips.
    """

    segments: Segments
    ids: tuple[torch.Tensor, ...]
    z: torch.Tensor

    def latent(self, first: torch.Tensor, frames: int) -> torch.Tensor:
        """z of windows that begin at these frames: [batch, latent, frames]."""
        index = (first[:, None] + torch.arange(frames, device=first.device)).clamp(max=self.z.shape[1] - 1)  # (B, frames)
        return self.z[:, index].transpose(0, 1)


def own_speech(start: Model, voice: Voice, sentences: Sequence[torch.Tensor], count: int, seed: int, device: torch.device) -> OwnSpeech:
    """Some of many sentences, short and long ones alike, by the start voice.

    Args:
        start: the start voice, which knows the noise that it was tuned by.
        voice: the same with parts that hear, nothing of it moved yet.
        sentences: ids of each.
        count: how many are said at most.
        seed: of the noise.
        device: where it runs.
    """
    details = start.task.details
    with seeded(seed):
        return speak(voice, evenly(sentences, count), float(str(details["noise_scale"])), float(str(details["duration_noise_scale"])), device)


@torch.no_grad()
def speak(voice: Voice, sentences: Sequence[torch.Tensor], noise_scale: float, duration_noise_scale: float, device: torch.device) -> OwnSpeech:
    """Let a voice say sentences, with noise from torch's default generator of the CPU.

    Args:
        voice: that listens, with its decoder as it started.
        sentences: ids of each.
        noise_scale: what the voice was tuned by.
        duration_noise_scale: the same for durations.
        device: where it runs.

    Raises:
        UserError: no sentence is long enough.
    """
    assert voice.spectrogram is not None
    hop, clips, latents, kept = voice.config.decoder.hop, list[torch.Tensor](), list[torch.Tensor](), list[torch.Tensor]()
    ordered = sorted(sentences, key=len)
    for start in range(0, len(ordered), BATCH):
        rows = ordered[start : start + BATCH]
        ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        noise = torch.randn(len(rows), voice.config.latent, LONGEST_FRAMES) * noise_scale
        manner = Manner(noise.to(device), (torch.randn(len(rows), 2, ids.shape[1]) * duration_noise_scale).to(device))
        z, frame_mask, lengths, _ = voice.latent(ids.to(device), mask.to(device), manner)
        sounds = voice.decoder(z, frame_mask)
        for row, length in enumerate(lengths.tolist()):
            if length >= LEAST_FRAMES:
                clips.append(sounds[row, : length * hop])
                latents.append(z[row, :, :length])
                kept.append(rows[row])
    if not clips:
        raise UserError(f"none of the corpus' {len(sentences)} sentences takes the voice {LEAST_FRAMES} frames; give the corpus longer ones")
    return OwnSpeech(Segments(clips, voice.spectrogram, device), tuple(kept), torch.cat(latents, 1))
