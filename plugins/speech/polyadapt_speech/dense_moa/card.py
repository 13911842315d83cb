"""Dense mixture of adapters: a router weighs all adapters for every token.

Paper: Efficient Fine-tuning of Audio Spectrogram Transformers via Soft Mixture of Adapters, Cappellazzo, Falavigna,
Brutti, Interspeech 2024, arXiv 2402.00828, its dense baseline.
"""

from __future__ import annotations

from polyadapt.methods.card import MethodCard, Paper
from polyadapt_speech.mixture_options import MixtureOptions


class DenseMoaOptions(MixtureOptions):
    """Options of dense mixtures."""


CARD = MethodCard(
    id="dense-moa",
    title="Dense mixture of adapters (Dense-MoA)",
    kind="edits",
    domains=("speech", "vision"),
    options=DenseMoaOptions,
    implementation="polyadapt_speech.dense_moa.method:DenseMoa",
    paper=Paper("Efficient Fine-tuning of Audio Spectrogram Transformers via Soft Mixture of Adapters", "2402.00828", 2024),
    ports=("span", "attention"),
    families=("ast", "vit", "wav2vec2", "wav2vec2-torchaudio", "whisper"),
    learning_rate=5e-3,
    weight_decay=0.1,
    notes="Sizes are fixed in an exported graph.",
)
