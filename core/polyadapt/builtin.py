"""Core's own plugin: its families, methods, model references and readers, by the same hooks as anyone's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from polyadapt.hookspecs import hookimpl

HOOK_API_RANGE = (1, 1)

FAMILIES: tuple[str, ...] = ()
METHODS: tuple[str, ...] = ()
MODELS: tuple[str, ...] = ()
READERS: tuple[str, ...] = ()


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
