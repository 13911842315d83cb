"""Entry point of the speech plugin: what it registers. Imports cards only, so that a listing stays light."""

from __future__ import annotations

from collections.abc import Callable

from polyadapt.families.card import FamilyCard
from polyadapt.hookspecs import hookimpl
from polyadapt.methods.card import MethodCard
from polyadapt.sources.card import ModelCard
from polyadapt_speech.convpass.card import CARD as CONVPASS
from polyadapt_speech.usat.card import CARD as USAT
from polyadapt_speech.usat.family.card import CARD as VOICE
from polyadapt_speech.usat.voices.card import CARDS as VOICES

HOOK_API_RANGE = (1, 1)


@hookimpl
def polyadapt_register_models(register: Callable[[ModelCard], None]) -> None:
    """Voices."""
    for card in VOICES:
        register(card)


@hookimpl
def polyadapt_register_families(register: Callable[[FamilyCard], None]) -> None:
    """The network of voices."""
    register(VOICE)


@hookimpl
def polyadapt_register_methods(register: Callable[[MethodCard], None]) -> None:
    """Adapters of spectrogram transformers, and of voices."""
    register(CONVPASS)
    register(USAT)
