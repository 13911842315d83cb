"""Make the variants of a bundle's graphs and prove each; a variant that fails fails the export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyadapt.errors import ExportError, UserError, nearest
from polyadapt_onnx.forms.job import Job, Made
from polyadapt_onnx.gate import GateReport, Graph
from polyadapt_onnx.variants import VARIANTS, Variant
from polyadapt_onnx.variants.errors import VariantError
from polyadapt_onnx.variants.gate import VariantReport, check_variant, limit_of
from polyadapt_onnx.variants.protos import load, save
from polyadapt_onnx.views import View


@dataclass(frozen=True)
class MadeVariant:
    """One variant of all graphs, with its proof."""

    variant: Variant
    files: dict[str, str]
    report: VariantReport

    def describe(self, staging: Path) -> dict[str, Any]:
        """Its entry in the manifest."""
        graphs = {name: {"file": file, "data": [f"{file}.data"] if (staging / f"{file}.data").is_file() else []} for name, file in self.files.items()}
        return {"graphs": graphs, "parity": self.report.summary()}


def check_names(names: Sequence[str]) -> None:
    """Refuse what is no variant before anything is traced.

    Raises:
        UserError: with the nearest name.
    """
    for name in names:
        if name not in VARIANTS:
            raise UserError(f"unknown variant {name!r}{nearest(name, VARIANTS)}")


def build_variants(job: Job, made: Made) -> list[MadeVariant]:
    """Convert every graph and check what came out.

    Raises:
        VariantError: nothing can be converted, or what came out did not pass its gate.
    """
    return [_build(job, made, VARIANTS[name]) for name in dict.fromkeys(job.options.variants)]


def _build(job: Job, made: Made, variant: Variant) -> MadeVariant:
    limits = {view.name: limit_of(variant, job, view, made) for view in job.views}
    own_error = max((own for _, own in limits.values() if own is not None), default=None)
    report = VariantReport(variant, GateReport(max(tolerance for tolerance, _ in limits.values())), own_error=own_error)
    no_effect = job.model.family.no_effect(job.model.backbone)
    files = _convert(job, variant)
    try:
        for view in job.views:
            check_variant(variant, view, Graph(job.path(view)), Graph(job.staging / files[view.name]), made, no_effect, report, limits[view.name][0])
    except ExportError as error:  # of a graph that onnxruntime refuses or cannot run: the float32 graph did pass
        raise VariantError(f"variant {variant.name}: {error}; nothing was written, export without this variant") from error
    report.require()
    return MadeVariant(variant, files, report)


def _convert(job: Job, variant: Variant) -> dict[str, str]:
    """The variant's file of every graph. One graph of several may have nothing to convert: then its float32 file stays in use."""
    files, refusal = {}, None
    for view in job.views:
        model = load(job.path(view))
        try:
            variant.convert(model)
        except VariantError as error:
            refusal, files[view.name] = error, view.file
            continue
        files[view.name] = file_of(view, variant)
        save(model, job.staging / files[view.name])
    if refusal is not None and all(files[view.name] == view.file for view in job.views):
        raise refusal
    return files


def file_of(view: View, variant: Variant) -> str:
    """`onnx/model_fp16.onnx`, as transformers.js looks for it."""
    return f"{view.file.removesuffix('.onnx')}_{variant.suffix}.onnx"
