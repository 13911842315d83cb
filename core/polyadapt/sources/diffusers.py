"""`diffusers:FOLDER` and `diffusers:ID`: U-Nets of diffusers, alone or out of a pipeline's folder.

Weights are read from safetensors only. Task `denoising`: noisy latents, a time step and text states to noise.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyadapt.errors import MissingExtraError, UserError
from polyadapt.files import read_json
from polyadapt.sources.card import ModelCard
from polyadapt.sources.common import check_labels, find_weights, local_directory, make_task, seeded
from polyadapt.sources.compat import import_torchvision
from polyadapt.sources.families import class_names, core_families, family_of
from polyadapt.sources.options import DiffusersOptions
from polyadapt.sources.processors import make_processor

if TYPE_CHECKING:
    from torch import nn

    from polyadapt.families.card import FamilyCard
    from polyadapt.model import Model

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.fp16.safetensors")


def load(card: ModelCard, name: str, options: DiffusersOptions, families: Iterable[FamilyCard] | None = None) -> Model:
    """Load a U-Net of diffusers.

    Args:
        card: of the scheme.
        name: a folder with a U-Net or a pipeline, or an id on the hub.
        options: see `DiffusersOptions`.
        families: cards to find the model's family in; core's own by default.

    Raises:
        UserError: the files are not there or do not fit, or no family knows the model.
        MissingExtraError: diffusers is not installed.
    """
    from polyadapt.model import build_model

    reference = f"diffusers:{name}"
    if importlib.util.find_spec("diffusers") is None:
        raise MissingExtraError("diffusers", "diffusers", f"model {reference}")
    import_torchvision()
    directory = _unet_folder(local_directory(name) or _from_hub(name, options, reference), options, reference)
    cards = tuple(core_families().values() if families is None else families)
    backbone = _build(directory, options, reference, cards)
    family = family_of(backbone, "diffusers", cards)
    check_labels(options.labels, 0, reference)
    task = make_task(family, options.task)
    licences = {Path(name).name: "not stated by the source; look it up before you share the bundle"} if options.pretrained else {}
    return build_model(family, backbone, task, make_processor({"kind": "tensors"}), reference=reference, licences=licences)


def _from_hub(name: str, options: DiffusersOptions, reference: str) -> Path:
    from polyadapt.sources.hub import hub_folder

    folder = options.subfolder or "unet"
    patterns = ("model_index.json", "config.json", "*.safetensors", f"{folder}/*.json", f"{folder}/*.safetensors")
    return hub_folder(name, patterns, options.allow_download, reference, options.revision)


def _unet_folder(directory: Path, options: DiffusersOptions, reference: str) -> Path:
    """The folder that holds the network's config."""
    for candidate in [directory / options.subfolder] if options.subfolder else [directory, directory / "unet"]:
        if (candidate / "config.json").is_file():
            return candidate
    raise UserError(f"{reference}: no config.json of a U-Net in {directory}; give a folder that diffusers saved, or ?subfolder=NAME")


def _build(directory: Path, options: DiffusersOptions, reference: str, cards: tuple[FamilyCard, ...]) -> nn.Module:
    import diffusers

    config = read_json(directory / "config.json", reference)
    name = config.get("_class_name", "") if isinstance(config, dict) else ""
    known = sorted({known for card in cards for known in class_names(card, "diffusers")})
    if name not in known:
        raise UserError(f"{reference}: {directory / 'config.json'} is of class {name or 'unknown'!r}; known are {', '.join(known)}")
    cls: Any = getattr(diffusers, name)
    try:
        with seeded(options.seed):
            made: Any = _from_pretrained(cls, directory, reference) if options.pretrained else cls.from_config(config)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{reference}: {directory} does not hold a whole {name} ({str(error).splitlines()[0]})") from error
    module: nn.Module = made.eval()
    return module


def _from_pretrained(cls: Any, directory: Path, reference: str) -> Any:
    import torch

    variant = "fp16" if find_weights(directory, WEIGHTS).name == WEIGHTS[-1] else None
    arguments = {"torch_dtype": torch.float32, "use_safetensors": True, "local_files_only": True, "low_cpu_mem_usage": False}
    made, report = cls.from_pretrained(directory, variant=variant, output_loading_info=True, **arguments)
    if report["missing_keys"]:
        raise UserError(f"{reference}: the weights lack {len(report['missing_keys'])} tensors, for instance {sorted(report['missing_keys'])[0]}")
    return made
