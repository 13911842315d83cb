"""Convpass: bottleneck adapters with a convolution along the sequence, beside attention or FFN.

Papers: Convolutional Bypasses Are Better Vision Transformer Adapters, Jie and Deng 2022, arXiv 2207.07039; on
spectrograms: Parameter-Efficient Transfer Learning of Audio Spectrogram Transformers, Cappellazzo et al. 2024,
arXiv 2312.03694.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from polyadapt.methods.card import MethodCard, Paper
from polyadapt.methods.placing import PlacedOptions


class ConvpassOptions(PlacedOptions):
    """Options of Convpass."""

    rank: int = Field(8, ge=1, description="inner width r (Jie and Deng: 8)")
    kernel: int = Field(3, ge=1, description="width of the convolution in frames or patches, an odd number (3 in both papers)")
    dropout: float = Field(0.1, ge=0, lt=1, description="before the last projection, while training (0.1 in both papers' code)")

    @field_validator("kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd, so that a frame stands in the middle of what is seen")
        return value


CARD = MethodCard(
    id="convpass",
    title="Bottlenecks with a convolution along the sequence (Convpass)",
    kind="edits",
    domains=("speech", "vision"),
    options=ConvpassOptions,
    implementation="polyadapt_speech.convpass.method:Convpass",
    paper=Paper("Parameter-Efficient Transfer Learning of Audio Spectrogram Transformers", "2312.03694", 2024),
    ports=("span", "attention"),
    families=("ast", "vit", "wav2vec2", "wav2vec2-torchaudio", "whisper"),
    learning_rate=5e-3,
    weight_decay=0.1,
    notes="Not for decoders: the convolution sees what comes next. Sizes are fixed in an exported graph.",
)
