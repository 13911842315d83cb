"""Soft mixture of adapters: every adapter sees weighted means of the tokens, every token a weighted mean of what they make.

Papers: Efficient Fine-tuning of Audio Spectrogram Transformers via Soft Mixture of Adapters, Cappellazzo, Falavigna,
Brutti, Interspeech 2024, arXiv 2402.00828; From Sparse to Soft Mixtures of Experts, Puigcerver et al., ICLR 2024, arXiv
2308.00951.
"""

from __future__ import annotations

from pydantic import Field

from polyadapt.methods.card import MethodCard, Paper
from polyadapt_speech.mixture_options import MixtureOptions


class SoftMoaOptions(MixtureOptions):
    """Options of soft mixtures."""

    slots: int = Field(1, ge=1, description="slots p of each adapter (the paper: 1)")
    normalize: bool = Field(False, description="bring tokens and the columns of phi to length 1 and train a scale (2308.00951, for wide models; the paper: not at d = 768)")


CARD = MethodCard(
    id="soft-moa",
    title="Soft mixture of adapters (Soft-MoA)",
    kind="edits",
    domains=("speech", "vision"),
    options=SoftMoaOptions,
    implementation="polyadapt_speech.soft_moa.method:SoftMoa",
    paper=Paper("Efficient Fine-tuning of Audio Spectrogram Transformers via Soft Mixture of Adapters", "2402.00828", 2024),
    ports=("span", "attention"),
    families=("ast", "vit", "wav2vec2", "wav2vec2-torchaudio", "whisper"),
    learning_rate=5e-3,
    weight_decay=0.1,
    notes="Not for decoders: a slot is a mean over the whole sequence, padding included where a batch is padded. Sizes are fixed in an exported graph.",
)
