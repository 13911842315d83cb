"""Artifacts that come after the export: a bundle of form `slots` takes them without another trace.

Bundle checked -> artifacts checked against its slots -> copied beside -> the gate, for the new artifacts alone -> their
tensors, cases and checks joined to the old ones -> manifest sealed -> renamed into place. Nodes and weights of the graphs
are not touched, so what was proved of them stands; only what a graph's file says about itself is written anew. A signature
does not stand: it covered the old files, and goes.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from polyadapt.artifact import Artifact
from polyadapt.errors import UserError
from polyadapt.files import read_json, replacing_directory
from polyadapt.model import Model
from polyadapt.options import Options, read_options
from polyadapt.signing import SIGNATURE
from polyadapt_onnx.adapters import write_adapter_file
from polyadapt_onnx.checks import check_artifacts, check_precision
from polyadapt_onnx.exporter import Exported, recipe_of
from polyadapt_onnx.forms.job import Job, Made, cases_of
from polyadapt_onnx.gate import Case, GateReport, Graph, check_artifact_effect, check_parity, check_swap
from polyadapt_onnx.manifest import seal, write_artifact, write_parity
from polyadapt_onnx.options import ExportOptions
from polyadapt_onnx.variants import VARIANTS
from polyadapt_onnx.variants.gate import VariantReport, check_variant
from polyadapt_onnx.views import View, views_of

REPORT = "parity/report.json"


class IntoOptions(Options):
    """Options of adding to a bundle."""

    seed: int = Field(0, ge=0, lt=2**63, description="of the synthetic inputs of the gate")


def add_artifacts(model: Model, artifacts: Mapping[str, Artifact], directory: Path | str, options: Mapping[str, Any] | None = None) -> Exported:
    """Add artifacts to a bundle, each with parity cases against torch.

    Args:
        model: the bundle's base; nothing may be attached to it.
        artifacts: by the name under which the runtime will call them.
        directory: the bundle.
        options: see `IntoOptions`.

    Raises:
        UserError: no whole bundle of form `slots`, another base, slots that it lacks (listed), a name that is taken or none, or an artifact that holds nothing that can be used.
        ExportError: the gate failed; the bundle is as it was.
    """
    chosen, directory = read_options(IntoOptions, dict(options or {}), "adding to a bundle"), Path(directory)
    check_precision(model)
    check_artifacts(model, artifacts)
    manifest = _checked(model, artifacts, directory)
    views = views_of(model, recipe_of(model))
    if absent := [view.file for view in views if view.file not in manifest["files"]]:
        raise UserError(f"{directory} has no {', '.join(absent)}, which bundles of this version have; export it again with all its artifacts")
    with replacing_directory(directory) as staging, torch.no_grad():
        shutil.copytree(directory, staging, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SIGNATURE))
        job = Job(model, artifacts, views, staging, ExportOptions(seed=chosen.seed))
        report = _report(staging)
        before, new = _recorded(staging), [case for view in views for case in _proved(job, view, report)]
        report.require()
        whole = {**read_json(staging / REPORT, "parity report"), **report.to_dict()}
        _prove_variants(job, [*(case for case in before if case.artifact is None), *new], manifest, whole)
        write_parity(staging, [*before, *new], whole)
        has_adapters = any("onnx_adapter" in entry for entry in manifest["artifacts"].values())
        for name, artifact in artifacts.items():
            entry = write_artifact(staging, name, artifact, "slots")
            manifest["artifacts"][name] = {**entry, "onnx_adapter": write_adapter_file(staging, name, artifact)} if has_adapters and entry["slots"] else entry
        manifest["parity"] = {**manifest["parity"], **report.summary()}
        seal(staging, manifest)
        size = sum(path.stat().st_size for path in staging.rglob("*") if path.is_file())
    return Exported(directory, "slots", report.to_dict(), size)


def _checked(model: Model, artifacts: Mapping[str, Artifact], directory: Path) -> dict[str, Any]:
    """The manifest's table, when the bundle is whole and every artifact fits it."""
    from polyadapt_runtime.errors import BundleError
    from polyadapt_runtime.manifest import read_manifest
    from polyadapt_runtime.slots import check_fit

    try:
        manifest = read_manifest(directory)
        if manifest.base_id != model.base_id:
            raise UserError(f"{directory} holds base {manifest.base_id[:12]}, but {model.reference} is {model.base_id[:12]}; load the model that it was exported from")
        for name, artifact in artifacts.items():
            if name in manifest.artifacts:
                raise UserError(f"{directory} has an artifact {name!r} already; give another name")
            shapes = {slot: (tuple(value.shape), str(value.dtype).removeprefix("torch.")) for slot, value in artifact.slots.items()}
            check_fit(manifest, artifact.base_id, shapes, f"artifact {name!r}")
    except BundleError as error:
        raise UserError(str(error)) from error
    return dict(manifest.raw)


