"""Where an artifact comes from: seed, settings, data, metrics, versions. No path, user or host."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from polyadapt.data.dataset import Dataset
from polyadapt.model import Model

FEW = 16  # values of a buffer that is a setting, such as the mean of every channel; ours
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


def preprocessing(model: Model) -> dict[str, Any]:
    """What a model does to raw inputs before its weights see them: the processor's spec and the settings of the front.

    Tables that a front computes from its settings (the waves and filters of a spectrogram) are left out.
    """
    front = model.module.front
    settings: dict[str, Any] = {}
    if front is not None:
        settings = {name: value for name, value in vars(front).items() if isinstance(value, (int, float, str)) and name != "training" and not name.startswith("_")}
        settings |= {name: buffer.flatten().tolist() for name, buffer in front.named_buffers() if buffer.numel() <= FEW}
        settings["kind"] = type(front).__name__
    return {"processor": model.processor.spec, "front": settings}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
