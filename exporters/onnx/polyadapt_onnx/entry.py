"""The ONNX exporter as a plugin: target `onnx`."""

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
    """Write a bundle; `form` is taken from the options. With `into` the directory is a bundle that takes the artifacts as well."""
    if options.get("into"):
        from polyadapt_onnx.into import add_artifacts

        return add_artifacts(model, artifacts, directory, {name: value for name, value in options.items() if name != "into"})
    from polyadapt_onnx.exporter import export

    rest = {name: value for name, value in options.items() if name != "form"}
    return export(model, artifacts, directory, str(options.get("form", "slots")), rest)
