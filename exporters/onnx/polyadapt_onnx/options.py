"""Options of the ONNX exporter."""

from __future__ import annotations

from pydantic import Field

from polyadapt.options import Options


class ExportOptions(Options):
    """Options of the ONNX exporter."""

    name: str = Field("", description="name in the manifest; the directory's name by default")
    extra_slots: tuple[str, ...] = Field((), description="slots that no artifact uses yet, as sites:kind[~variant] with globs (attn.[qv]:lowrank), so that later artifacts fit")
    seed: int = Field(0, description="of the synthetic inputs and edits of the gate")
    legacy_fallback: bool = Field(True, description="try the legacy exporter under the same gate when dynamo cannot trace; recorded in the manifest")
