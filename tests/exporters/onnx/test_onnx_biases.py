"""Biases stand behind low-rank products in exported graphs, and the sums are what they were."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

onnxruntime = pytest.importorskip("onnxruntime")
from polyadapt_onnx.biases import biases_last  # noqa: E402

WIDTH, RANK = 4, 2


def constant(name: str, *shape: int, seed: int) -> onnx_ir.Value:
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return onnx_ir.Value(name=name, shape=onnx_ir.Shape(shape), type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT), const_value=onnx_ir.Tensor(array, name=name))


def graph_of(with_bias_slot: bool = False, shares_sum: bool = False) -> onnx_ir.Model:
    """(x W + bias) + (x a) b, then Relu."""
    x = onnx_ir.Value(name="x", shape=onnx_ir.Shape(("n", WIDTH)), type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT))
    weight, bias = constant("weight", WIDTH, WIDTH, seed=1), constant("bias", WIDTH, seed=2)
    a, b = constant("a", WIDTH, RANK, seed=3), constant("b", RANK, WIDTH, seed=4)
    product = onnx_ir.node("MatMul", [x, weight])
    biased = onnx_ir.node("Add", [product.outputs[0], bias])
    inner = onnx_ir.node("MatMul", [x, a])
    lowrank = onnx_ir.node("MatMul", [inner.outputs[0], b])
    total = onnx_ir.node("Add", [biased.outputs[0], lowrank.outputs[0]])
    last = onnx_ir.node("Relu", [total.outputs[0]])
    nodes = [product, biased, inner, lowrank, total, last]
    outputs = [last.outputs[0]]
    if shares_sum:
        nodes.append(onnx_ir.node("Neg", [biased.outputs[0]]))
        outputs.append(nodes[-1].outputs[0])
    for index, node in enumerate(nodes):
        node.outputs[0].name = f"v{index}"
    for output in outputs:
        output.type, output.shape = onnx_ir.TensorType(onnx_ir.DataType.FLOAT), onnx_ir.Shape(("n", WIDTH))
    inputs = [x, bias] if with_bias_slot else [x]
    graph = onnx_ir.Graph(inputs, outputs, nodes=nodes, initializers=[weight, bias, a, b], opset_imports={"": 20}, name="toy")
    return onnx_ir.Model(graph, ir_version=10)


def run(model: onnx_ir.Model) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[np.ndarray] = session.run(None, {"x": np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)})
    return found


def test_the_bias_comes_last_and_the_sum_stays() -> None:
    before = run(graph_of())[0]
    model = graph_of()
    assert biases_last(model.graph) == 1
    last = next(node for node in model.graph if node.op_type == "Relu").inputs[0].producer()
    assert last is not None and last.op_type == "Add" and "bias" in [value.name for value in last.inputs if value is not None]
    assert sum(node.op_type == "Add" for node in model.graph) == 2
    np.testing.assert_allclose(run(model)[0], before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{"with_bias_slot": True}, {"shares_sum": True}])
def test_what_is_needed_elsewhere_stays(options: dict[str, bool]) -> None:
    """A bias that may be fed, and a sum that something else reads."""
    model = graph_of(**options)
    assert biases_last(model.graph) == 0
