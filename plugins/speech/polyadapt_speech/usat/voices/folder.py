"""Trained voices as folders, read by the reference `usat:FOLDER`.

`config.json` (format, sizes of the network, digest of the weights, provenance), `model.safetensors`, and `phonemes.json`,
which is the start voice's own json: its phonemes, its language and the manner that it was tuned by.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from polyadapt.errors import UserError, unknown
from polyadapt.files import read_json, replacing_directory, replacing_file, sha256_file, write_json
from polyadapt.model import Model
from polyadapt.sources.card import ModelCard
from polyadapt.tensors import load_tensors, save_tensors
from polyadapt_speech.usat.network.config import DecoderConfig, DurationConfig, VoiceConfig, WaveNetConfig
from polyadapt_speech.usat.network.voice import Voice
from polyadapt_speech.usat.voices.assemble import assemble
from polyadapt_speech.usat.voices.card import VoiceOptions
from polyadapt_speech.usat.voices.load import voice_model
from polyadapt_speech.usat.voices.piper import read_settings

FORMAT = 1
CONFIG, WEIGHTS, PHONEMES = "config.json", "model.safetensors", "phonemes.json"
ENTRIES = ("format", "voice", "sha256", "provenance")
PARTS = {"flow": WaveNetConfig, "durations": DurationConfig, "decoder": DecoderConfig}


def save_voice(voice: Voice, folder: Path, settings: Path, provenance: Mapping[str, Any], half: bool = False) -> None:
    """Write a voice, beside and then renamed.

    Args:
        voice: with all its parts.
        folder: is replaced where it exists.
        settings: the json of the voice that it started from.
        provenance: plain values; `licences`, by name, are the model's.
        half: keep the weights as float16, half the size; what is read is then the rounded voice.

    Raises:
        UserError: the place cannot be written, or `settings` is no json of a voice.
    """
    read_settings(settings)
    state = {name: value.half() if half else value for name, value in voice.state_dict().items()}
    with replacing_directory(folder, CONFIG) as staging:
        save_tensors(staging / WEIGHTS, state)
        shutil.copyfile(settings, staging / PHONEMES)
        head = {"format": FORMAT, "voice": asdict(voice.config), "sha256": sha256_file(staging / WEIGHTS), "provenance": dict(provenance)}
        write_json(staging / CONFIG, head)


def is_half(folder: Path) -> bool:
    """Whether a voice's weights are kept as float16."""
    return any(value.dtype == torch.float16 for value in load_tensors(folder / WEIGHTS, f"voice {folder.name}").values())


def publish(source: Path, folder: Path) -> None:
    """Put the voice of one folder into another that holds more than a voice; whoever reads between finds a digest that does not fit."""
    for name in (PHONEMES, WEIGHTS, CONFIG):
        with replacing_file(folder / name) as staging:
            shutil.copyfile(source / name, staging)


def read_voice(folder: Path) -> tuple[Voice, dict[str, Any]]:
    """Read a voice and its provenance.

    Raises:
        UserError: a file is missing or damaged, or of another version.
    """
    head = _head(folder)
    try:
        config = _config(head["voice"], f"{folder / CONFIG}")
        if sha256_file(folder / WEIGHTS) != head["sha256"]:
            raise UserError(f"{folder / WEIGHTS} is not the file that {CONFIG} describes; copy the folder again")
        state = load_tensors(folder / WEIGHTS, f"voice {folder.name}")
        return assemble(config, {name: value.float().numpy() for name, value in state.items()}, str(folder)), dict(head["provenance"])
    except FileNotFoundError as error:
        raise UserError(f"no file {folder / WEIGHTS}; copy the folder again") from error
    except (ValueError, TypeError, ArithmeticError, RuntimeError, KeyError) as error:  # sizes of which no network can be made
        raise UserError(f"{folder / CONFIG} is damaged ({type(error).__name__}: {error}); copy the folder again") from error


def load_usat(card: ModelCard, name: str, options: VoiceOptions) -> Model:
    """The reference `usat:FOLDER`.

    Raises:
        UserError: there is no such folder, or it is damaged.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; give the folder that `polyadapt speech usat-train` wrote")
    voice, provenance = read_voice(folder)
    return voice_model(voice, folder / PHONEMES, f"usat:{folder.name}", options, dict(provenance.get("licences", {})))


def _head(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    head = read_json(path, "voice")
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        found = head.get("format") if isinstance(head, dict) else type(head).__name__
        raise UserError(f"{path}: voice format {found!r}, this version reads format {FORMAT}; update polyadapt, or give the folder of a trained voice")
    _exactly(head, ENTRIES, str(path))
    return head


def _config(table: Any, where: str) -> VoiceConfig:
    """The sizes of a voice, every one of them written down."""
    _exactly(table, [field.name for field in fields(VoiceConfig)], f"{where}, voice")
    for name, part in PARTS.items():
        assert is_dataclass(part)
        _exactly(table[name], [field.name for field in fields(part)], f"{where}, voice.{name}")
    try:
        return TypeAdapter(VoiceConfig).validate_python(table)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: voice.{'.'.join(map(str, first['loc']))}: {first['msg']}; copy the folder again") from error


def _exactly(table: Any, names: Any, where: str) -> None:
    if not isinstance(table, dict):
        raise UserError(f"{where}: expected a table, found {type(table).__name__}; copy the folder again")
    for name in table:
        if name not in names:
            raise unknown(f"entry of {where}:", name, names)
    if lacking := [name for name in names if name not in table]:
        raise UserError(f"{where}: lacks {lacking[0]!r}; copy the folder again")
