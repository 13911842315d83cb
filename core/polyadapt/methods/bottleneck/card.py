"""Bottleneck adapters: Houlsby, Pfeiffer, sequential, parallel, scaled.

Papers: Parameter-Efficient Transfer Learning for NLP, Houlsby et al. 2019, arXiv 1902.00751; AdapterFusion,
Pfeiffer et al. 2021, arXiv 2005.00247; Towards a Unified View of Parameter-Efficient Transfer Learning, He et al.
2022, arXiv 2110.04366 (parallel and scaled).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyadapt.methods.card import MethodCard, Paper
from polyadapt.methods.placing import PlacedOptions


class BottleneckOptions(PlacedOptions):
    """Options of bottleneck adapters."""

    rank: int = Field(16, ge=1, description="inner width r (He et al.: 16 on GLUE, 512 on XSum)")
    activation: Literal["relu", "gelu", "silu", "tanh", "none"] = Field("relu", description="ReLU as in He et al.'s code")
    norm: bool = Field(False, description="a LayerNorm of the adapter's own before `down`")
    scale: float = Field(1.0, gt=0, description="factor of the adapter's output; 4 is best on XSum, 2 on GLUE (He et al.)")
    learned_scale: bool = Field(False, description="train the factor, starting from `scale`")
    init: Literal["lora", "bert"] = Field("lora", description="lora: down Kaiming, up zero; bert: both N(0, 0.02), no identity at start")
    dropout: float = Field(0.0, ge=0, lt=1, description="on what the adapter reads, while training (ours; the paper's code drops the inner values)")


CARD = MethodCard(
    id="bottleneck",
    title="Bottleneck adapters (Houlsby, Pfeiffer, parallel, scaled)",
    kind="edits",
    domains=("any",),
    options=BottleneckOptions,
    implementation="polyadapt.methods.bottleneck.method:BottleneckAdapter",
    paper=Paper("Parameter-Efficient Transfer Learning for NLP", "1902.00751", 2019),
    ports=("span",),
    exports=("slots", "merged", "bank"),
    learning_rate=1e-3,
)
