"""`hf:FOLDER` and `hf:ID`: models of transformers, from local files or, where allowed, from the hub.

A folder holds `config.json`, the weights (safetensors first; `.bin` is read with weights_only=True), and for
texts a tokenizer. Code from a repository is never run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyadapt.errors import MissingExtraError, UserError
from polyadapt.files import read_json
from polyadapt.sources.card import ModelCard
from polyadapt.sources.common import check_labels, local_directory, make_task, seeded, without_chance
from polyadapt.sources.compat import import_transformers
from polyadapt.sources.families import class_names, core_families, open_family
from polyadapt.sources.hf_inputs import own_language, preprocessing
from polyadapt.sources.options import HfOptions, within_positions
from polyadapt.sources.symbols import ctc_details

if TYPE_CHECKING:
    from torch import nn

    from polyadapt.families.base import Family
    from polyadapt.families.card import FamilyCard
    from polyadapt.model import Model

logger = logging.getLogger(__name__)

_TASKS_BY_ENDING = (
    ("ForCTC", "ctc"),
    ("ForCausalLM", "causal-lm"),
    ("LMHeadModel", "causal-lm"),
    ("Classification", "classification"),
    ("ForTextToWaveform", "synthesis"),
)
_ENDINGS_BY_TASK = {
    "ctc": ("ForCTC",),
    "causal-lm": ("ForCausalLM", "LMHeadModel"),
    "seq2seq-lm": ("ForConditionalGeneration",),
    "transcription": ("ForConditionalGeneration",),
}
_BARE = ("Encoder", "Model")
"""Other tasks take the bare encoder where there is one, else the bare model."""


def load(card: ModelCard, name: str, options: HfOptions, families: Iterable[FamilyCard] | None = None) -> Model:
    """Load a model of transformers.

    Args:
        card: of the scheme.
        name: a folder, or an id on the hub.
        options: see `HfOptions`.
        families: cards to find the model's family in; core's own by default.

    Raises:
        UserError: the files are not there or do not fit, or no family knows the model.
    """
    reference = f"hf:{name}"
    import_transformers()
    directory = local_directory(name) or _from_hub(name, options, reference)
    return from_folder(directory, options, reference, families)


def from_folder(directory: Path, options: HfOptions, reference: str, families: Iterable[FamilyCard] | None = None, licences: Mapping[str, str] | None = None) -> Model:
    """Load from a folder; nothing here touches the network.

    Raises:
        UserError: the files do not fit, or no family knows the model.
        MissingExtraError: a library that the files need is not installed.
    """
    from polyadapt.model import build_model
    from polyadapt.sources.processors import make_processor

    import_transformers()
    config = _read_config(directory, options, reference)
    family, candidates = _family(config, families, reference)
    kind = make_task(family, options.task, _inferred_task(config, family, options.task, reference)).kind
    backbone = _build(_pick_class(candidates, kind, config, options, reference), config, directory, options, reference)
    task = make_task(family, kind, labels=_labels(backbone, config, kind, options, reference), details=_details(backbone, config, directory, kind, options, reference))
    options = within_positions(options, family.positions(backbone), family.longest_s(backbone))
    spec, assets, front, generation = preprocessing(directory, backbone, family.signature(backbone, task), options, reference)
    known = licences if licences is not None else {directory.name: "not stated by the source; look it up before you share the bundle"}
    return build_model(family, backbone, task, make_processor(spec, assets), reference=reference, front=front, licences=known, generation=generation)


def build_backbone(directory: Path, options: HfOptions, reference: str, families: Iterable[FamilyCard] | None = None) -> nn.Module:
    """The library's module of a folder, for the task in `options`.

    Raises:
        UserError: the files do not fit, or no family knows the model.
        MissingExtraError: a library that the files need is not installed.
    """
    config = _read_config(directory, options, reference)
    family, candidates = _family(config, families, reference)
    kind = make_task(family, options.task, _inferred_task(config, family, options.task, reference)).kind
    return _build(_pick_class(candidates, kind, config, options, reference), config, directory, options, reference)


def _from_hub(name: str, options: HfOptions, reference: str) -> Path:
    from polyadapt.sources.hub import CONFIGS, hub_folder

    if options.gguf_file or not options.pretrained:
        patterns = (options.gguf_file,) if options.gguf_file else ()
        return hub_folder(name, CONFIGS + patterns, options.allow_download, reference, options.revision)
    directory = hub_folder(name, (*CONFIGS, "*.safetensors"), options.allow_download, reference, options.revision)
    if any(directory.glob("*.safetensors")):
        return directory
    return hub_folder(name, (*CONFIGS, "pytorch_model*.bin"), options.allow_download, reference, options.revision)


def _read_config(directory: Path, options: HfOptions, reference: str) -> Any:
    from transformers import AutoConfig

    arguments: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if options.gguf_file:
        if importlib.util.find_spec("gguf") is None:
            raise MissingExtraError("gguf", "text", f"{reference}, a .gguf file,")
        if not (directory / options.gguf_file).is_file():
            raise UserError(f"{reference}: no file {directory / options.gguf_file}")
        arguments["gguf_file"] = options.gguf_file
    elif not (directory / "config.json").is_file():
        raise UserError(f"{reference}: no config.json in {directory}; give the folder that transformers saved the model to")
    try:
        config = AutoConfig.from_pretrained(directory, **arguments)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{reference}: transformers cannot read the config in {directory} ({str(error).splitlines()[0]})") from error
    if options.num_classes is not None:
        if options.pretrained:
            raise UserError(f"{reference}: num_classes needs pretrained=false; a pretrained head keeps its classes, new ones are taught by a method")
        config.num_labels = options.num_classes
    return config


def _family(config: Any, families: Iterable[FamilyCard] | None, reference: str) -> tuple[Family, tuple[str, ...]]:
    """The family that knows the model type, and its classes of that type."""
    import transformers

    cards = list(core_families().values() if families is None else families)
    of_type: set[str] = set()
    for name, mapping in vars(transformers.models.auto.modeling_auto).items():
        if name.endswith("_MAPPING_NAMES") and (names := mapping.get(config.model_type)):
            of_type.update([names] if isinstance(names, str) else names)
    for card in cards:
        found = tuple(name for name in class_names(card, "transformers") if name in of_type or _config_class(name) is type(config))
        if found:
            return open_family(card), found
    known = sorted({name for card in cards for name in class_names(card, "transformers")})
    raise UserError(f"{reference}: no family knows models of type {config.model_type!r}; known classes: {', '.join(known)}")


def _config_class(name: str) -> Any:
    """Config class of classes that transformers' lists leave out, such as bare encoders."""
    import transformers

    if not name.endswith("Encoder"):
        return None
    whole = getattr(transformers, f"{name.removesuffix('Encoder')}Model", None)
    return getattr(whole, "config_class", None)


