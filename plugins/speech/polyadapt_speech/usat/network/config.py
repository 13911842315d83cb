"""Numbers that fix a VITS network. Defaults are those of the paper's base model, as Piper's medium voices keep them.

Papers: VITS (arXiv 2106.06103) section 3 and appendix A; HiFi-GAN (2010.05646) table 5 for the decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class WaveNetConfig:
    """A stack of gated convolutions. Layer i has dilation `dilation_rate ** i`."""

    width: int = 192
    layers: int = 4
    kernel: int = 5
    dilation_rate: int = 1


@dataclass(frozen=True)
class DurationConfig:
    """The stochastic duration predictor. `flows` counts its spline flows, of which the first serves training alone."""

    width: int = 192
    kernel: int = 3
    layers: int = 3
    flows: int = 4
    bins: int = 10
    bound: float = 5.0


@dataclass(frozen=True)
class DecoderConfig:
    """HiFi-GAN. `paired` blocks are the paper's ResBlock1 (two convolutions a layer), the others its ResBlock2 (one)."""

    width: int = 256
    rates: tuple[int, ...] = (8, 8, 4)
    kernels: tuple[int, ...] = (16, 16, 8)
    residual_kernels: tuple[int, ...] = (3, 5, 7)
    dilations: tuple[tuple[int, ...], ...] = ((1, 2), (2, 6), (3, 12))
    paired: bool = False

    @property
    def hop(self) -> int:
        """Samples of one frame."""
        return math.prod(self.rates)


@dataclass(frozen=True)
class VoiceConfig:
    """A whole voice.

    Attributes:
        vocab_size: number of ids of phonemes or characters.
        latent: channels of z.
        window: distance up to which relative positions are told apart.
        speaker_size: width of the speaker vector; 0 for a voice of one speaker.
        memory_slots: vectors of the memory before the decoder; 0 for none.
        listens: whether it makes speaker vectors of recordings, and can be trained on them.
    """

    vocab_size: int
    sample_rate_hz: int = 22050
    width: int = 192
    heads: int = 2
    blocks: int = 6
    ffn_width: int = 768
    ffn_kernel: int = 3
    window: int = 4
    latent: int = 192
    couplings: int = 4
    flow: WaveNetConfig = field(default_factory=WaveNetConfig)
    durations: DurationConfig = field(default_factory=DurationConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    speaker_size: int = 0
    memory_slots: int = 0
    listens: bool = False

    def __post_init__(self) -> None:
        if self.listens and not self.speaker_size:
            raise ValueError("a voice that listens makes speaker vectors: speaker_size must be above 0")
