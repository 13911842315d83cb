"""Options of the ONNX exporter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field

from polyadapt.options import Options


class ExportOptions(Options):
    """Options of the ONNX exporter."""

    name: str = Field("", description="name in the manifest; the directory's name by default")
    extra_slots: tuple[str, ...] = Field((), description="slots that no artifact uses yet, as sites:kind[~variant] with globs (attn.[qv]:lowrank), so that later artifacts fit")
    seed: int = Field(0, ge=0, lt=2**63, description="of the synthetic inputs and edits of the gate")
    legacy_fallback: bool = Field(True, description="try the legacy exporter under the same gate when dynamo cannot trace; recorded in the manifest")
    variants: tuple[str, ...] = Field((), description="further number formats of the graphs, each proven beside float32: float16, int8")
    evaluate: Callable[..., Any] | None = Field(
        None, description="for callers in Python: (bundle's folder, variant) to metrics by artifact; a variant that loses a point fails the export"
    )
    adapters: bool = Field(False, description="write each artifact as onnxruntime's own adapter file as well")
    layout: Literal["bundle", "triton"] = Field("bundle", description="what the folder becomes: a bundle, or a model repository for Triton")
