"""Every model reference that core knows. Light: only cards and options are imported."""

from __future__ import annotations

from collections.abc import Iterable

from polyadapt.families.card import FamilyCard
from polyadapt.sources import packages
from polyadapt.sources.card import ModelCard
from polyadapt.sources.families import core_families
from polyadapt.sources.options import (
    DiffusersOptions,
    HfOptions,
    MergedOptions,
    PackagedImageOptions,
    PackagedTextOptions,
    TimmOptions,
    TinyOptions,
    TorchaudioOptions,
    WhisperOptions,
)

_OWN = "stated by each model's source"

SCHEMES: tuple[ModelCard, ...] = (
    ModelCard(
        reference="timm:",
        title="Image models of timm, by name or from a folder",
        task="classification",
        family="any",
        options=TimmOptions,
        implementation="polyadapt.sources.timm:load",
        licence=_OWN,
        extra="timm",
        notes="Weights come from local files; from the hub only with allow_download=true.",
    ),
    ModelCard(
        reference="hf:",
        title="Models of transformers, from a folder or by their id on the hub",
        task="any",
        family="any",
        options=HfOptions,
        implementation="polyadapt.sources.hf:load",
        licence=_OWN,
        extra="transformers",
        notes="Weights come from local files (safetensors first); from the hub only with allow_download=true. Code from a repository is never run.",
    ),
    ModelCard(
        reference="torchaudio:",
        title="Speech models of torchaudio",
        task="features",
        family="wav2vec2-torchaudio",
        options=TorchaudioOptions,
        implementation="polyadapt.sources.torchaudio:load",
        licence=_OWN,
        extra="torchaudio",
        notes="Weights come from local files; torchaudio downloads them only with allow_download=true.",
    ),
    ModelCard(
        reference="diffusers:",
        title="U-Nets of diffusers, from a folder or by their id on the hub",
        task="denoising",
        family="unet",
        options=DiffusersOptions,
        implementation="polyadapt.sources.diffusers:load",
        licence=_OWN,
        extra="diffusers",
        notes="Weights come from local safetensors; from the hub only with allow_download=true.",
    ),
    ModelCard(
        reference="merged:",
        title="A base with an artifact's folder folded into its weights",
        task="any",
        family="any",
        options=MergedOptions,
        implementation="polyadapt.interop.merged:load",
        licence=_OWN,
        offline=True,
        notes="For what is learned on top, such as one more language of master-asr. It has an identity of its own.",
    ),
)

PACKAGED: tuple[ModelCard, ...] = (
    ModelCard(
        reference="polyadapt:efficientnet-lite0",
        title="EfficientNet-Lite0, ImageNet",
        task="classification",
        family="efficientnet",
        options=PackagedImageOptions,
        implementation="polyadapt.sources.packaged:load_efficientnet_lite0",
        parameters=4652008,
        licence=packages.EFFICIENTNET_LITE0.licence,
        offline=True,
        package=packages.EFFICIENTNET_LITE0,
        extra="timm",
    ),
    ModelCard(
        reference="polyadapt:minilm",
        title="all-MiniLM-L6-v2, sentence encoder",
        task="features",
        family="bert",
        options=PackagedTextOptions,
        implementation="polyadapt.sources.packaged:load_minilm",
        parameters=22713216,
        licence=packages.MINILM.licence,
        offline=True,
        package=packages.MINILM,
        extra="transformers",
    ),
    ModelCard(
        reference="polyadapt:smollm2-135m",
        title="SmolLM2-135M-Instruct",
        task="causal-lm",
        family="llama",
        options=PackagedTextOptions,
        implementation="polyadapt.sources.packaged:load_smollm2",
        parameters=134515008,
        licence=packages.SMOLLM2.licence,
        offline=True,
        package=packages.SMOLLM2,
        extra="transformers",
        notes="4-bit weights turned into float32: slightly worse than the original.",
    ),
    ModelCard(
        reference="polyadapt:whisper-tiny.en",
        title="Whisper tiny.en, English speech recognition",
        task="transcription",
        family="whisper",
        options=WhisperOptions,
        implementation="polyadapt.sources.packaged:load_whisper",
        parameters=37760256,
        licence=packages.WHISPER_TINY_EN.licence,
        offline=True,
        package=packages.WHISPER_TINY_EN,
        extra="transformers",
        notes="Weights rounded to half precision by the conversion.",
    ),
    ModelCard(
        reference="polyadapt:whisper-base",
        title="Whisper base, multilingual speech recognition",
        task="transcription",
        family="whisper",
        options=WhisperOptions,
        implementation="polyadapt.sources.packaged:load_whisper",
        parameters=72593920,
        licence=packages.WHISPER_BASE.licence,
        offline=True,
        package=packages.WHISPER_BASE,
        extra="transformers",
        notes="Weights rounded to half precision by the conversion.",
    ),
)


def tiny_cards(families: Iterable[FamilyCard]) -> tuple[ModelCard, ...]:
    """A card `polyadapt:tiny-FAMILY` for each family: random weights, no network, no fetch."""
    return tuple(
        ModelCard(
            reference=f"polyadapt:tiny-{family.id}",
            title=f"{family.title}, tiny and random",
            task=family.tasks[0],
            family=family.id,
            options=TinyOptions,
            implementation="polyadapt.sources.tiny:load",
            licence="none: random weights",
            offline=True,
            extra=family.extra,
            notes="For tests and trials; other tasks of the family by ?task=.",
        )
        for family in families
    )


CARDS: tuple[ModelCard, ...] = SCHEMES + PACKAGED + tiny_cards(core_families().values())
