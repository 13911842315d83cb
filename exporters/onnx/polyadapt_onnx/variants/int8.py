"""Variant `int8`: weights of linear layers as 8-bit integers, activations quantised call by call.

What a slot feeds stays float32, and so do the products behind it: an artifact's tensors are not known when the graph
is made. Convolutions stay float32 as well, since their integer kernels are slower on a CPU than the float ones.

Processors without VNNI instructions add two products of an 8-bit activation and an 8-bit weight in 16 bits, and cut off what is
more. So that a graph answers alike on all of them, scales are chosen for which no two neighbours come to more (ours): on
Gaussian weights that costs a third of the resolution, where seven bits for all would cost half.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import numpy_helper

from polyadapt_onnx.variants.errors import VariantError
from polyadapt_onnx.variants.protos import load, put_slots, take_slots

LARGEST_PAIR = 127.0  # of two weights together: by rounding they come to 128 at most, and 128 x 255 is below 2**15


def convert(model: Any) -> None:
    """Change a model in place.

    Raises:
        VariantError: it has no product with a constant matrix.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.onnx_model import ONNXModel

    # Slots are plain inputs while the quantiser looks: it takes products with constants and no others.
    slots = take_slots(model)
    _forget_constants(model.graph)
    ONNXModel(model).replace_gemm_with_matmul()  # as the quantiser would, under names of its own
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    matrices = {node.input[1]: numpy_helper.to_array(constants[node.input[1]]) for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in constants}
    with tempfile.TemporaryDirectory() as folder, quiet():
        target = Path(folder) / "quantized.onnx"
        quantize_dynamic(model, target, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8, use_external_data_format=True)
        model.CopyFrom(load(target))
    _keep_sums_within_16_bits(model.graph, matrices)
    if not any(node.op_type in ("MatMulInteger", "DynamicQuantizeMatMul") for node in model.graph.node):
        raise VariantError("int8: no linear layer of this graph has constant weights (convolutions and slots stay float32), so nothing would be smaller; leave the variant out")
    model.producer_name = ""
    put_slots(model, slots)


def rounded(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix in 8 bits, and the scale of each of its columns.

    Shape:
        float32 [rows, columns] -> int8 [rows, columns], float32 [columns].
    """
    sizes = np.abs(matrix.astype(np.float64))
    even = np.pad(sizes, ((0, len(sizes) % 2), (0, 0)))
    pairs = even[0::2] + even[1::2]  # as the products are added: the first row with the second, and so on
    scale = (pairs.max(0) / LARGEST_PAIR).astype(np.float32)
    scale[scale == 0] = 1.0
    return np.rint(matrix / scale).clip(-127, 127).astype(np.int8), scale


def _keep_sums_within_16_bits(graph: Any, matrices: Mapping[str, np.ndarray]) -> None:
    """Round matrices anew that the quantiser has rounded by their largest values."""
    made = {tensor.name: tensor for tensor in graph.initializer}
    for name, matrix in matrices.items():
        if (values := made.get(f"{name}_quantized")) is not None and matrix.ndim == 2:
            integers, scale = rounded(matrix)
            values.CopyFrom(numpy_helper.from_array(integers, values.name))
            made[f"{name}_scale"].CopyFrom(numpy_helper.from_array(scale, f"{name}_scale"))


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
