"""Where an artifact comes from: seed, settings, data, metrics, versions. No path, user or host."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from polyadapt.data.dataset import Dataset
from polyadapt.data.split import Parts
from polyadapt.model import Model

ALWAYS = ("polyadapt", "torch", "accelerate", "numpy", "safetensors")


def versions(model: Model) -> dict[str, str]:
    """Versions of Python and of the libraries that had a part in the result."""
    found = {"python": platform.python_version()}
    for name in (*ALWAYS, *model.family.card.libraries):
        if (version := _version(name)) is not None:
            found[name] = version
    return found


def described(parts: Iterable[tuple[str, Dataset | None]]) -> dict[str, Any]:
    """Size and hash of every part of the data."""
    return {name: {"examples": len(part), "hash": part.hash} for name, part in parts if part is not None}


def split_of(data: Any) -> dict[str, Any]:
    """How data were split, as an artifact remembers it: whoever evaluates it on them leaves out what it has seen."""
    if not isinstance(data, Parts):
        return {}
    split = data.split
    return {"split": {"by": split.by, "seed": split.seed, **split.model_dump(mode="json", exclude_unset=True), "train": data.train.hash}}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
