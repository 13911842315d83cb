"""`polyadapt:NAME`: models whose weights a package carries, loaded from the cache that `polyadapt fetch` fills."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyadapt.errors import UserError, nearest
from polyadapt.files import replacing_directory
from polyadapt.sources.card import ModelCard
from polyadapt.sources.common import check_labels, make_task, read_state, seeded
from polyadapt.sources.compat import import_timm, import_transformers
from polyadapt.sources.families import family_by_id
from polyadapt.sources.fetch import fetched_directory, package_directory
from polyadapt.sources.options import PackagedImageOptions, PackagedTextOptions, WhisperOptions
from polyadapt.sources.processors import audio_spec, image_spec, make_processor
from polyadapt.sources.spoken import spoken_choices

if TYPE_CHECKING:
    import torch

    from polyadapt.families.card import FamilyCard
    from polyadapt.model import Model

logger = logging.getLogger(__name__)

LITE0_FILE = "efficientnet-lite0-57934424.pth"
SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_efficientnet_lite0(card: ModelCard, name: str, options: PackagedImageOptions, families: Iterable[FamilyCard] | None = None) -> Model:
    """EfficientNet-Lite0 with ImageNet weights.

    Raises:
        UserError: the weights have not been fetched or are damaged.
    """
    from polyadapt.model import build_model
    from polyadapt.sources.front import ImageNormalize
    from polyadapt.sources.timm import imagenet_labels

    import_timm()
    import timm

    with seeded(options.seed):
        backbone: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # Families read the picture's size from here, so that the exported graph takes the pictures that the processor makes.
    backbone.pretrained_cfg = {**dict(backbone.pretrained_cfg), "input_size": (3, options.image_size_px, options.image_size_px)}
    if options.pretrained:
        path = _directory(card) / LITE0_FILE
        backbone.load_state_dict(in_order(read_state(path, card.reference), backbone.state_dict(), path), strict=True)
    family = family_by_id(card.family, families)
    task = make_task(family, options.task, labels=check_labels(options.labels, 1000, card.reference) or imagenet_labels())
    size = (options.image_size_px, options.image_size_px)
    front = ImageNormalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    processor = make_processor(image_spec(size, crop_fraction=0.875, interpolation="bicubic"))
    return build_model(family, backbone, task, processor, reference=card.reference, front=front, licences={card.title: card.licence})


def in_order(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """Values of one state dict under the names of another with the same order and shapes.

    Raises:
        UserError: the number of tensors or a shape differs.
    """
    if len(source) != len(target):
        raise UserError(f"{path} holds {len(source)} tensors, the model has {len(target)}; the file is not the one that was checked")
    for (theirs, value), (ours, wanted) in zip(source.items(), target.items(), strict=True):
        if value.shape != wanted.shape:
            raise UserError(f"{path}: tensor {theirs} has shape {tuple(value.shape)}, {ours} of the model has {tuple(wanted.shape)}")
    return dict(zip(target, source.values(), strict=True))


def load_minilm(card: ModelCard, name: str, options: PackagedTextOptions, families: Iterable[FamilyCard] | None = None) -> Model:
    """all-MiniLM-L6-v2, a sentence encoder: features are the mean over tokens.

    Raises:
        UserError: the weights have not been fetched or are damaged.
    """
    from polyadapt.sources.hf import from_folder
    from polyadapt.sources.options import HfOptions

    directory = _directory(card)
    settings = HfOptions(task=options.task or card.task, labels=options.labels, maximum_tokens=options.maximum_tokens)
    return from_folder(directory, settings, card.reference, families, licences={card.title: card.licence})


def load_smollm2(card: ModelCard, name: str, options: PackagedTextOptions, families: Iterable[FamilyCard] | None = None) -> Model:
    """SmolLM2-135M-Instruct from 4-bit weights, turned into float32.

    Reading the 4-bit file takes half a minute, so the first call keeps the float32 form (0.5 GB) beside it.

    Raises:
        UserError: the weights have not been fetched or are damaged, or the float32 form cannot be written.
        MissingExtraError: gguf is not installed (the first call needs it).
    """
    from polyadapt.sources.hf import from_folder
    from polyadapt.sources.options import HfOptions

    import_transformers()
    converted = package_directory(card.reference) / "float32"
    if not all((converted / part).is_file() for part in ("config.json", "model.safetensors", "tokenizer.json")):
        _convert_gguf(_directory(card), SMOLLM2_FILE, converted, card)
    settings = HfOptions(task=options.task or card.task, labels=options.labels, maximum_tokens=options.maximum_tokens)
    return from_folder(converted, settings, card.reference, families, licences={card.title: card.licence})


def _convert_gguf(directory: Path, file: str, target: Path, card: ModelCard) -> None:
    """Write a .gguf file's weights, config and tokenizer as safetensors in float32 and JSON."""
    from polyadapt.sources.hf import build_backbone
    from polyadapt.sources.hf_inputs import tokenizer_file
    from polyadapt.sources.options import HfOptions
    from polyadapt.tensors import save_tensors

    logger.info("%s is turned into float32 once, kept in %s", card.reference, target)
    backbone: Any = build_backbone(directory, HfOptions(task=card.task, gguf_file=file), card.reference)
    with replacing_directory(target) as staging:
        # transformers refuses to save what came from 4 bits, though it is plain float32 by now.
        config = type(backbone.config).from_dict({key: value for key, value in backbone.config.to_dict().items() if key != "quantization_config"})
        config.architectures = [type(backbone).__name__]
        config.save_pretrained(staging)
        tied = set(backbone.all_tied_weights_keys)
        save_tensors(staging / "model.safetensors", {name: value for name, value in backbone.state_dict().items() if name not in tied}, {"format": "pt"})
        if tokenizer_file(directory, file, staging / "tokenizer.json") is None:
            raise UserError(f"{card.reference}: transformers could not read the tokenizer in {file}; install a transformers version that polyadapt was tested with")


