"""DoRA: direction by LoRA, magnitude by a vector.

Paper: DoRA: Weight-Decomposed Low-Rank Adaptation, Liu et al., ICML 2024, arXiv 2402.09353.
"""

from __future__ import annotations

from pydantic import Field

from polyadapt.methods.card import MethodCard, Paper
from polyadapt.methods.lora.card import LoraOptions


class DoraOptions(LoraOptions):
    """Options of DoRA: those of LoRA, and the gradient of the norm."""

    detach_norm: bool = Field(True, description="treat the weight's norm as a constant in the gradient (the paper's section 4.3)")


CARD = MethodCard(
    id="dora",
    title="Weight-decomposed low-rank adaptation (DoRA)",
    kind="edits",
    domains=("any",),
    options=DoraOptions,
    implementation="polyadapt.methods.dora.method:Dora",
    paper=Paper("DoRA: Weight-Decomposed Low-Rank Adaptation", "2402.09353", 2024),
    ports=("op",),
    exports=("slots", "merged", "bank"),
    folds=True,
    learning_rate=1e-3,
)
