"""MAM adapter: a short prefix at attention and a scaled parallel adapter at the FFN.

Paper: Towards a Unified View of Parameter-Efficient Transfer Learning, He et al., ICLR 2022, arXiv 2110.04366.
"""

from __future__ import annotations

from pydantic import Field

from polyadapt.methods.base_options import AdapterOptions
from polyadapt.methods.card import MethodCard, Paper


class MamOptions(AdapterOptions):
    """Options of MAM; defaults are the paper's for GLUE (exps/run_glue.sh)."""

    length: int = Field(16, ge=1, description="prefix length l (16 on MNLI and SST-2, 30 on XSum)")
    rank: int = Field(16, ge=1, description="inner width of the FFN adapter (16 on MNLI and SST-2, 512 on XSum)")
    scale: float = Field(2.0, gt=0, description="factor of the FFN adapter (2 on MNLI and SST-2, 4 on XSum)")


CARD = MethodCard(
    id="mam",
    title="Mix-and-match adapter (MAM)",
    kind="edits",
    domains=("any",),
    options=MamOptions,
    implementation="polyadapt.methods.mam.method:Mam",
    paper=Paper("Towards a Unified View of Parameter-Efficient Transfer Learning", "2110.04366", 2022),
    ports=("attention", "span"),
    exports=("slots", "merged", "bank"),
    learning_rate=1e-3,
    identity_at_start="its prefix takes softmax mass from the real keys from the first step on",
)
