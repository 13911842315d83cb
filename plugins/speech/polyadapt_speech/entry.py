"""Entry point of the speech plugin: what it registers. Imports cards only, so that a listing stays light."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from polyadapt.data.card import ReaderCard
from polyadapt.families.card import FamilyCard
from polyadapt.hookspecs import hookimpl
from polyadapt.methods.card import MethodCard
from polyadapt.sources.card import ModelCard
from polyadapt_speech.conformer.card import CARD as CONFORMER
from polyadapt_speech.convpass.card import CARD as CONVPASS
from polyadapt_speech.dense_moa.card import CARD as DENSE_MOA
from polyadapt_speech.master_asr.card import CARD as MASTER_ASR
from polyadapt_speech.readers.card import CARDS as READERS
from polyadapt_speech.soft_moa.card import CARD as SOFT_MOA
from polyadapt_speech.usat.card import CARD as USAT
from polyadapt_speech.usat.family.card import CARD as VOICE
from polyadapt_speech.usat.voices.card import CARDS as VOICES

if TYPE_CHECKING:
    import click

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
    """Adapters of spectrogram transformers and of voices, and modules of languages."""
    for card in (CONFORMER, CONVPASS, DENSE_MOA, MASTER_ASR, SOFT_MOA, USAT):
        register(card)


@hookimpl
def polyadapt_register_data(register: Callable[[ReaderCard], None]) -> None:
    """Collections of speech."""
    for card in READERS:
        register(card)


@hookimpl
def polyadapt_register_commands(cli: click.Group) -> None:
    """What prepares and trains a voice that speaks as whom it hears."""
    from polyadapt_speech.usat.training.commands import usat_corpus, usat_train

    cli.add_command(usat_corpus)
    cli.add_command(usat_train)