def _inferred_task(config: Any, family: Family, asked: str, reference: str) -> str:
    """What the weights were saved for, where the family does that.

    Raises:
        UserError: a class head of a kind that the family does not read.
    """
    name = (getattr(config, "architectures", None) or [""])[0]
    if name.endswith("Classification") and not asked and "classification" in family.card.tasks and name not in class_names(family.card, "transformers"):
        raise UserError(f"{reference} was saved as {name}, whose class head family {family.card.id} does not read; ?task=features (or classification) takes the encoder alone")
    for ending, kind in _TASKS_BY_ENDING:
        if name.endswith(ending) and kind in family.card.tasks:
            return kind
    for kind in ("seq2seq-lm", "transcription"):
        if name.endswith("ForConditionalGeneration") and kind in family.card.tasks:
            return kind
    return "features" if name.endswith(("Model", "Encoder")) and "features" in family.card.tasks else ""


def _pick_class(candidates: tuple[str, ...], kind: str, config: Any, options: HfOptions, reference: str) -> str:
    """The class that does a task: one with its own class head only where the weights, or the user, have classes."""
    saved = (getattr(config, "architectures", None) or [""])[0]
    if kind == "classification" and not options.pooling:
        with_head = [name for name in candidates if name.endswith("Classification") and (name == saved or (not options.pretrained and options.num_classes is not None))]
        if with_head:
            return with_head[0]
    endings = _ENDINGS_BY_TASK.get(kind, _BARE)
    if kind == "ctc" and not (options.own_head and (saved.endswith(endings) or (not options.pretrained and any(name.endswith(endings) for name in candidates)))):
        endings = _BARE  # frames, over which symbols are learned
    for ending in endings:
        for name in candidates:
            if name.endswith(ending) and not any(part in name.removesuffix(ending) for part in ("For", "LMHead")):
                return name
    raise UserError(f"{reference}: none of {', '.join(candidates)} does task {kind!r}")


