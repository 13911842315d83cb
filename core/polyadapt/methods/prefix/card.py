"""Prefix tuning: learned keys and values before the real ones.

Paper: Prefix-Tuning: Optimizing Continuous Prompts for Generation, Li and Liang, ACL 2021, arXiv 2101.00190.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyadapt.methods.base_options import AdapterOptions
from polyadapt.methods.card import MethodCard, Paper


class PrefixOptions(AdapterOptions):
    """Options of prefix tuning."""

    sites: tuple[str, ...] = Field((), description="globs over attention sites; empty: every attention, across too, as in the paper")
    length: int = Field(16, ge=1, description="keys per head (He et al.: 16 on GLUE, 30 on XSum)")
    reparametrisation: Literal["none", "mlp"] = Field("none", description="train the prefix itself, or an embedding and a two-layer MLP that make it (the paper's)")
    hidden: int = Field(800, ge=1, description="inner width of that MLP (scripts of He et al.)")


CARD = MethodCard(
    id="prefix",
    title="Prefix tuning",
    kind="edits",
    domains=("any",),
    options=PrefixOptions,
    implementation="polyadapt.methods.prefix.method:Prefix",
    paper=Paper("Prefix-Tuning: Optimizing Continuous Prompts for Generation", "2101.00190", 2021),
    ports=("attention",),
    exports=("slots", "merged", "bank"),
    learning_rate=1e-2,
    identity_at_start="a prefix takes softmax mass from the real keys from the first step on",
)
