"""What all loaders share: the task, seeded random weights, local weight files, errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from polyadapt.errors import UserError, unknown
from polyadapt.signature import DEFAULT_METRICS, Task

if TYPE_CHECKING:
    import torch
    from torch import nn

    from polyadapt.families.base import Family

CHANCE: dict[str, Any] = {"apply_spec_augment": False, "layerdrop": 0.0, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "layer_drop": 0.0}
"""What libraries call chance of their own in training mode, in a configuration or a module, and its value when it is off."""

ModuleT = TypeVar("ModuleT", bound="nn.Module")


def without_chance(module: ModuleT) -> ModuleT:
    """Turn off what a library's model does by chance while it trains, beside the dropout that its layers show.

    Checkpoints of wav2vec 2.0 ask for SpecAugment and for dropping whole layers. Only a method that trains the base would meet
    them, so it would learn from other inputs than the methods beside it; and a mask of ten frames fails on short clips.
    """
    for part in module.modules():
        for holder in (part, getattr(part, "config", None)):
            for name, still in CHANCE.items():
                if hasattr(holder, name):
                    setattr(holder, name, still)
    return module


def make_task(family: Family, asked: str, inferred: str = "", labels: Sequence[str] = (), details: dict[str, object] | None = None) -> Task:
    """The task of a model that is being loaded.

    Args:
        family: knows which tasks it does.
        asked: what the user wrote; empty for none.
        inferred: what the weights are for; empty for the family's first task.
        labels: names of the classes of the model's own head.
        details: further settings of the task.

    Raises:
        UserError: the family does not do it.
    """
    kind = asked or inferred or family.card.tasks[0]
    if kind not in family.card.tasks:
        raise unknown(f"task for family {family.card.id!r}", kind, family.card.tasks)
    return Task(kind, tuple(labels) if kind == "classification" else (), DEFAULT_METRICS.get(kind, ""), dict(details or {}))


def check_labels(labels: Sequence[str], classes: int, reference: str) -> tuple[str, ...]:
    """Labels as a tuple, of which there must be none or one a class.

    Raises:
        UserError: their number differs from the head's classes, or a name occurs twice.
    """
    if labels and len(labels) != classes:
        raise UserError(f"{reference}: {len(labels)} labels were given, the head has {classes} classes; name each class once or leave labels out")
    if len(set(labels)) != len(labels):
        raise UserError(f"{reference}: a label occurs twice; give every class its own name")
    return tuple(labels)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random weights from a seed; the state of torch's default generator is put back afterwards."""
    import torch

    state = torch.random.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.random.set_rng_state(state)


def local_directory(name: str) -> Path | None:
    """The folder that a name means, or None for a name on a hub.

    A name means a folder when there is one, or when it is written like a path (`./x`, `/x`, `~/x`).

    Raises:
        UserError: it is written like a path and there is no such folder.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or "\\" in name:
        raise UserError(f"no folder {name}; give the folder that holds the config and the weights")
    return None


def read_state(path: Path, what: str) -> dict[str, torch.Tensor]:
    """Read a state dict: safetensors, or a torch file with weights_only=True (nothing from it is executed).

    Raises:
        UserError: the file is missing, damaged, or holds more than tensors.
    """
    import pickle

    import torch

    from polyadapt.tensors import load_tensors

    if path.suffix == ".safetensors":
        return load_tensors(path, what)
    if not path.is_file():
        raise UserError(f"{what}: no file {path}")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise UserError(f"{what}: {path} is no plain file of tensors ({str(error).splitlines()[0]}); convert it to safetensors") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{what}: {path} holds no state dict of tensors; convert it to safetensors")
    return content


def find_weights(directory: Path, names: Sequence[str]) -> Path:
    """The first of several weight files that a folder holds; safetensors come first in `names`.

    Raises:
        UserError: none is there.
    """
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise UserError(f"no weights in {directory}; expected one of {', '.join(names)}, or add ?pretrained=false for random weights")
