"""Export conformance: one bundle per family with the union of all methods' slots, one with a folding and a non-folding method baked in, one bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from polyadapt.artifact import Artifact, detach
from polyadapt.edits import Edit, attachments_of
from polyadapt.methods.base import Method
from polyadapt.model import Model
from polyadapt.testing.conformance import applies, non_degenerate

OPTIONS = {"legacy_fallback": False}  # a graph that the family's own exporter no longer makes is a failure, not one that the other may hide


def adapted_artifact(method: Method, model: Model, seed: int = 2) -> Artifact:
    """An artifact of a method at a seeded state without zero factors, as if it had been trained."""
    form = method.build(model, method.card.options(), torch.Generator().manual_seed(seed))
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("made", form)  # a form that trains the base has its parameters there
    try:
        non_degenerate(form, seed, attachments.trainable())
        edits = tuple(form.lower())
    finally:
        attachments.remove("made")
    return Artifact(method.card.id, model.base_id, model.family.card.id, model.task.kind, edits, labels=model.task.labels)


def arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, npt.NDArray[Any]]:
    """The same as a bundle takes them and gives them."""
    return {name: value.numpy() for name, value in tensors.items()}


def answers(model: Model, inputs: Mapping[str, torch.Tensor], artifact: Artifact | None = None) -> dict[str, npt.NDArray[Any]]:
    """What torch says to some inputs, with an artifact attached for this once: outputs by name."""
    if artifact is not None:
        artifact.attach(model, "asked")
    try:
        with torch.no_grad():
            return arrays(model.module(**inputs))
    finally:
        if artifact is not None:
            detach(model, "asked")


def is_close(found: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: float = 1e-5) -> bool:
    """Whether two arrays are of one shape and differ by no more than a tolerance, relative to the largest value expected."""
    return found.shape == expected.shape and float(np.abs(found - expected).max()) <= tolerance * float(np.abs(expected).max())


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
    return export(model, artifacts, directory / f"{model.family.card.id}.bundle", "slots", OPTIONS)


def check_merged(methods: Sequence[Method], model: Model, directory: Path) -> Any:
    """Export the joined artifact of several methods baked into the graph; the exporter's gate is the check.

    Methods that fold and methods that do not may stand beside each other: both paths are taken then.
    """
    from polyadapt_onnx import export

    edits: dict[str, Edit] = {}
    for method in methods:
        for edit in adapted_artifact(method, model).edits:
            edits.setdefault(edit.key, edit)  # every method brings a class head; one is enough
    name = "+".join(method.card.id for method in methods)
    joined = Artifact(name, model.base_id, model.family.card.id, model.task.kind, tuple(edits.values()), labels=model.task.labels)
    return export(model, {name: joined}, directory / f"{model.family.card.id}-{name}.bundle", "merged", OPTIONS)


def check_bank(methods: Sequence[Method], model: Model, directory: Path) -> Any:
    """Export every method that a bank takes and that applies, all in one bank; the exporter's gate is the check: parity of every row.

    Prompts are left out beside others where a decoder has caches: those of its rows would differ in length, which the exporter refuses.

    Returns:
        The bundle, with the gate's report.

    Raises:
        UserError: rows of this family's batch cannot differ at a method's sites; the message says why.
    """
    from polyadapt_onnx import export
    from polyadapt_onnx.views import writes

    artifacts = {method.card.id: adapted_artifact(method, model) for method in methods if "bank" in method.card.exports and not applies(method, model)}
    even = {name: artifact for name, artifact in artifacts.items() if not (writes(model) and any(edit.kind == "prepend" for edit in artifact.edits))}
    return export(model, even or artifacts, directory / f"{model.family.card.id}-bank.bundle", "bank", OPTIONS)


def merged_representatives(methods: Sequence[Method], model: Model) -> list[Method]:
    """One method that folds into the weights and one that stays in the graph, where the model takes such."""
    chosen = []
    for wanted in (("lora", "bitfit"), ("bottleneck", "prefix", "prompt")):
        found = [method for name in wanted for method in methods if method.card.id == name and not applies(method, model)]
        chosen += found[:1]
    return chosen