def _proved(job: Job, view: View, report: GateReport) -> list[Case]:
    """The cases of the new artifacts at one graph, checked as an export checks them."""
    graph, generator = Graph(job.path(view)), job.generator()
    base = cases_of(job, view, "base", None, (), generator)[0]
    by_name = {name: cases_of(job, view, name, name, artifact.edits, generator) for name, artifact in job.artifacts.items()}
    cases = [case for part in by_name.values() for case in part]
    check_parity(graph, cases, report, view.recipe.tolerance)
    reaching: dict[str | None, Case] = {name: part[0] for name, part in by_name.items() if part[0].slots}
    check_swap(graph, {None: base, **reaching}, report)
    for case in reaching.values():
        check_artifact_effect(graph, base, case, report)
    return cases


def _prove_variants(job: Job, cases: Sequence[Case], manifest: Mapping[str, Any], whole: Mapping[str, Any]) -> None:
    """The gate of every variant with the new artifacts; what is measured joins what was measured before, in the manifest and in the report."""
    no_effect = job.model.family.no_effect(job.model.backbone)
    for name, entry in manifest.get("variants", {}).items():
        old = entry["parity"]
        report = VariantReport(VARIANTS[name], GateReport(old["tolerance"]), own_error=old.get("torch_error"))
        for view in job.views:
            graph = Graph(job.staging / entry["graphs"][view.name]["file"])
            check_variant(VARIANTS[name], view, Graph(job.path(view)), graph, Made([], cases, report.rows), no_effect, report)
        report.require()
        new = {case.name for case in cases if case.artifact is not None}
        counts = [report.answers[case] for case in new if case in report.answers]
        answers = {"compared": sum(compared for compared, _ in counts), "other": sum(other for _, other in counts)}
        entry["parity"] = {
            **old,
            "error": max(old["error"], report.rows.max_error),
            "effect_correlations": {**old["effect_correlations"], **report.correlations},
            "answers": {key: old.get("answers", {}).get(key, 0) + count for key, count in answers.items()},
        }
        # Base and random adapters were looked at before, and stand there. What is pooled over all cases is new with every artifact.
        added = {
            "cases": [row for row in report.rows.cases if row["name"] in new or row["name"] == "all"],
            "effects": [row for row in report.rows.effects if row.get("artifact") is not None or row.get("case") in new],
        }
        told = whole["variants"][name]
        told |= entry["parity"] | {part: [*told[part], *rows] for part, rows in added.items()}


def _recorded(staging: Path) -> list[Case]:
    """The cases that lie in a bundle."""
    from polyadapt_runtime.tensors import read_safetensors

    tensors, _ = read_safetensors(staging / "parity" / "cases.safetensors")
    cases = []
    for entry in read_json(staging / "parity" / "cases.json", "parity cases")["cases"]:
        inputs, slots, expected = (_below(tensors, f"{entry['name']}/{part}/") for part in ("in", "slot", "out"))
        cases.append(Case(entry["name"], entry["artifact"], entry["sizes"], inputs, slots, expected, entry.get("graph", "model")))
    return cases


def _report(staging: Path) -> GateReport:
    """The report of the checks that were made before."""
    found = read_json(staging / REPORT, "parity report")
    return GateReport(found["tolerance"], found["cause"], found["cases"], found["effects"])


def _below(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