def load_whisper(card: ModelCard, name: str, options: WhisperOptions, families: Iterable[FamilyCard] | None = None) -> Model:
    """Whisper from a CTranslate2 file; the log-mel spectrogram is part of the graph.

    Task `transcription` keeps encoder and decoder, `features` and `classification` the encoder alone.

    Raises:
        UserError: the weights have not been fetched or are damaged, or the language is unknown.
        MissingExtraError: transformers is not installed.
    """
    from polyadapt.model import build_model
    from polyadapt.sources.logmel import LogMel
    from polyadapt.sources.whisper import load_whisper as read_whisper

    import_transformers()
    directory = _directory(card)
    family = family_by_id(card.family, families)
    task = make_task(family, options.task or card.task, labels=options.labels, details={"language": options.language})
    generation = whisper_generation(directory, options.language, card.reference)
    backbone: Any = read_whisper(directory / "model.bin")
    bands = int(backbone.config.num_mel_bins)
    if task.kind != "transcription":
        backbone, generation = backbone.model.encoder, {}
        check_labels(options.labels, 0, card.reference)
    spec = audio_spec(seconds=options.pad_to_seconds, maximum_seconds=options.maximum_seconds)
    processor = make_processor(spec, {"tokenizer": directory / "tokenizer.json"})
    licences = {card.title: card.licence}
    return build_model(family, backbone, task, processor, reference=card.reference, front=LogMel(bands), licences=licences, generation=generation)


def whisper_generation(directory: Path, language: str, reference: str) -> dict[str, Any]:
    """Settings of decoding: ids that begin and end a transcript, and ids that are never, or not first, chosen.

    Raises:
        UserError: the model does not know the language.
    """
    tokens = {entry["content"]: int(entry["id"]) for entry in json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]}
    start, end, plain = tokens["<|startoftranscript|>"], tokens["<|endoftext|>"], tokens["<|notimestamps|>"]
    languages: dict[str, int] = {}
    if reference.endswith(".en"):
        if language != "en":
            raise UserError(f"{reference} understands English only, asked was {language!r}; use polyadapt:whisper-base")
        prefix = [start, plain]
    else:
        languages = {content[2:-2]: token for content, token in tokens.items() if 6 <= len(content) <= 7 and content[2:-2].isalpha()}
        if language not in languages:
            raise UserError(f"{reference} knows no language {language!r}{nearest(language, languages)}")
        prefix = [start, languages[language], tokens["<|transcribe|>"], plain]
    suppressed = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return {
        "start_ids": prefix,
        "eos_ids": [end],
        "suppress_ids": suppressed.get("suppress_ids", []),
        "begin_suppress_ids": suppressed.get("suppress_ids_begin", []),
        **spoken_choices(languages, plain),
    }


def _directory(card: ModelCard) -> Path:
    """The checked files of a card's package."""
    if card.package is None:
        raise UserError(f"{card.reference} names no package; it cannot be fetched")
    return fetched_directory(card.reference, card.package)
