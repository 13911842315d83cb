"""`export`: a model and its artifacts become a bundle, or nothing is written.

Steps: decide the slots, trace, compare with torch (the gate), write artifacts, parity cases and manifest,
and rename the whole directory into place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from polyadapt.artifact import Artifact
from polyadapt.edits import Edit, Lowered, attachments_of, slots_of
from polyadapt.edits.merge import folded
from polyadapt.errors import ExportError, UserError
from polyadapt.families.card import ExportRecipe
from polyadapt.files import replacing_directory
from polyadapt.model import Model
from polyadapt.options import Options, read_options
from polyadapt.signature import Signature
from polyadapt_onnx.cached import CachedModule, cached_example
from polyadapt_onnx.gate import Case, GateReport, Graph, check_artifact_effect, check_parity, check_slot_effects, check_swap, expected_outputs, numpy_of
from polyadapt_onnx.graph import SLOT_FORM, Traced, write_graph
from polyadapt_onnx.manifest import write_bundle_files
from polyadapt_onnx.slots import SlotGroup, example_edits, extra_groups, slot_groups

FORMS = ("slots", "merged")


class ExportOptions(Options):
    """Options of the ONNX exporter."""

    name: str = Field("", description="name in the manifest; the directory's name by default")
    extra_slots: tuple[str, ...] = Field((), description="slots that no artifact uses yet, as sites:kind[~variant] with globs (attn.[qv]:lowrank), so that later artifacts fit")
    seed: int = Field(0, description="of the synthetic inputs and edits of the gate")
    legacy_fallback: bool = Field(True, description="try the legacy exporter under the same gate when dynamo cannot trace; recorded in the manifest")


@dataclass(frozen=True)
class Bundle:
    """Where a bundle lies and what its gate measured."""

    directory: Path
    form: str
    report: Mapping[str, Any]
    size_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """For reports: form, size and the gate's summary; no path but the directory's name."""
        parity = {key: self.report[key] for key in ("ok", "max_relative_error", "tolerance", "cause")}
        return {
            "directory": self.directory.name,
            "form": self.form,
            "size_bytes": self.size_bytes,
            "parity": parity,
            "checks": len(self.report["cases"]) + len(self.report["effects"]),
        }


@dataclass(frozen=True)
class View:
    """What is traced of a model: the task module itself, or its cached form for text generation."""

    inner: torch.nn.Module
    signature: Signature
    example: Callable[[Mapping[str, int], torch.Generator], dict[str, torch.Tensor]]
    prefix: str


def export(model: Model, artifacts: Mapping[str, Artifact], directory: Path | str, form: str = "slots", options: Mapping[str, Any] | None = None) -> Bundle:
    """Write a bundle.

    Args:
        model: the base that the artifacts fit; nothing may be attached to it.
        artifacts: by the name under which the runtime will call them.
        directory: becomes the bundle; an old one is replaced only when the new one is complete.
        form: `slots` (artifacts are fed at run time) or `merged` (one artifact, folded or baked in).
        options: see `ExportOptions`.

    Raises:
        UserError: an artifact does not fit, or the form does not suit it.
        ExportError: the gate failed; nothing was written.
    """
    chosen = read_options(ExportOptions, dict(options or {}), "the onnx exporter")
    if form not in FORMS:
        raise UserError(f"unknown form {form!r}; bundles come as {' or '.join(FORMS)}")
    for artifact in artifacts.values():
        artifact.check_base(model.base_id, model.reference)
    if form == "merged" and len(artifacts) != 1:
        raise UserError(f"form 'merged' bakes in exactly one artifact, {len(artifacts)} were given; use form 'slots' for several")
    recipe = recipe_of(model)
    try:
        return _export(model, artifacts, Path(directory), form, chosen, recipe)
    except ExportError:
        if recipe.exporter == "legacy" or not chosen.legacy_fallback or model.task.kind == "causal-lm":
            raise
        with contextlib.suppress(ExportError):
            return _export(model, artifacts, Path(directory), form, chosen, replace(recipe, exporter="legacy"))
        raise


def recipe_of(model: Model) -> ExportRecipe:
    """The family's recipe for the model's task.

    Raises:
        UserError: the family does not export this task.
    """
    recipes = model.family.card.export
    if model.task.kind not in recipes:
        raise UserError(f"family {model.family.card.id!r} has no export recipe for task {model.task.kind!r}; it exports: {', '.join(recipes) or 'nothing'}")
    return recipes[model.task.kind]


def _export(model: Model, artifacts: Mapping[str, Artifact], directory: Path, form: str, options: ExportOptions, recipe: ExportRecipe) -> Bundle:
    with replacing_directory(directory) as staging, torch.no_grad():
        if form == "slots":
            groups, cases, report = _slots(model, artifacts, staging, options, recipe)
        else:
            groups, cases, report = _merged(model, next(iter(artifacts.items())), staging, options, recipe)
        report.require()
        view = view_of(model)
        write_bundle_files(staging, model, view.signature, recipe, form, options.name or directory.name.removesuffix(".bundle"), groups, artifacts, cases, report)
        size = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
    return Bundle(directory, form, report.to_dict(), size)


def view_of(model: Model) -> View:
    """The module that is traced for a model's task."""
    if model.task.kind == "causal-lm":
        layers, _, _ = model.family.cache_shape(model.backbone)
        return View(
            CachedModule(model.module, layers),
            model.family.cached_signature(model.backbone, model.task),
            lambda sizes, generator: cached_example(model, sizes, generator),
            "root.polyadapt.forms.",
        )
    return View(model.module, model.signature, model.example, "polyadapt.forms.")


