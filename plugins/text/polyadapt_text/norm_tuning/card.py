"""Norm tuning: the weights and biases of norms train, and nothing else.

Paper: Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning, Zhao, Tu, Wei, Mei, Xie 2023,
arXiv 2312.11420.
"""

from __future__ import annotations

from pydantic import Field

from polyadapt.methods.base_options import AdapterOptions
from polyadapt.methods.card import MethodCard, Paper


class NormTuningOptions(AdapterOptions):
    """Options of norm tuning."""

    sites: tuple[str, ...] = Field(("*norm*",), description="globs over sites of norms; all of them as in the paper")
    add_missing: bool = Field(False, description="also give a bias to norms that have none, such as RMSNorm (ours; the paper trains what is there)")


CARD = MethodCard(
    id="norm-tuning",
    title="Weights and biases of norms only (LayerNorm tuning)",
    kind="edits",
    domains=("text", "vision", "speech"),
    options=NormTuningOptions,
    implementation="polyadapt_text.norm_tuning.method:NormTuning",
    paper=Paper("Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning", "2312.11420", 2023),
    ports=("op",),
    exports=("slots", "merged", "bank"),
    folds=True,
    learning_rate=1e-3,
    notes="Trains the difference to each weight and bias. A weight of a norm that is exactly 0 stays 0.",
)
