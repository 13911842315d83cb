"""The ONNX exporter: adapted models become bundles that prove themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyadapt_onnx.exporter import export as export

__all__ = ["export"]


def __getattr__(name: str) -> Any:
    if name == "export":
        from polyadapt_onnx.exporter import export

        return export
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
