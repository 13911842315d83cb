"""Artifacts as onnxruntime's own adapter files, for programs that have onnxruntime and nothing of ours.

Derived and optional: such a file carries no digest and fits any graph with these names, so the safetensors file stays
the artifact and the manifest holds the digest of both.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from polyadapt.artifact import Artifact
from polyadapt.edits.edit import slots_of
from polyadapt.errors import ExportError


def write_adapter_file(staging: Path, name: str, artifact: Artifact) -> str:
    """Write `artifacts/<name>/<name>.onnx_adapter`; returns its path in the bundle.

    Raises:
        ExportError: a tensor without axes, which onnxruntime writes and cannot read.
    """
    import onnxruntime

    slots = slots_of(artifact.edits)
    if flat := [slot for slot, value in slots.items() if value.ndim == 0]:
        raise ExportError(f"artifact {name}: {flat[0]} has no axes, and onnxruntime cannot read such a tensor from an adapter file; export without adapters=true")
    relative = f"artifacts/{name}/{name}.onnx_adapter"
    form = onnxruntime.AdapterFormat()
    form.set_adapter_version(1)
    form.set_model_version(1)
    form.set_parameters({slot: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value.detach().cpu().numpy())) for slot, value in slots.items()})
    form.export_adapter(str(staging / relative))
    return relative
