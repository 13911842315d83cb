"""Hydra: a parallel and a sequential low-rank branch on one projection.

Paper: Hydra: Multi-head Low-rank Adaptation for Parameter Efficient Fine-tuning, Kim et al., arXiv 2309.06922.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from polyadapt.methods.base_options import AdapterOptions
from polyadapt.methods.card import MethodCard, Paper


class HydraOptions(AdapterOptions):
    """Options of Hydra."""

    sites: tuple[str, ...] = Field((), description="globs over sites; empty: attn.o and ffn.down as in the paper's vision set-up, or the family's default")
    parallel_rank: int = Field(2, ge=0, description="r of the parallel branch (2 on VTAB and ELEVATER); 0 for none")
    sequential_rank: int = Field(2, ge=0, description="r of the sequential branch (2 on VTAB and ELEVATER); 0 for none")
    scale: float = Field(1.0, gt=0, description="s (1.0 on ELEVATER)")
    biases: bool = Field(True, description="biases in both branches, as in the vision code; the language code has none")
    init: Literal["xavier", "kaiming"] = Field("xavier", description="start of the down factors: Xavier (vision), Kaiming (language)")

    @field_validator("sequential_rank")
    @classmethod
    def _one_branch_at_least(cls, rank: int, info: ValidationInfo) -> int:
        if not rank and not info.data.get("parallel_rank", 1):
            raise ValueError("parallel_rank is 0 too, which leaves nothing to train; give one of them a rank")
        return rank


CARD = MethodCard(
    id="hydra",
    title="Multi-head low-rank adaptation (Hydra)",
    kind="edits",
    domains=("any",),
    options=HydraOptions,
    implementation="polyadapt.methods.hydra.method:Hydra",
    paper=Paper("Hydra: Multi-head Low-rank Adaptation for Parameter Efficient Fine-tuning", "2309.06922", 2023),
    ports=("op",),
    exports=("slots", "merged", "bank"),
    folds=True,
    learning_rate=1e-3,
)
