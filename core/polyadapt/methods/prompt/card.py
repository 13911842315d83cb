"""Prompt tuning: learned tokens in the sequence, at the entrance or before every block.

Papers: The Power of Scale for Parameter-Efficient Prompt Tuning, Lester et al., EMNLP 2021, arXiv 2104.08691;
Visual Prompt Tuning, Jia et al., ECCV 2022, arXiv 2203.12119; in the place of the distillation token: Parameter-Efficient
Transfer Learning of Audio Spectrogram Transformers, Cappellazzo et al., MLSP 2024, arXiv 2312.03694.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyadapt.methods.base_options import AdapterOptions
from polyadapt.methods.card import MethodCard, Paper


class PromptOptions(AdapterOptions):
    """Options of prompt tuning."""

    length: int = Field(10, ge=1, description="tokens P (Jia et al. search 1 to 200; ours: 10)")
    deep: bool = Field(False, description="further tokens in the prompt's place before every later block (VPT-deep)")
    place: Literal["behind", "distillation"] = Field(
        "behind", description="behind the class and distillation tokens, or in the place of the distillation token (2312.03694, on spectrograms)"
    )
    init: Literal["auto", "uniform", "vocabulary"] = Field("auto", description="auto: embeddings of random words where the model has words (Lester et al.), else uniform as in VPT")
    tower: str = Field("", description="text or image, for models with two towers")


CARD = MethodCard(
    id="prompt",
    title="Prompt tuning (shallow and deep)",
    kind="edits",
    domains=("any",),
    options=PromptOptions,
    implementation="polyadapt.methods.prompt.method:Prompt",
    paper=Paper("The Power of Scale for Parameter-Efficient Prompt Tuning", "2104.08691", 2021),
    ports=("stream",),
    exports=("slots", "merged", "bank"),
    learning_rate=1e-2,
    identity_at_start="prompt tokens take part in attention from the first step on",
)
