"""Variant `int8`: weights of linear layers as 8-bit integers, activations quantised call by call.

What a slot feeds stays float32, and so do the products behind it: an artifact's tensors are not known when the graph
is made. Convolutions stay float32 as well, since their integer kernels are slower on a CPU than the float ones.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyadapt_onnx.variants.errors import VariantError
from polyadapt_onnx.variants.protos import load, put_slots, take_slots


def convert(model: Any) -> None:
    """Change a model in place.

    Raises:
        VariantError: it has no product with a constant matrix.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Slots are plain inputs while the quantiser looks: it takes products with constants and no others.
    slots = take_slots(model)
    _forget_constants(model.graph)
    with tempfile.TemporaryDirectory() as folder, quiet():
        target = Path(folder) / "quantized.onnx"
        quantize_dynamic(model, target, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=True)
        model.CopyFrom(load(target))
    if not any(node.op_type in ("MatMulInteger", "DynamicQuantizeMatMul") for node in model.graph.node):
        raise VariantError("int8: no linear layer of this graph has constant weights (convolutions and slots stay float32), so nothing would be smaller; leave the variant out")
    model.producer_name = ""
    put_slots(model, slots)


def _forget_constants(graph: Any) -> None:
    """The quantiser's shape inference stumbles over descriptions of constants."""
    names = {tensor.name for tensor in graph.initializer}
    described = [value for value in graph.value_info if value.name not in names]
    del graph.value_info[:]
    graph.value_info.extend(described)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The quantiser advises by the root logger on what the gate decides."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
