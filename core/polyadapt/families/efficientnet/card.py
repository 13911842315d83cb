"""EfficientNet and its relatives of timm. Papers: 1905.11946, 2104.00298, 1905.02244."""

from __future__ import annotations

from polyadapt.families.card import ExportRecipe, FamilyCard, Op

_RECIPE = ExportRecipe(trace={"batch": 2}, check=({"batch": 1}, {"batch": 3}))

CARD = FamilyCard(
    id="efficientnet",
    title="EfficientNet, MobileNet, MnasNet (timm's EfficientNet blocks)",
    media=("image",),
    architecture="convolutional",
    libraries={"timm": ">=1.0.20"},
    classes=("timm.EfficientNet", "timm.MobileNetV3"),
    tasks=("classification", "features"),
    implementation="polyadapt.families.efficientnet.model:EfficientNetFamily",
    sites={
        "embed": Op("conv_stem"),
        "embed.norm": Op("bn1", output="drop"),
        "stage.{i}.block.{j}.conv.{k}": Op("blocks.{i}.{j}", each="conv"),
        "stage.{i}.block.{j}.norm{k}": Op("blocks.{i}.{j}", each="norm", start=1, output="drop"),
        "neck": Op("conv_head"),
        "norm": Op(("bn2", "norm_head"), output="drop"),
    },
    default_sites={"lowrank": ("stage.*.conv.*",), "scale": ("stage.*.conv.*",)},
    blocks=("blocks.{i}.{j}",),
    stem=("conv_stem", "bn1"),
    export={"classification": _RECIPE, "features": _RECIPE},
    extra="timm",
    notes="Convolutions of a block are numbered as they run, squeeze-and-excitation included. Picture sizes are fixed at export: symbolic ones make 'same' padding take minutes.",
)
