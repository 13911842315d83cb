"""Core's own plugin: its families, methods, model references and readers, by the same hooks as anyone's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from polyadapt.hookspecs import hookimpl

HOOK_API_RANGE = (1, 1)

FAMILIES: tuple[str, ...] = (
    "polyadapt.families.ast.card:CARD",
    "polyadapt.families.bert.card:CARD",
    "polyadapt.families.clip.card:CARD",
    "polyadapt.families.efficientnet.card:CARD",
    "polyadapt.families.gpt2.card:CARD",
    "polyadapt.families.llama.card:CARD",
    "polyadapt.families.mlp_policy.card:CARD",
    "polyadapt.families.resnet.card:CARD",
    "polyadapt.families.t5.card:CARD",
    "polyadapt.families.unet.card:CARD",
    "polyadapt.families.vit.card:CARD",
    "polyadapt.families.vits.card:CARD",
    "polyadapt.families.wav2vec2.card:CARD",
    "polyadapt.families.wav2vec2_torchaudio.card:CARD",
    "polyadapt.families.whisper.card:CARD",
)
METHODS: tuple[str, ...] = (
    "polyadapt.methods.bitfit.card:CARD",
    "polyadapt.methods.bottleneck.card:CARD",
    "polyadapt.methods.dora.card:CARD",
    "polyadapt.methods.full.card:CARD",
    "polyadapt.methods.hydra.card:CARD",
    "polyadapt.methods.ia3.card:CARD",
    "polyadapt.methods.linear_probe.card:CARD",
    "polyadapt.methods.lora.card:CARD",
    "polyadapt.methods.mam.card:CARD",
    "polyadapt.methods.prefix.card:CARD",
    "polyadapt.methods.prompt.card:CARD",
)
MODELS: tuple[str, ...] = ("polyadapt.sources.catalog:CARDS",)
READERS: tuple[str, ...] = ("polyadapt.data.readers.card:CARDS",)


@hookimpl
def polyadapt_register_families(register: Callable[[Any], None]) -> None:
    """Kinds of backbones."""
    _register(register, FAMILIES)


@hookimpl
def polyadapt_register_methods(register: Callable[[Any], None]) -> None:
    """Adaptation methods."""
    _register(register, METHODS)


@hookimpl
def polyadapt_register_models(register: Callable[[Any], None]) -> None:
    """Model references."""
    _register(register, MODELS)


@hookimpl
def polyadapt_register_data(register: Callable[[Any], None]) -> None:
    """Data readers."""
    _register(register, READERS)


def _register(register: Callable[[Any], None], names: Iterable[str]) -> None:
    """Register cards named as `module:CARD`, or as `module:CARDS` for several in one module."""
    for name in names:
        module, _, attribute = name.partition(":")
        cards = getattr(import_module(module), attribute)
        for card in cards if isinstance(cards, tuple) else (cards,):
            register(card)
