"""Stage A: a posterior encoder for a voice that has none, distilled from what the voice says.

The voice speaks sentences with noise; of each frame z is known and the spectrogram is heard. Loss: the likelihood of z, and
the mel distance of what the decoder makes of the encoder's answer. Nothing but the posterior encoder moves.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import nn

from polyadapt_speech.usat.network.precision import in_float32
from polyadapt_speech.usat.network.voice import Voice
from polyadapt_speech.usat.training.own_speech import OwnSpeech
from polyadapt_speech.usat.training.segments import drawn, parts
from polyadapt_speech.usat.training.wave_losses import MelDistance

LEAST_LOG_DEVIATION = -5.0  # below it a single frame could outweigh all others


class DistilPosterior:
    """The stage.

    Args:
        voice: that listens.
        speech: what it said.
        batch_size: windows a step.
        frames, sounded: of a window, and of the part of it that is made sound again.
    """

    name = "posterior"
    learning_rate = 5e-4
    gradient_clip = 5.0

    def __init__(self, voice: Voice, speech: OwnSpeech, batch_size: int, frames: int = 96, sounded: int = 32) -> None:
        assert voice.posterior is not None and voice.spectrogram is not None
        self.voice, self.speech, self.batch_size = voice, speech, batch_size
        self.module: nn.Module = voice.posterior
        self.rows: Sequence[str] = [f"sentence {row}" for row in range(len(speech.segments))]
        self.groups: Sequence[Sequence[int]] = [range(len(self.rows))]
        self.lengths: Sequence[int] | None = None  # windows of one size
        self._frames, self._sounded = frames, sounded
        self._mel = MelDistance(voice.config.decoder.hop, voice.config.sample_rate_hz).to(speech.z.device)
        voice.requires_grad_(False)
        self.module.requires_grad_(True)

    def losses(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        voice, segments = self.voice, self.speech.segments
        assert voice.posterior is not None and voice.spectrogram is not None
        windows = segments.windows(rows, self._frames)
        with in_float32(rows.device):
            spectrogram = voice.spectrogram.of_surrounded(windows.samples) * windows.mask
        z, mean, log_deviation = voice.posterior(spectrogram, windows.mask, torch.randn_like(windows.mask.expand(-1, voice.config.latent, -1)))
        begin = drawn(windows.mask, self._sounded)
        part = parts(z, begin, self._sounded)
        made = voice.decoder(part, torch.ones_like(part[:, :1]))
        true = segments.sound(windows, begin, self._sounded)
        return {
            "likelihood": likelihood_loss(self.speech.latent(windows.first, self._frames), mean, log_deviation, windows.mask),
            "mel": self._mel(made, true),
        }

    def resting(self, step: int, steps: int) -> Collection[nn.Parameter]:
        return ()


def likelihood_loss(z: torch.Tensor, mean: torch.Tensor, log_deviation: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Negative log density of z under a normal distribution, less a constant: a mean over real frames and channels."""
    held = log_deviation.clamp_min(LEAST_LOG_DEVIATION)
    value = held + 0.5 * (z - mean).square() * (-2 * held).exp()
    return (value * mask).sum() / (mask.sum() * z.shape[1]).clamp_min(1.0)
