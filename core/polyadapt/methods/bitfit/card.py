"""BitFit: only biases train.

Paper: BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models,
Ben Zaken, Goldberg, Ravfogel, ACL 2022, arXiv 2106.10199.
"""

from __future__ import annotations

from pydantic import Field

from polyadapt.methods.base_options import AdapterOptions
from polyadapt.methods.card import MethodCard, Paper


class BitFitOptions(AdapterOptions):
    """Options of BitFit."""

    sites: tuple[str, ...] = Field(("*",), description="globs over op sites; all of them as in the paper")
    add_missing: bool = Field(False, description="also give a bias to ops that have none (ours; the paper trains existing ones)")


CARD = MethodCard(
    id="bitfit",
    title="Biases only (BitFit)",
    kind="edits",
    domains=("any",),
    options=BitFitOptions,
    implementation="polyadapt.methods.bitfit.method:BitFit",
    paper=Paper("BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models", "2106.10199", 2022),
    ports=("op",),
    exports=("slots", "merged", "bank"),
    folds=True,
    learning_rate=1e-3,
    notes="Trains the difference to each bias, so weight decay pulls towards the pretrained bias.",
)
