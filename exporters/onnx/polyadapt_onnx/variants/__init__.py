"""Variants of a bundle's graphs in another number format: one file a variant, each a function `convert(model)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polyadapt_onnx.variants import float16, int8


@dataclass(frozen=True)
class Variant:
    """One number format.

    Attributes:
        name: in options, in the manifest and for the runtime.
        suffix: of the graph's file, as transformers.js names it.
        convert: changes a model in place, slots kept alive.
        measure: what is compared with torch: `max-relative` (a case at a time) or `rmse-std` (all cases of an output).
        tolerance: of that measure.
        correlation: the least between an artifact's effect here and in float32.
    """

    name: str
    suffix: str
    convert: Callable[[Any], None]
    measure: str
    tolerance: float
    correlation: float


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("float16", "fp16", float16.convert, "max-relative", 5e-3, 0.99),
        Variant("int8", "quantized", int8.convert, "rmse-std", 5e-2, 0.95),
    )
}
