"""LoRA: low-rank updates beside frozen projections.

Paper: LoRA: Low-Rank Adaptation of Large Language Models, Hu et al. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from polyadapt.methods.base_options import AdapterOptions
from polyadapt.methods.card import MethodCard, Paper

USUAL_SITES = ("attn.q", "attn.v")


class LoraOptions(AdapterOptions):
    """Options of LoRA."""

    sites: tuple[str, ...] = Field((), description="globs over sites; empty: attn.q and attn.v as in the paper's section 4.2, or the family's default")
    rank: int = Field(8, ge=1, description="r; 8 as in the paper's GPT-2 runs")
    alpha: float = Field(16.0, gt=0, description="the update is scaled by alpha / rank (by alpha / sqrt(rank) with rank_stabilised)")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the input of the update, while training")
    rank_stabilised: bool = Field(False, description="scale by alpha / sqrt(rank) (arXiv 2312.03732)")
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field({}, description="rank of single sites by glob; the first that matches holds")
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field({}, description="alpha of single sites by glob; the first that matches holds")


CARD = MethodCard(
    id="lora",
    title="Low-rank adaptation (LoRA)",
    kind="edits",
    domains=("any",),
    options=LoraOptions,
    implementation="polyadapt.methods.lora.method:Lora",
    paper=Paper("LoRA: Low-Rank Adaptation of Large Language Models", "2106.09685", 2021),
    ports=("op",),
    exports=("slots", "merged", "bank"),
    folds=True,
    learning_rate=1e-3,
)
