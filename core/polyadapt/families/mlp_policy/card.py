"""Card of the family of small residual policies."""

from __future__ import annotations

from polyadapt.families.card import ExportRecipe, FamilyCard, Op, Span

CARD = FamilyCard(
    id="mlp-policy",
    title="Residual policy for state observations",
    media=("control",),
    architecture="perceptron",
    libraries={"torch": ">=2.9"},
    classes=("polyadapt.MlpPolicy",),
    tasks=("control",),
    sites={
        "embed": Op("embed"),
        "block.{n}.norm1": Op("blocks.{n}.norm"),
        "block.{n}.ffn.up": Op("blocks.{n}.up"),
        "block.{n}.ffn.down": Op("blocks.{n}.down"),
        "norm": Op("norm"),
        "head": Op("head"),
    },
    spans={"block.{n}.ffn": Span("block.{n}.ffn.up", "block.{n}.ffn.down")},
    default_sites={"lowrank": ("ffn.up", "ffn.down"), "scale": ("ffn.up",)},
    blocks=("blocks.{n}",),
    stem=("embed",),
    implementation="polyadapt.families.mlp_policy.model:MlpPolicyFamily",
    export={"control": ExportRecipe(trace={"batch": 2}, check=({"batch": 1}, {"batch": 5}))},
    notes="Normalisation statistics are buffers of the network: they are part of its identity and of the exported graph.",
)