def _slots(model: Model, artifacts: Mapping[str, Artifact], staging: Path, options: ExportOptions, recipe: ExportRecipe) -> tuple[list[SlotGroup], list[Case], GateReport]:
    view = view_of(model)
    groups = list({group.key: group for group in (*extra_groups(model.ports, options.extra_slots), *slot_groups(model.ports, artifacts.values()))}.values())
    generator = torch.Generator().manual_seed(options.seed)
    path = staging / "onnx" / "model.onnx"
    sketch = example_edits(model.ports, groups, (3, 5, 2), generator)
    with attached(model, sketch):
        traced = Traced(view.inner, view.signature, view.example(recipe.trace, generator), groups, slots_of(sketch), recipe, f"{view.prefix}{SLOT_FORM}.slots.")
        write_graph(traced, path)
    graph = Graph(path)
    report = GateReport(recipe.tolerance, recipe.cause)
    random = example_edits(model.ports, groups, (5, 3, 4), generator)
    cases = [
        *_cases(model, view, recipe, "base", None, (), generator),
        *_cases(model, view, recipe, "random", None, random, generator),
        *(case for name, artifact in artifacts.items() for case in _cases(model, view, recipe, name, name, artifact.edits, generator)),
    ]
    check_parity(graph, cases, report)
    first = {case.artifact: case for case in reversed(cases) if case.name.startswith("base/") or case.artifact}
    check_swap(graph, {name: first[name] for name in (None, *artifacts)}, report)
    for name in artifacts:
        check_artifact_effect(graph, first[None], first[name], report)
    check_slot_effects(graph, [case for case in cases if case.name.startswith("random/")], model.family.no_effect(model.backbone), report)
    return groups, cases, report


def _merged(model: Model, named: tuple[str, Artifact], staging: Path, options: ExportOptions, recipe: ExportRecipe) -> tuple[list[SlotGroup], list[Case], GateReport]:
    name, artifact = named
    view = view_of(model)
    generator = torch.Generator().manual_seed(options.seed)
    path = staging / "onnx" / "model.onnx"
    patches = [edit for edit in artifact.edits if edit.kind == "patch"]
    with attached(model, patches), folded(model.ports, [edit for edit in artifact.edits if edit.kind != "patch"]) as remaining, also_attached(model, remaining):
        write_graph(Traced(view.inner, view.signature, view.example(recipe.trace, generator), [], {}, recipe), path)
    graph = Graph(path)
    report = GateReport(recipe.tolerance, recipe.cause)
    cases = [replace(case, slots={}, artifact=None) for case in _cases(model, view, recipe, name, name, artifact.edits, generator)]
    check_parity(graph, cases, report)
    plain = _cases(model, view, recipe, "base", None, (), torch.Generator().manual_seed(options.seed + 1))[0]
    with attached(model, artifact.edits):
        adapted = expected_outputs(lambda: view.inner(**_tensors(plain.inputs)), [spec.name for spec in view.signature.outputs])
    changed = any(adapted[output].shape != plain.expected[output].shape or (adapted[output] != plain.expected[output]).any() for output in adapted)
    report.effects.append({"check": "artifact", "artifact": name, "ok": changed, "message": f"artifact {name} {'changes the output' if changed else 'changes nothing'}"})
    return [], cases, report


@contextlib.contextmanager
def attached(model: Model, edits: Sequence[Edit]) -> Iterator[None]:
    """Edits on the model within a block, under the name that traced parameters carry."""
    if not edits:
        yield
        return
    attachments = attachments_of(model.module, model.ports, model.backbone)
    if attachments.names:
        raise UserError(f"detach {', '.join(attachments.names)} before exporting: artifacts are given by name, not left on the model")
    attachments.add(SLOT_FORM, Lowered(edits).eval())
    try:
        yield
    finally:
        attachments.remove(SLOT_FORM)


@contextlib.contextmanager
def also_attached(model: Model, edits: Sequence[Edit]) -> Iterator[None]:
    """More edits beside those of `attached`: what folding left over."""
    if not edits:
        yield
        return
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("remaining", Lowered(edits).eval(), activate=False)
    attachments.activate(*attachments.active, "remaining")
    try:
        yield
    finally:
        attachments.remove("remaining")


def _cases(model: Model, view: View, recipe: ExportRecipe, name: str, artifact: str | None, edits: Sequence[Edit], generator: torch.Generator) -> list[Case]:
    outputs = [spec.name for spec in view.signature.outputs]
    cases = []
    for index, sizes in enumerate(recipe.check):
        inputs = view.example(sizes, generator)
        inputs = {spec.name: inputs[spec.name] for spec in view.signature.inputs}
        with attached(model, edits):
            expected = expected_outputs(lambda given=inputs: view.inner(**given), outputs)  # type: ignore[misc]
        slots = numpy_of(slots_of([edit for edit in edits if edit.kind != "patch"]))
        cases.append(Case(f"{name}/{index}", artifact, dict(sizes), numpy_of(inputs), slots, expected))
    return cases


def _tensors(arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in arrays.items()}
