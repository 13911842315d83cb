"""Full fine-tuning: every weight of the backbone trains. The upper baseline, and the costliest."""

from __future__ import annotations

from pydantic import Field

from polyadapt.methods.base_options import AdapterOptions
from polyadapt.methods.card import MethodCard


class FullOptions(AdapterOptions):
    """Options of full fine-tuning."""

    sites: tuple[str, ...] = Field(("*",), description="globs over parameter sites, `other.*` included (ours: everything)")


CARD = MethodCard(
    id="full",
    title="Full fine-tuning",
    kind="edits",
    domains=("any",),
    options=FullOptions,
    implementation="polyadapt.methods.full.method:Full",
    exports=("merged",),
    folds=True,
    learning_rate=1e-4,
    notes="Running statistics of batch norms stay as they are: buffers never change unless a method declares them.",
)
