"""`export`: a model and its artifacts become a bundle, or nothing is written.

Steps: the views of the model say which graphs there are, the form says how edits come into them, traces them and
compares them with torch (the gate); then artifacts, parity cases and manifest are written, and the whole directory is
renamed into place.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from polyadapt.artifact import Artifact
from polyadapt.errors import ExportError, UserError
from polyadapt.families.card import ExportRecipe
from polyadapt.files import replacing_directory
from polyadapt.model import Model
from polyadapt.options import read_options
from polyadapt_onnx.checks import check_artifacts, check_precision
from polyadapt_onnx.forms import FORMS, Job
from polyadapt_onnx.manifest import write_bundle_files
from polyadapt_onnx.metrics import measure
from polyadapt_onnx.options import ExportOptions
from polyadapt_onnx.picture import write_picture_graph
from polyadapt_onnx.triton import marker, write_repository
from polyadapt_onnx.variants.build import build_variants, check_names
from polyadapt_onnx.variants.errors import VariantError
from polyadapt_onnx.views import views_of, writes


@dataclass(frozen=True)
class Exported:
    """Where a bundle lies and what its gate measured; `polyadapt_runtime.Bundle(exported.directory)` opens it.

    Attributes:
        directory: of the bundle.
        form: `slots`, `merged` or `bank`.
        report: what the gate measured; variants are in the bundle's `parity/report.json` besides.
        size_bytes: of all files.
    """

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


def export(model: Model, artifacts: Mapping[str, Artifact], directory: Path | str, form: str = "slots", options: Mapping[str, Any] | None = None) -> Exported:
    """Write a bundle.

    Args:
        model: the base that the artifacts fit; nothing may be attached to it.
        artifacts: by the name under which the runtime will call them.
        directory: becomes the bundle; an old one is replaced only when the new one is complete.
        form: `slots` (artifacts are fed at run time), `merged` (one artifact, folded or baked in) or `bank` (a number names the artifact of each row).
        options: see `ExportOptions`. With layout `triton` the directory becomes a model repository, made from a bundle that passed its gate.

    Raises:
        UserError: an artifact does not fit, cannot be called so or holds nothing that can be used, the form does not suit it or an option, or the
            model is not in float32.
        ExportError: the gate failed; nothing was written.
    """
    chosen = read_options(ExportOptions, dict(options or {}), "the onnx exporter")
    if form not in FORMS:
        raise UserError(f"unknown form {form!r}; bundles come as {' or '.join(FORMS)}")
    for artifact in artifacts.values():
        artifact.check_base(model.base_id, model.reference)
    check_precision(model)
    check_artifacts(model, artifacts, form)
    if chosen.adapters and form != "slots":
        raise UserError(f"adapters=true writes the tensors that are fed to slots, and a bundle of form {form!r} takes none; leave it out, or use form 'slots'")
    check_names(chosen.variants)
    recipe = recipe_of(model)
    if chosen.layout == "triton":
        return _as_repository(model, artifacts, Path(directory), form, chosen)
    try:
        return _export(model, artifacts, Path(directory), form, chosen, recipe)
    except VariantError:
        raise
    except ExportError:
        if recipe.exporter == "legacy" or not chosen.legacy_fallback or writes(model):
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


def _export(model: Model, artifacts: Mapping[str, Artifact], directory: Path, form: str, options: ExportOptions, recipe: ExportRecipe) -> Exported:
    with replacing_directory(directory, "manifest.json") as staging, torch.no_grad():
        job = Job(model, artifacts, views_of(model, recipe), staging, options)
        made = FORMS[form](job)
        write_picture_graph(staging, model.processor.spec if model.processor is not None else None, made.report, options.seed)
        made.report.require()
        variants = build_variants(job, made)
        write_bundle_files(job, made, form, options.name or directory.name.removesuffix(".bundle"), variants)
        if options.evaluate is not None:
            measure(staging, options.variants, options.evaluate)
        size = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
    return Exported(directory, form, made.report.to_dict(), size)


def _as_repository(model: Model, artifacts: Mapping[str, Artifact], directory: Path, form: str, options: ExportOptions) -> Exported:
    """A model repository in place of the bundle that it is made from."""
    name = options.name or directory.name
    with tempfile.TemporaryDirectory() as folder, replacing_directory(directory, marker(directory, name)) as staging:
        given = {**options.model_dump(), "name": name, "layout": "bundle"}
        made = export(model, artifacts, Path(folder) / "whole.bundle", form, given)
        write_repository(made.directory, staging)
        size = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
    return replace(made, directory=directory, size_bytes=size)
