"""How raw input becomes tensors for a model of transformers: read from the files beside its weights."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyadapt.errors import UserError, nearest
from polyadapt.files import read_json, replacing_file
from polyadapt.sources.fetch import cache_directory
from polyadapt.sources.options import HfOptions
from polyadapt.sources.processors import array_spec, audio_spec, image_spec, parts_spec, text_spec
from polyadapt.sources.spoken import spoken_choices

if TYPE_CHECKING:
    from torch import nn

    from polyadapt.signature import Signature

Preprocessing = tuple[dict[str, Any], dict[str, Path], "nn.Module | None", dict[str, Any]]

logger = logging.getLogger(__name__)

_TOKENIZER_FILES = ("tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")

MULTILINGUAL = 51865  # tokens of Whisper's vocabulary where it knows more than English

_PILLOW_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


def preprocessing(directory: Path, backbone: Any, signature: Signature, options: HfOptions, reference: str) -> Preprocessing:
    """Processor's spec, its assets, the front of the graph and the settings of generation.

    Args:
        directory: folder of the model's files.
        backbone: the library's module.
        signature: what the family takes, before any front.
        options: of the reference.
        reference: for messages.

    Raises:
        UserError: a file beside the weights is broken, or the language is unknown.
    """
    shapes = {spec.name: spec.shape for spec in signature.inputs}
    settings = _settings(directory)
    specs: dict[str, dict[str, Any]] = {}
    assets: dict[str, Path] = {}
    front: nn.Module | None = None
    if "image" in shapes:
        specs["image"], front = _image(shapes["image"], settings)
    if "mel" in shapes or "audio" in shapes or "input_values" in shapes:
        specs["audio"], front = _sound(shapes, settings, options, reference)
    if "input_ids" in shapes:
        specs["text"] = text_spec(pad_id=pad_id(backbone.config), maximum_tokens=options.maximum_tokens, types="token_type_ids" if "token_type_ids" in shapes else None)
    if "input_ids" in shapes or "decoder_input_ids" in shapes:
        tokenizer = tokenizer_file(directory, options.gguf_file)
        if tokenizer is not None:
            assets["tokenizer"] = tokenizer
    if not specs:
        spec = array_spec(signature) if len(shapes) == 1 else {"kind": "tensors"}
    else:
        spec = parts_spec(**specs) if len(specs) > 1 else next(iter(specs.values()))
    return spec, assets, front, _generation(directory, backbone, shapes, options, reference)


def tokenizer_file(directory: Path, gguf_file: str = "", target: Path | None = None) -> Path | None:
    """The folder's `tokenizer.json`, or one made from the tokenizer it has; None when that has no such form.

    Args:
        directory: folder of the model's files.
        gguf_file: a .gguf file in it that holds the tokenizer.
        target: write a converted tokenizer there in any case; by default it goes to the cache, under a name made from the files.
    """
    if target is None and (directory / "tokenizer.json").is_file():
        return directory / "tokenizer.json"
    if target is None:
        target = cache_directory() / "tokenizers" / f"{_fingerprint(directory)}.json"
    if target.is_file():
        return target
    if not gguf_file and not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    arguments = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False, **arguments)
    except (ValueError, OSError, KeyError, TypeError, ImportError) as error:
        logger.warning("%s has a tokenizer that cannot be read (%s); texts must be given as token ids", directory, error)
        return None
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None:
        return None
    with replacing_file(target) as staging:
        inner.save(str(staging))
    return target


def pad_id(config: Any) -> int:
    """The id that fills texts up: its own, or an end token, or 0. Masks keep it from being seen."""
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(config, name, None)
        if isinstance(value, (list, tuple)):
            value = value[0] if value else None
        if value is None and hasattr(config, "text_config"):
            value = getattr(config.text_config, name, None)
        if isinstance(value, int) and value >= 0:
            return value
    return 0


def _settings(directory: Path) -> Mapping[str, Any]:
    """What the library saved about pre-processing; empty when it saved nothing."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (directory / name).is_file():
            found: dict[str, Any] = read_json(directory / name, f"hf:{directory.name}")
            if isinstance(found, dict):
                for part in ("image_processor", "feature_extractor"):
                    found = found[part] if isinstance(found.get(part), dict) else found
                return found
    return {}


def _image(shape: tuple[int | str, ...], settings: Mapping[str, Any]) -> tuple[dict[str, Any], nn.Module]:
    from polyadapt.sources.front import ImageNormalize

    channels = int(shape[1])
    height, width = (size if isinstance(size, int) else 224 for size in shape[2:])
    crops = bool(settings.get("do_center_crop", False))
    short = settings.get("size", {})
    short_px = short.get("shortest_edge") if isinstance(short, Mapping) else None
    fraction = height / short_px if crops and isinstance(short_px, int) and short_px >= height else 1.0
    interpolation = _PILLOW_FILTERS.get(settings.get("resample", 3), "bicubic")
    spec = image_spec((height, width), crop_fraction=fraction, resize="crop" if crops else "squash", interpolation=interpolation, channels=channels)
    return spec, ImageNormalize(settings.get("image_mean", (0.5,) * channels), settings.get("image_std", (0.5,) * channels))


