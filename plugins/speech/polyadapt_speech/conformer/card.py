"""Conformer adapters: the convolution module of the Conformer, made small, beside the FFN or attention.

Papers: Parameter-Efficient Transfer Learning of Audio Spectrogram Transformers, Cappellazzo, Falavigna, Brutti, Ravanelli,
MLSP 2024, arXiv 2312.03694; the module after Conformer: Convolution-augmented Transformer for Speech Recognition, Gulati et
al., Interspeech 2020, arXiv 2005.08100.
"""

from __future__ import annotations

from pydantic import Field

from polyadapt.methods.card import MethodCard, Paper
from polyadapt.methods.placing import PlacedOptions


class ConformerOptions(PlacedOptions):
    """Options of conformer adapters."""

    rank: int = Field(8, ge=1, description="inner width r (the paper: 8)")
    kernel: int = Field(31, ge=1, description="width of the convolution in tokens (the paper: 31 for speech, 8 for sounds of the surroundings)")
    train_norm: bool = Field(True, description="train the norm that feeds the adapter's span too, 2 d values each (as in the paper)")


CARD = MethodCard(
    id="conformer",
    title="Conformer adapters (a gated convolution along the sequence)",
    kind="edits",
    domains=("speech", "vision"),
    options=ConformerOptions,
    implementation="polyadapt_speech.conformer.method:Conformer",
    paper=Paper("Parameter-Efficient Transfer Learning of Audio Spectrogram Transformers", "2312.03694", 2024),
    ports=("span", "attention"),
    families=("ast", "vit", "wav2vec2", "wav2vec2-torchaudio", "whisper"),
    learning_rate=5e-3,
    weight_decay=0.1,
    notes="Not for decoders: the convolution sees what comes next. Sizes are fixed in an exported graph.",
)
