"""Entry point of the speech plugin: what it registers. Imports cards only, so that a listing stays light."""

from __future__ import annotations

from collections.abc import Callable

from polyadapt.data.card import ReaderCard
from polyadapt.hookspecs import hookimpl
from polyadapt.methods.card import MethodCard
from polyadapt_speech.convpass.card import CARD as CONVPASS
from polyadapt_speech.master_asr.card import CARD as MASTER_ASR
from polyadapt_speech.readers.card import CARDS as READERS

HOOK_API_RANGE = (1, 1)


@hookimpl
def polyadapt_register_methods(register: Callable[[MethodCard], None]) -> None:
    """Adapters of spectrogram transformers, and modules of languages."""
    register(CONVPASS)
    register(MASTER_ASR)


@hookimpl
def polyadapt_register_data(register: Callable[[ReaderCard], None]) -> None:
    """Collections of speech."""
    for card in READERS:
        register(card)
