"""Biases behind low-rank products, where onnxruntime finds them.

An edit adds its product to the op's output: (x W + bias) + x a b. onnxruntime fuses a bias with the activation, or with
residual and norm, that follows it, and does not look past the edit. (x W + x a b) + bias is the same sum, keeps those
fusions, and costs one pass over the output instead of two.
"""

from __future__ import annotations

from typing import Any


def biases_last(graph: Any) -> int:
    """Change the order of every such pair of additions in an onnx_ir graph; returns how many there were."""
    import onnx_ir

    moved = 0
    for outer in list(graph):
        if outer.op_type != "Add":
            continue
        for inner_value, product in (outer.inputs, reversed(outer.inputs)):
            inner = inner_value.producer()
            if product.producer() is None or product.producer().op_type != "MatMul" or inner is None or inner.op_type != "Add" or len(inner_value.uses()) != 1:
                continue
            found = _bias_of(inner)
            if found is None or inner_value.is_graph_output():
                continue
            whole, bias = found
            total = onnx_ir.node("Add", [whole, product])
            total.outputs[0].shape, total.outputs[0].type = inner_value.shape, inner_value.type
            graph.insert_before(outer, total)
            outer.replace_input_with(0, total.outputs[0])
            outer.replace_input_with(1, bias)
            graph.remove(inner, safe=True)
            moved += 1
            break
    return moved


def _bias_of(addition: Any) -> tuple[Any, Any] | None:
    """(the other summand, bias) of an addition of a constant vector to a product."""
    for whole, bias in (addition.inputs, reversed(addition.inputs)):
        is_constant = bias.is_initializer() and not bias.is_graph_input() and bias.const_value is not None
        if is_constant and len(bias.const_value.shape) == 1 and whole.producer() is not None and whole.producer().op_type == "MatMul":
            return whole, bias
    return None
