"""ResNet of timm. Paper: Deep Residual Learning for Image Recognition (1512.03385)."""

from __future__ import annotations

from polyadapt.families.card import ExportRecipe, FamilyCard, Op

_RECIPE = ExportRecipe(trace={"batch": 2}, check=({"batch": 1}, {"batch": 3}))

CARD = FamilyCard(
    id="resnet",
    title="ResNet and its relatives with timm's basic and bottleneck blocks",
    media=("image",),
    architecture="convolutional",
    libraries={"timm": ">=1.0.20"},
    classes=("timm.ResNet",),
    tasks=("classification", "features"),
    implementation="polyadapt.families.resnet.model:ResNetFamily",
    sites={
        "embed": Op(("conv1.0", "conv1")),
        "embed.norm": Op("bn1", output="drop"),
        "stage.{i}.block.{j}.conv.{k}": Op("layer{i}.{j}", each="conv"),
        "stage.{i}.block.{j}.norm{k}": Op("layer{i}.{j}", each="norm", start=1, output="drop"),
    },
    default_sites={"lowrank": ("stage.*.conv.*",), "scale": ("stage.*.conv.*",)},
    blocks=("layer{i}.{j}",),
    stem=("conv1", "bn1"),
    export={"classification": _RECIPE, "features": _RECIPE},
    extra="timm",
    notes="Stages count from 1; the last convolution of a block that changes size is the one beside it (downsample). Of a deep stem, `embed` is the first convolution.",
)
