"""Stage B: encoder, memory and decoder learn to say again what many voices say; in its last third discriminators listen.

First mel and spectral distances alone, then least-squares discriminators with feature matching beside them (the paper's L_re).
Two things hold the start voice: its own clips are among the others, with the z that it had as targets; and the encoder's
deviations stay near what stage A found, or they would fall to nothing, since no prior pulls at them here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import nn

from polyadapt_speech.usat.network.precision import in_float32
from polyadapt_speech.usat.network.voice import Voice
from polyadapt_speech.usat.network.wave_discriminators import WaveDiscriminators
from polyadapt_speech.usat.training.corpus import Corpus
from polyadapt_speech.usat.training.own_speech import OwnSpeech
from polyadapt_speech.usat.training.posterior import likelihood_loss
from polyadapt_speech.usat.training.segments import Segments, Windows, drawn, parts
from polyadapt_speech.usat.training.wave_losses import MelDistance, adversarial_losses, spectral_distance

OWN_SHARE = 0.125  # of a batch: clips of the start voice
WEIGHTS = {"mel": 15.0, "spectral": 5.0, "own": 1.0, "deviation": 0.5, "discriminator": 1.0, "generator": 1.0, "features": 2.0}  # ours; HiFi-GAN's 45 and 2 without a spectral loss


class Autoencoder:
    """The stage.

    Args:
        voice: that listens, after stage A.
        corpus: of many voices.
        segments: its clips.
        speech: what the start voice said, with z.
        batch_size: windows a step.
        deviation: mean log deviation of each channel after stage A [latent].
        discriminators: which listen; None in the first part.
        frames, sounded: of a window, and of the part of it that is made sound again.
    """

    def __init__(
        self,
        voice: Voice,
        corpus: Corpus,
        segments: Segments,
        speech: OwnSpeech,
        batch_size: int,
        deviation: torch.Tensor,
        discriminators: WaveDiscriminators | None = None,
        frames: int = 96,
        sounded: int = 32,
    ) -> None:
        assert voice.posterior is not None and voice.memory is not None
        self.voice, self.discriminators, self.batch_size = voice, discriminators, batch_size
        self.name = "autoencoder" if discriminators is None else "adversarial"
        self.learning_rate = 3e-4 if discriminators is None else 2e-4
        self.gradient_clip = 0.0
        self.rows: Sequence[str] = corpus.names
        self.groups: Sequence[Sequence[int]] = [torch.nonzero(corpus.speaker == number).flatten().tolist() for number in range(len(corpus.speakers))]
        self.lengths: Sequence[int] | None = None  # windows of one size
        self.module: nn.Module = nn.ModuleList([voice.posterior, voice.memory, voice.decoder, *([] if discriminators is None else [discriminators])])
        self._segments, self._speech, self._deviation = segments, speech, deviation
        self._frames, self._sounded = frames, sounded
        self._mel = MelDistance(voice.config.decoder.hop, voice.config.sample_rate_hz).to(speech.z.device)
        voice.requires_grad_(False)
        self.module.requires_grad_(True)

    def losses(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        voice = self.voice
        assert voice.posterior is not None and voice.memory is not None and voice.spectrogram is not None
        own = max(1, round(OWN_SHARE * len(rows)))
        own_rows = torch.randint(0, len(self._speech.segments), (own,)).to(rows.device)
        theirs = rows[own:] if len(rows) > own else rows  # a batch of one clip hears it beside one of the start voice's
        ours, others = self._speech.segments.windows(own_rows, self._frames), self._segments.windows(theirs, self._frames)
        windows = Windows(torch.cat([ours.samples, others.samples]), torch.cat([ours.mask, others.mask]), torch.cat([ours.first, others.first]))
        with in_float32(rows.device):
            spectrogram = voice.spectrogram.of_surrounded(windows.samples) * windows.mask
        z, mean, log_deviation = voice.posterior(spectrogram, windows.mask, torch.randn_like(windows.mask.expand(-1, voice.config.latent, -1)))
        begin = drawn(windows.mask, self._sounded)
        part = parts(z, begin, self._sounded)
        made = voice.decoder(voice.memory(part), torch.ones_like(part[:, :1]))
        true = self._segments.sound(windows, begin, self._sounded)
        found = {
            "mel": self._mel(made, true),
            "spectral": spectral_distance(made, true),
            "own": likelihood_loss(self._speech.latent(ours.first, self._frames), mean[:own], log_deviation[:own], ours.mask),
            "deviation": ((log_deviation - self._deviation[:, None]).square() * windows.mask).sum() / (windows.mask.sum() * mean.shape[1]),
        }
        if self.discriminators is not None:
            found |= adversarial_losses(self.discriminators, made, true)
        return {name: WEIGHTS[name] * value for name, value in found.items()}

    def resting(self, step: int, steps: int) -> Collection[nn.Parameter]:
        return ()


@torch.no_grad()
def usual_deviation(voice: Voice, speech: OwnSpeech, rows: int = 32, frames: int = 96) -> torch.Tensor:
    """Mean log deviation of each channel over some of the start voice's clips: [latent]."""
    assert voice.posterior is not None and voice.spectrogram is not None
    chosen = torch.arange(min(rows, len(speech.segments)), device=speech.z.device)
    windows = speech.segments.windows(chosen, frames)
    _, _, log_deviation = voice.posterior(voice.spectrogram.of_surrounded(windows.samples) * windows.mask, windows.mask, torch.zeros_like(windows.mask))
    mean: torch.Tensor = (log_deviation * windows.mask).sum((0, 2)) / windows.mask.sum()
    return mean
