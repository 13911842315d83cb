"""The float16 pass on graphs by hand: what runs in half precision, what must not, and what numbers beyond its range become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from polyadapt_onnx.variants.errors import VariantError
from polyadapt_onnx.variants.float16 import convert


def model_of(text: str, **constants: np.ndarray) -> onnx.ModelProto:
    graph = onnx.parser.parse_graph(text)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, feeds)[0]
    return found


def converted(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    convert(copied)
    onnx.checker.check_model(copied, full_check=True)
    return copied


def half_operations(model: onnx.ModelProto) -> set[str]:
    """Kinds of operations whose outputs are float16."""
    inferred = onnx.shape_inference.infer_shapes(model)
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.graph.value_info, *inferred.graph.output)}
    return {node.op_type for node in model.graph.node if types.get(node.output[0]) == TensorProto.FLOAT16 and node.op_type != "Cast"}


RMS = """rms (float[n, 8] x) => (float[n, 8] y)
{
    h = MatMul(x, W)
    square = Mul(h, h)
    mean = ReduceMean(square, axis)
    kept = Add(mean, epsilon)
    length = Sqrt(kept)
    unit = Div(h, length)
    y = MatMul(unit, V)
}"""


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_products_and_what_follows_them_run_in_half_precision_and_means_do_not() -> None:
    model = model_of(RMS, W=normal(8, 8), V=normal(8, 8), axis=np.array([-1], np.int64), epsilon=np.array([1e-6], np.float32))
    half = converted(model)
    assert half_operations(half) == {"MatMul", "Mul"}
    x = normal(3, 8)
    assert 0 < np.abs(run(half, x=x) - run(model, x=x)).max() < 5e-3
    assert {tensor.name: tensor.data_type for tensor in half.graph.initializer if tensor.name.startswith(("W", "V"))} == {
        "W/half": TensorProto.FLOAT16,
        "V/half": TensorProto.FLOAT16,
    }


def test_a_power_spectrum_stays_float32() -> None:
    """A logarithm of a power: in half precision the quiet bins would be zero and the loud ones infinite."""
    text = """sound (float[n, 16] x) => (float[n, 4] y)
    {
        amplitude = MatMul(x, W)
        power = Mul(amplitude, amplitude)
        kept = Max(power, least)
        level = Log(kept)
        y = MatMul(level, V)
    }"""
    model = model_of(text, W=normal(16, 8), V=normal(8, 4), least=np.array([1e-10], np.float32))
    half = converted(model)
    assert half_operations(half) == {"MatMul"} and [tensor.data_type for tensor in half.graph.initializer if tensor.name == "W"] == [TensorProto.FLOAT]
    for size in (1e-4, 1.0, 1e3):
        x = normal(2, 16) * np.float32(size)
        expected = run(model, x=x)
        assert np.abs(run(half, x=x) - expected).max() < 5e-3 * np.abs(expected).max()


def test_angles_of_large_positions_stay_float32() -> None:
    """2049 is no half number: rotary angles in half precision would repeat."""
    text = """rotary (int64[n] position, float[n, 4] x) => (float[n, 4] y)
    {
        places = Cast<to = 1>(position)
        column = Unsqueeze(places, axis)
        angle = MatMul(column, frequencies)
        turned = Cos(angle)
        rotated = Mul(x, turned)
        y = MatMul(rotated, W)
    }"""
    frequencies = np.array([[1.0, 0.1, 0.01, 0.001]], np.float32)
    model = model_of(text, W=normal(4, 4), axis=np.array([1], np.int64), frequencies=frequencies)
    position, x = np.array([3, 2049, 4097, 30001]), normal(4, 4)
    assert np.abs(run(converted(model), position=position, x=x) - run(model, position=position, x=x)).max() < 5e-3


def test_a_layer_before_a_sine_is_no_angle() -> None:
    text = "snake (float[n, 8] x) => (float[n, 8] y) { h = MatMul(x, W) wave = Sin(h) y = MatMul(wave, V) }"
    half = converted(model_of(text, W=normal(8, 8), V=normal(8, 8)))
    assert not [tensor.name for tensor in half.graph.initializer if tensor.data_type == TensorProto.FLOAT]


def test_a_mask_beyond_the_range_stays_a_mask() -> None:
    text = "masked (float[n, 4] x) => (float[n, 4] y) { h = MatMul(x, W) score = Add(h, mask) y = Softmax<axis = -1>(score) }"
    mask = np.array([0, 0, np.finfo(np.float32).min, -np.inf], np.float32)
    half = converted(model_of(text, W=normal(4, 4), mask=mask))
    stored = next(numpy_helper.to_array(tensor) for tensor in half.graph.initializer if tensor.name == "mask/half")
    assert stored.tolist() == [0, 0, -65504, -np.inf]
    found = run(half, x=normal(3, 4))
    assert np.isfinite(found).all() and not found[:, 2:].any() and np.allclose(found.sum(1), 1, atol=1e-3)


def test_a_branch_reads_float32_values_from_outside() -> None:
    """What a subgraph captures is cast back, not lost."""
    branch = "inner () => (float[n, 4] z) { z = Abs(h) }"
    other = "outer () => (float[n, 4] z) { z = Neg(h) }"
    graph = onnx.parser.parse_graph("chosen (float[n, 4] x, bool[1] c) => (float[n, 4] y) { h = MatMul(x, W) }")
    graph.initializer.append(numpy_helper.from_array(normal(4, 4), "W"))
    graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=onnx.parser.parse_graph(branch), else_branch=onnx.parser.parse_graph(other)))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    half = converted(model)
    for choice in (True, False):
        feeds: dict[str, Any] = {"x": normal(2, 4), "c": np.array([choice])}
        assert 0 < np.abs(run(half, **feeds) - run(model, **feeds)).max() < 5e-3


def test_a_graph_without_products_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VariantError, match="float16: this graph has no product"):
        convert(model_of("plain (float[n] x) => (float[n] y) { y = Relu(x) }"))
