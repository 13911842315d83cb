"""Export conformance: one bundle per family with the union of all methods' slots, and merged representatives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from polyadapt.artifact import Artifact
from polyadapt.methods.base import Method
from polyadapt.model import Model
from polyadapt.testing.conformance import applies, non_degenerate


def adapted_artifact(method: Method, model: Model, seed: int = 2) -> Artifact:
    """An artifact of a method at a seeded state without zero factors, as if it had been trained."""
    form = method.build(model, method.card.options(), torch.Generator().manual_seed(seed))
    non_degenerate(form, seed)
    return Artifact(method.card.id, model.base_id, model.family.card.id, model.task.kind, tuple(form.lower()), labels=model.task.labels)


def check_export(methods: Sequence[Method], model: Model, directory: Path) -> Any:
    """Export every method that has slots and applies, all in one graph; the exporter's gate is the check.

    Returns:
        The bundle, with the gate's report.
    """
    from polyadapt_onnx import export

    artifacts = {}
    for method in methods:
        if "slots" in method.card.exports and not applies(method, model):
            artifacts[method.card.id] = adapted_artifact(method, model)
    return export(model, artifacts, directory / f"{model.family.card.id}.bundle", "slots")


def check_merged(method: Method, model: Model, directory: Path) -> Any:
    """Export one method's artifact baked into the graph; the exporter's gate is the check."""
    from polyadapt_onnx import export

    return export(model, {method.card.id: adapted_artifact(method, model)}, directory / f"{model.family.card.id}-{method.card.id}.bundle", "merged")
