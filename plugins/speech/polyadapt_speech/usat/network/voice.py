"""A voice: text encoder, durations, flow and decoder of VITS, from ids to a waveform (arXiv 2106.06103 section 2)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt_speech.usat.network.config import VoiceConfig
from polyadapt_speech.usat.network.decoder import Decoder
from polyadapt_speech.usat.network.duration_posterior import DurationPosterior
from polyadapt_speech.usat.network.durations import DurationPredictor
from polyadapt_speech.usat.network.flow import Flow
from polyadapt_speech.usat.network.lengths import frames_of
from polyadapt_speech.usat.network.loudness import levelled
from polyadapt_speech.usat.network.memory import Memory
from polyadapt_speech.usat.network.posterior import PosteriorEncoder
from polyadapt_speech.usat.network.precision import in_float32
from polyadapt_speech.usat.network.speaker_encoder import SpeakerEncoder
from polyadapt_speech.usat.network.text_encoder import TextEncoder
from polyadapt_speech.usat.spectrogram import Spectrogram


@dataclass(frozen=True)
class Manner:
    """How a text is spoken. What is None is left out: no noise, the usual speed, no speaker vector.

    Attributes:
        noise: normal values times the wanted noise scale [batch, latent, frames]; cut or filled up with zeros to the frames that the text takes.
        duration_noise: the same for durations [batch, 2, tokens].
        length_scale: factor of all durations [batch].
        speaker: speaker vector [batch, size].
        noise_scale: in place of `noise`: normal values are drawn here, times this scale [batch].
    """

    noise: torch.Tensor | None = None
    duration_noise: torch.Tensor | None = None
    length_scale: torch.Tensor | None = None
    speaker: torch.Tensor | None = None
    noise_scale: torch.Tensor | None = None


class Voice(nn.Module):
    """The parts that speak, and in a voice that listens those that hear: `posterior`, `speaker_encoder`, and for training alone `duration_posterior`."""

    def __init__(self, config: VoiceConfig) -> None:
        super().__init__()
        self.config = config
        self.text_encoder = TextEncoder(config)
        self.durations = DurationPredictor(config.durations, config.width, config.speaker_size)
        self.flow = Flow(config)
        self.memory = Memory(config.memory_slots, config.latent) if config.memory_slots else None
        self.decoder = Decoder(config.decoder, config.latent)
        listens = config.listens
        self.spectrogram = Spectrogram(config.decoder.hop) if listens else None
        self.posterior = PosteriorEncoder(Spectrogram.bins(config.decoder.hop), config.latent) if listens else None
        self.speaker_encoder = SpeakerEncoder(config.latent, config.speaker_size) if listens else None
        self.duration_posterior = DurationPosterior(config.durations) if listens else None

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, manner: Manner | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A waveform for every text.

        Args:
            ids: of phonemes or characters.
            mask: 1 for real tokens, 0 for padding on the right.
            manner: noise, speed and speaker.

        Shape:
            ids and mask int64 [batch, tokens] -> waveform [batch, samples], lengths int64 [batch] in samples, durations
            [batch, tokens] in frames, before they are rounded up.
        """
        z, frame_mask, lengths, durations = self.latent(ids, mask, manner or Manner())
        if self.memory is not None:
            z = self.memory(z)
        return self.decoder(z, frame_mask), lengths * self.config.decoder.hop, durations

    def speaker_vector(self, samples: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Whose voice a recording is: brought to one loudness, spectrogram, mean of the posterior, speaker encoder.

        Frames that reach behind a recording's end are left out, so a row gives the vector that it gives alone.

        Args:
            samples: at the voice's rate.
            lengths: samples of each row that belong to it.

        Shape:
            samples [batch, samples], lengths int64 [batch] -> [batch, size], of length 1.
        """
        assert self.spectrogram is not None and self.posterior is not None and self.speaker_encoder is not None
        seen = self.spectrogram(levelled(samples, lengths, self.config.decoder.hop))  # (B, bins, F)
        mask = self.spectrogram.whole(lengths, seen.shape[-1])  # (B, 1, F)
        _, mean, _ = self.posterior(seen, mask, seen.new_zeros(1))  # (B, C, F)
        result: torch.Tensor = self.speaker_encoder(mean, mask)
        return result

    @torch.no_grad()
    def usual_durations(self, hidden: torch.Tensor, token_mask: torch.Tensor, speaker: torch.Tensor | None) -> torch.Tensor:
        """How long each token lasts without noise, in whole frames, as it is spoken.

        Shape:
            hidden [batch, width, tokens], token_mask [batch, 1, tokens], speaker [batch, size, 1] -> [batch, tokens].
        """
        with in_float32(hidden.device):
            hidden, speaker = hidden.float(), None if speaker is None else speaker.float()
            lasts: torch.Tensor = self.durations(hidden, token_mask, torch.zeros_like(hidden[:, :2]), speaker).exp().ceil() * token_mask[:, 0]
            return lasts

    def latent(self, ids: torch.Tensor, mask: torch.Tensor, manner: Manner) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the decoder gets: z [batch, latent, frames], its mask [batch, 1, frames], lengths [batch] in frames, durations [batch, tokens] as `forward`."""
        counts = mask.to(self.text_encoder.embed.weight.dtype)  # (B, T)
        speaker = None if manner.speaker is None else manner.speaker.unsqueeze(-1)  # (B, S, 1)
        hidden, mean, log_deviation = self.text_encoder(ids, counts)
        durations = self._durations(hidden, counts, manner, speaker)
        frames = frames_of(durations.ceil().to(torch.int64))
        z = frames.spread(mean)  # (B, C, F)
        if manner.noise is not None:
            z = z + _fitted(manner.noise, frames.mask) * frames.spread(log_deviation).exp()
        elif manner.noise_scale is not None:
            z = z + torch.randn_like(z) * manner.noise_scale[:, None, None] * frames.spread(log_deviation).exp()
        z = self.flow.inverse(z, frames.mask, speaker)
        return z, frames.mask, frames.lengths, durations

    def _durations(self, hidden: torch.Tensor, counts: torch.Tensor, manner: Manner, speaker: torch.Tensor | None) -> torch.Tensor:
        """Frames of every token, not yet whole [batch, tokens]."""
        noise = torch.zeros_like(hidden[:, :2]) if manner.duration_noise is None else manner.duration_noise  # (B, 2, T)
        lasts: torch.Tensor = self.durations(hidden, counts[:, None, :], noise, speaker).exp() * counts  # (B, T)
        return lasts if manner.length_scale is None else lasts * manner.length_scale[:, None]


def _fitted(noise: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Noise with as many frames as a mask."""
    frames = mask.shape[-1]
    return F.pad(noise, (0, frames))[..., :frames] * mask


def extended(voice: Voice, speaker_size: int = 0, memory_slots: int = 0, listens: bool = False) -> Voice:
    """The same voice with room for speakers and a memory, both silent at the start: it sounds as before, bit for bit.

    What is new is drawn from torch's default generator.

    Args:
        voice: finished; its weights are copied.
        speaker_size: width of speaker vectors; projections to flow and durations start at 0.
        memory_slots: vectors of the memory, whose gate starts at 0.
        listens: with untrained parts that hear.
    """
    made = Voice(replace(voice.config, speaker_size=speaker_size, memory_slots=memory_slots, listens=listens))
    made.load_state_dict({**made.state_dict(), **voice.state_dict()})
    return made.train(voice.training)
