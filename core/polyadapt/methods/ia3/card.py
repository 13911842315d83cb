"""(IA)3: learned vectors that scale keys, values and inner activations.

Paper: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning,
Liu et al., NeurIPS 2022, arXiv 2205.05638.
"""

from __future__ import annotations

from pydantic import Field

from polyadapt.methods.base_options import AdapterOptions
from polyadapt.methods.card import MethodCard, Paper


class Ia3Options(AdapterOptions):
    """Options of (IA)3."""

    sites: tuple[str, ...] = Field((), description="globs of ops whose output is scaled; empty: k and v of every attention, across too, as in the paper, or the family's default")
    input_sites: tuple[str, ...] = Field((), description="globs of ops whose input is scaled; empty: ffn.down as in the paper where it exists")


CARD = MethodCard(
    id="ia3",
    title="Learned scales of activations ((IA)3)",
    kind="edits",
    domains=("any",),
    options=Ia3Options,
    implementation="polyadapt.methods.ia3.method:Ia3",
    paper=Paper("Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", "2205.05638", 2022),
    ports=("op",),
    exports=("slots", "merged", "bank"),
    folds=True,
    learning_rate=3e-3,
)
