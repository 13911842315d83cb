"""Prototypes: class means of a frozen encoder, learnt session by session.

Papers: Prototypical Networks for Few-shot Learning, Snell, Swersky, Zemel 2017, arXiv 1703.05175; the protocol of
sessions and the frozen baseline as in A Bag of Tricks for Few-Shot Class-Incremental Learning, Roy et al. 2024,
arXiv 2403.14392.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyadapt.methods.card import MethodCard, Paper
from polyadapt.options import Options


class PrototypesOptions(Options):
    """Options of prototypes."""

    classes: tuple[str, ...] = Field((), description="the classes in the order in which they arrive; the data's own order when empty")
    base_classes: int = Field(0, ge=0, description="how many of them arrive in the first session, with all their examples; 0 for all")
    ways: int = Field(0, ge=0, description="how many arrive in each later session; 0 for all that are left")
    shots: int = Field(0, ge=0, description="examples of each later class, the first ones of the training part; 0 for all")
    average: Literal["directions", "raw"] = Field("directions", description="mean of features scaled to length 1, or of features as they are")
    temperature: float = Field(16.0, gt=0, description="factor of the cosines before softmax; 16 as in SAVC (arXiv 2304.00426). It does not change which class is best")


CARD = MethodCard(
    id="prototypes",
    title="Class means as cosine prototypes, session by session",
    kind="procedure",
    domains=("vision", "speech", "text"),
    options=PrototypesOptions,
    implementation="polyadapt_vision.prototypes.method:Prototypes",
    paper=Paper("Prototypical Networks for Few-shot Learning", "1703.05175", 2017),
    ports=("head",),
    exports=("slots", "merged", "bank"),
    folds=True,
    notes="Computed in one pass without gradients. An exported bundle learns further classes by bundle.learn.",
)
