"""Voices for sherpa-onnx as a plugin: target `sherpa-onnx`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyadapt.hookspecs import hookimpl

if TYPE_CHECKING:
    from polyadapt.artifact import Artifact
    from polyadapt.model import Model

HOOK_API_RANGE = (1, 1)


@hookimpl
def polyadapt_export(model: Model, artifacts: Mapping[str, Artifact], target: str, directory: Path, options: Mapping[str, Any]) -> Any:
    """Write a voice as sherpa-onnx reads it. Its one artifact is merged, so `form` says nothing here."""
    from polyadapt_speech.sherpa.export import export

    return export(model, artifacts, directory, {name: value for name, value in options.items() if name != "form"})