def _build(class_name: str, config: Any, directory: Path, options: HfOptions, reference: str) -> nn.Module:
    """The library's module in float32, with scaled-dot-product attention where it has it."""
    import torch
    import transformers

    from polyadapt.sources.spectrograms import adjusted

    whole = class_name if hasattr(transformers, class_name) else f"{class_name.removesuffix('Encoder')}Model"
    cls = getattr(transformers, whole)
    arguments: dict[str, Any] = {} if not getattr(cls, "_supports_sdpa", True) else {"attn_implementation": "sdpa"}
    with seeded(options.seed):
        if not options.pretrained:
            model = cls._from_config(config, **arguments) if arguments else cls(config)
        else:
            model = _from_pretrained(cls, config, directory, options, reference, arguments)
    model = without_chance(model.to(torch.float32).eval())
    return adjusted(model if whole == class_name else model.get_encoder(), options, reference)


def _from_pretrained(cls: Any, config: Any, directory: Path, options: HfOptions, reference: str, arguments: dict[str, Any]) -> Any:
    import torch

    arguments = {**arguments, "config": config, "dtype": torch.float32, "local_files_only": True, "output_loading_info": True}
    if options.gguf_file:
        arguments["gguf_file"] = options.gguf_file
    else:
        arguments["use_safetensors"] = any(directory.glob("*.safetensors"))
        if not arguments["use_safetensors"] and not any(directory.glob("pytorch_model*.bin")):
            raise UserError(f"{reference}: no weights in {directory}; expected model.safetensors or pytorch_model.bin, or add ?pretrained=false for random weights")
    try:
        with _no_bars():
            model, report = cls.from_pretrained(directory, **arguments)
            if _only_pooler(report["missing_keys"]) and "add_pooling_layer" in inspect.signature(cls.__init__).parameters:
                model, report = cls.from_pretrained(directory, add_pooling_layer=False, **arguments)
    except (OSError, ValueError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(f"{reference}: the weights in {directory} do not fit {cls.__name__} ({str(error).splitlines()[0]})") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{reference}: the weights lack {len(missing)} tensors of {cls.__name__}, for instance {missing[0]}; choose a task that these weights were trained for by ?task="
        )
    if report.get("mismatched_keys"):
        raise UserError(f"{reference}: tensors differ in shape from {cls.__name__}: {sorted(map(str, report['mismatched_keys']))[0]}")
    return model


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Loading without the library's progress bars: only the command line prints."""
    from transformers.utils import logging as settings

    shown = settings.is_progress_bar_enabled()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            settings.enable_progress_bar()


def _only_pooler(missing: Iterable[str]) -> bool:
    """Whether all that lacks is a pooling layer, which a mean over tokens does not need."""
    names = list(missing)
    return bool(names) and all("pooler." in f"{name}." for name in names)


def _labels(backbone: Any, config: Any, kind: str, options: HfOptions, reference: str) -> tuple[str, ...]:
    if kind == "ctc" and type(backbone).__name__.endswith("ForCTC"):
        return ()  # they are its symbols
    if kind != "classification":
        return check_labels(options.labels, 0, reference)
    has_head = type(backbone).__name__.endswith("Classification")
    labels = check_labels(options.labels, int(config.num_labels) if has_head else 0, reference)
    if labels or not has_head:
        return labels
    names = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    return () if len(set(names)) != len(names) or all(name.startswith("LABEL_") for name in names) else names


def _details(backbone: Any, config: Any, directory: Path, kind: str, options: HfOptions, reference: str) -> dict[str, object]:
    if kind == "ctc" and type(backbone).__name__.endswith("ForCTC"):
        return ctc_details(directory, config, options, reference)
    if config.model_type != "whisper":
        return {}
    path = directory / "generation_config.json"
    return {"language": options.language or own_language(read_json(path, reference) if path.is_file() else {})}
