"""Loaders of voices: a reference becomes a model of the family `voice`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polyadapt.errors import UserError
from polyadapt.families.card import FamilyCard
from polyadapt.model import Model, build_model
from polyadapt.sources.card import ModelCard
from polyadapt.sources.common import make_task
from polyadapt.sources.families import open_family
from polyadapt.sources.fetch import fetched_directory
from polyadapt.sources.processors import make_processor
from polyadapt_speech.usat.family.card import CARD as FAMILY
from polyadapt_speech.usat.family.model import NOISE_INPUTS
from polyadapt_speech.usat.network.voice import Voice
from polyadapt_speech.usat.voices.card import JOE, JOE_FILE, FolderVoiceOptions, VoiceOptions
from polyadapt_speech.usat.voices.piper import read_piper, read_settings, settings_file


def load_joe(card: ModelCard, name: str, options: VoiceOptions) -> Model:
    """The packaged voice.

    Raises:
        UserError: it has not been fetched or is damaged.
    """
    return _piper(fetched_directory(card.reference, JOE) / JOE_FILE, card.reference, options, {card.title: card.licence})


def load_piper(card: ModelCard, name: str, options: VoiceOptions) -> Model:
    """A voice of the user's own.

    Raises:
        UserError: a file is missing or damaged, or it is no voice of one speaker.
    """
    path = Path(name).expanduser()
    return _piper(path, f"piper:{path.name}", options, {path.stem: "stated by the voice's MODEL_CARD; look it up before you share the bundle"})


def load_folder(card: ModelCard, name: str, options: FolderVoiceOptions, families: Iterable[FamilyCard] | None = None) -> Model:
    """A `VitsModel` of transformers, read into this network.

    Raises:
        UserError: there is no such folder, it holds another model, or one with several speakers.
        MissingExtraError: transformers is not installed.
    """
    from polyadapt.sources.hf import from_folder
    from polyadapt_speech.usat.voices.transformers import from_transformers

    directory = Path(name).expanduser()
    if not directory.is_dir():
        raise UserError(f"no folder {directory}; give the folder of a VitsModel")
    theirs = from_folder(directory, options, f"voice:{directory.name}", families)
    if theirs.family.card.id != "vits":
        raise UserError(f"voice:{directory.name} holds a model of family {theirs.family.card.id!r}; only VitsModel is read into this network")
    family = open_family(FAMILY)
    task = make_task(family, options.task, details={NOISE_INPUTS: options.noise_inputs})
    return build_model(family, from_transformers(theirs.backbone), task, theirs.processor, reference=theirs.reference, licences=theirs.licences)


def _piper(path: Path, reference: str, options: VoiceOptions, licences: dict[str, str]) -> Model:
    return voice_model(read_piper(path)[0], settings_file(path), reference, options, licences)


def voice_model(voice: Voice, settings: Path, reference: str, options: VoiceOptions, licences: dict[str, str]) -> Model:
    """A voice with the json that belongs to it.

    Raises:
        UserError: the json is missing or none of a voice.
    """
    read = read_settings(settings)
    family = open_family(FAMILY)
    # Rate and scales that the voice was tuned by: for those who feed noise themselves.
    tuned = {name: value for name, value in asdict(read).items() if name != "language"}
    task = make_task(family, options.task, details={NOISE_INPUTS: options.noise_inputs, **tuned})
    processor = make_processor(phonemes_spec(read.language, options.maximum_tokens), {"phonemes": settings})
    return build_model(family, voice, task, processor, reference=reference, licences=licences)


def phonemes_spec(language: str, maximum_tokens: int) -> dict[str, Any]:
    """Texts, or arrays of ids, to int64 [tokens], with the asset `phonemes`."""
    inputs = {"ids": "input_ids", "mask": "attention_mask"}
    return {"kind": "phonemes", "symbols": "phonemes", "language": language, "maximum_tokens": maximum_tokens, "pad_id": 0, "inputs": inputs}
