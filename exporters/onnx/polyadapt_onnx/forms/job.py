"""What every form is given and gives back, and the cases by which torch's answers are recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from polyadapt.artifact import Artifact
from polyadapt.edits import Edit, Form, Lowered, attachments_of, slots_of
from polyadapt.errors import UserError
from polyadapt.model import Model
from polyadapt_onnx.gate import Case, GateReport, expected_outputs, numpy_of
from polyadapt_onnx.graph import SLOT_FORM
from polyadapt_onnx.options import ExportOptions
from polyadapt_onnx.slots import SlotGroup
from polyadapt_onnx.views import View


@dataclass(frozen=True)
class Job:
    """One export: the graphs go below `staging`, which becomes the bundle."""

    model: Model
    artifacts: Mapping[str, Artifact]
    views: Sequence[View]
    staging: Path
    options: ExportOptions

    def path(self, view: View) -> Path:
        """Where a view's graph is written."""
        return self.staging / view.file

    def report(self) -> GateReport:
        """An empty report with the tolerance of the graphs."""
        recipe = self.views[0].recipe
        return GateReport(recipe.tolerance, recipe.cause)

    def generator(self, offset: int = 0) -> torch.Generator:
        """For the synthetic inputs and edits of the gate."""
        return torch.Generator().manual_seed(self.options.seed + offset)


@dataclass(frozen=True)
class Made:
    """What a form made besides the graphs themselves.

    Attributes:
        views: the graphs where a form gives them other inputs than the job's.
        numbered: artifacts of a bank by number, from 1.
        baked: edits that are inside the graphs for good.
    """

    groups: Sequence[SlotGroup]
    cases: Sequence[Case]
    report: GateReport
    views: Sequence[View] = ()
    numbered: Sequence[str] = ()
    baked: Sequence[Edit] = ()


@contextlib.contextmanager
def attached(model: Model, edits: Sequence[Edit]) -> Iterator[None]:
    """Edits on the model within a block, under the name that traced parameters carry."""
    with with_form(model, Lowered(edits).eval()) if edits else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def with_form(model: Model, form: Form) -> Iterator[None]:
    """A form on the model within a block, under that name."""
    attachments = attachments_of(model.module, model.ports, model.backbone)
    if attachments.names:
        raise UserError(f"detach {', '.join(attachments.names)} before exporting: artifacts are given by name, not left on the model")
    attachments.add(SLOT_FORM, form)
    try:
        yield
    finally:
        attachments.remove(SLOT_FORM)


def cases_of(job: Job, view: View, name: str, artifact: str | None, edits: Sequence[Edit], generator: torch.Generator) -> list[Case]:
    """torch's answers with some edits, at every size that the recipe checks."""
    cases = []
    for index, sizes in enumerate(view.recipe.check):
        inputs = view.example(sizes, generator)
        inputs = {spec.name: inputs[spec.name] for spec in view.signature.inputs}
        with attached(job.model, edits):
            expected = expected_outputs(lambda given=inputs: view.inner(**given), view.outputs)  # type: ignore[misc]
        slots = numpy_of(slots_of([edit for edit in edits if edit.kind != "patch" and view.reaches(edit.site)]))
        cases.append(Case(case_name(job, view, name, index), artifact, dict(sizes), numpy_of(inputs), slots, expected, view.name))
    return cases


def case_name(job: Job, view: View, name: str, index: int) -> str:
    """Name of a case, its own among those of all graphs."""
    return f"{view.name}/{name}/{index}" if len(job.views) > 1 else f"{name}/{index}"


def tensors_of(arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Arrays as tensors."""
    return {name: torch.from_numpy(value) for name, value in arrays.items()}