def _sound(shapes: Mapping[str, tuple[int | str, ...]], settings: Mapping[str, Any], options: HfOptions, reference: str) -> tuple[dict[str, Any], nn.Module | None]:
    from polyadapt.sources.fbank import SAMPLE_RATE_HZ, KaldiFbank, heard_spec
    from polyadapt.sources.front import WaveNormalize
    from polyadapt.sources.logmel import LogMel

    rate_hz = int(settings.get("sampling_rate", SAMPLE_RATE_HZ))
    if rate_hz != SAMPLE_RATE_HZ and "audio" not in shapes:
        raise UserError(f"{reference} hears spectrograms of {rate_hz} Hz, and ours are of {SAMPLE_RATE_HZ} Hz; use a checkpoint for {SAMPLE_RATE_HZ} Hz")
    if "input_values" in shapes:
        frames, bands = (int(size) for size in shapes["input_values"][1:])
        mean, deviation = (float(settings.get("mean", -4.2677393)), float(settings.get("std", 4.5689974))) if settings.get("do_normalize", True) else (0.0, 0.5)
        return heard_spec(frames, options.maximum_seconds), KaldiFbank(bands, frames, mean, deviation)  # which divides by twice the deviation
    spec = audio_spec(sample_rate_hz=rate_hz, seconds=options.pad_to_seconds, maximum_seconds=options.maximum_seconds)
    if "mel" in shapes:
        return spec, LogMel(int(shapes["mel"][1]))
    return spec, WaveNormalize() if settings.get("do_normalize", True) else None


def _generation(directory: Path, backbone: Any, shapes: Mapping[str, tuple[int | str, ...]], options: HfOptions, reference: str) -> dict[str, Any]:
    """Ids that begin and end a text; empty where nothing is generated."""
    if not hasattr(backbone, "generation_config") and "decoder_input_ids" not in shapes:
        return {}
    path = directory / "generation_config.json"
    saved = read_json(path, reference) if path.is_file() else {}
    end = saved.get("eos_token_id", getattr(backbone.config, "eos_token_id", None))
    made: dict[str, Any] = {"eos_ids": [end] if isinstance(end, int) else list(end or [])}
    if "decoder_input_ids" in shapes:
        start = saved.get("decoder_start_token_id", getattr(backbone.config, "decoder_start_token_id", None))
        made["start_ids"] = [] if start is None else [int(start)]
        if backbone.config.model_type == "whisper":
            made["start_ids"] += _whisper_prefix(saved, options.language or own_language(saved), int(backbone.config.vocab_size), reference)
            made["suppress_ids"] = saved.get("suppress_tokens") or []
            made["begin_suppress_ids"] = saved.get("begin_suppress_tokens") or []
            languages = {name[2:-2]: int(token) for name, token in (saved.get("lang_to_id") or {}).items()}
            plain = saved.get("no_timestamps_token_id")
            made |= spoken_choices(languages, plain if plain is not None and int(plain) + 1 < int(backbone.config.vocab_size) else None)
    return made


def own_language(saved: Mapping[str, Any]) -> str:
    """The language that a Whisper checkpoint was tuned to, by what its generation settings name or force; English where they are silent."""
    languages = {int(token): name[2:-2] for name, token in (saved.get("lang_to_id") or {}).items()}
    named = str(saved.get("language") or "").lower().removeprefix("<|").removesuffix("|>")
    if named and named not in languages.values():
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        named = TO_LANGUAGE_CODE.get(named, named)
    forced = (languages.get(pair[-1]) for pair in saved.get("forced_decoder_ids") or () if isinstance(pair, list) and pair)
    return named or next((name for name in forced if name), "en")


def _whisper_prefix(saved: Mapping[str, Any], language: str, vocabulary: int, reference: str) -> list[int]:
    """Language, task and 'no timestamps', as far as the model knows them.

    Raises:
        UserError: a language that the model does not know, or a multilingual model whose settings do not say how it is told one.
    """
    prefix: list[int] = []
    languages = saved.get("lang_to_id") or {}
    lacking = "task_to_id" if languages and "transcribe" not in (saved.get("task_to_id") or {}) else "lang_to_id" if not languages and vocabulary >= MULTILINGUAL else ""
    if lacking:
        raise UserError(f"{reference} understands several languages, and its generation_config.json has no {lacking}; copy that file from the checkpoint that it was made from")
    if languages:
        if f"<|{language}|>" not in languages:
            raise UserError(f"{reference} knows no language {language!r}{nearest(language, [name[2:-2] for name in languages])}")
        prefix += [int(languages[f"<|{language}|>"]), int(saved["task_to_id"]["transcribe"])]
    elif language != "en":
        raise UserError(f"{reference} understands English only, asked was {language!r}")
    if saved.get("no_timestamps_token_id") is not None:
        prefix.append(int(saved["no_timestamps_token_id"]))
    return prefix


def _fingerprint(directory: Path) -> str:
    """A name for what a folder holds, from the names, sizes and times of its files."""
    facts = sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in os.scandir(directory) if entry.is_file())
    return hashlib.sha256(repr((str(directory.resolve()), facts)).encode()).hexdigest()[:32]
