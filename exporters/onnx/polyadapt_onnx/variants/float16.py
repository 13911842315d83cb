"""Variant `float16`: weights and products in half precision, for half the size and for processors that are fast at it.

Inputs, outputs and slots stay float32, with casts behind and before them: the same artifacts fit, the same callers
call, and a cast of an artifact's few megabytes costs less than a second file for each artifact would.

What runs in half precision:

- products (MatMul, Gemm, Conv …), lookups, normalisation and softmax do, wherever they stand;
- elementwise operations and moves of data do where what flows into them is half already, so that a sum of squares or
  a mask that is computed in float32 stays there;
- what leads to a logarithm does not (the power spectrum of a sound spans more than half precision holds), and neither
  do products of positions with vectors of frequencies, which lead to a sine (2049 is no half number);
- everything else does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from polyadapt_onnx.variants.errors import VariantError
from polyadapt_onnx.variants.protos import keep_used, put_slots, take_slots

HEAVY = frozenset(
    [
        "MatMul",
        "Gemm",
        "Conv",
        "ConvTranspose",
        "Gather",
        "Softmax",
        "LayerNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "BatchNormalization",
        "Attention",
        "RMSNormalization",
    ]
)
LIGHT = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Neg",
        "Abs",
        "Relu",
        "LeakyRelu",
        "PRelu",
        "Elu",
        "Selu",
        "Sigmoid",
        "Tanh",
        "Erf",
        "Gelu",
        "HardSwish",
        "HardSigmoid",
        "Mish",
        "Clip",
        "Where",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Reshape",
        "Transpose",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Expand",
        "Tile",
        "Pad",
        "Concat",
        "Split",
        "Slice",
        "Identity",
    ]
)
LARGEST = float(np.finfo(np.float16).max)


def convert(model: Any) -> None:
    """Change a model in place.

    Raises:
        VariantError: it has no product that could run in half precision.
    """
    slots = take_slots(model)
    _Pass(model).run()
    put_slots(model, slots)
    keep_used(model)


class _Pass:
    """One walk over the nodes: each that runs in half precision gets casts around it, and casts that nobody needs go."""

    def __init__(self, model: Any) -> None:
        import onnx

        self._onnx, self._model, self._graph = onnx, model, model.graph
        self._types = _types(model)
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
        self._given = {value.name for value in model.graph.input}
        self._halves: dict[str, str] = {}
        self._is_half: set[str] = set()
        self._neutral = set(self._weights) | {value.name for value in model.graph.input if ":" in value.name}  # what says nothing about precision: constants and slots
        self._nodes: list[Any] = []

    def run(self) -> None:
        kept = self._kept()
        nodes = list(self._graph.node)
        if not any(self._is_heavy(node) and node.output[0] not in kept for node in nodes):
            raise VariantError("float16: this graph has no product, lookup or normalisation that could run in half precision; leave the variant out")
        for node in nodes:
            if node.output[0] not in kept and (self._is_heavy(node) or self._follows(node)):
                self._convert(node)
            else:
                self._nodes.append(node)
                if self._floats(node.input) and set(self._floats(node.input)) <= self._neutral and node.op_type in LIGHT:
                    self._neutral.update(node.output)
        self._finish()

    def _is_heavy(self, node: Any) -> bool:
        return node.op_type in HEAVY and node.domain == "" and bool(self._floats(node.input)) and bool(self._floats(node.output))

    def _follows(self, node: Any) -> bool:
        """Whether everything that flows in is half already."""
        flowing = [name for name in self._floats(node.input) if name not in self._neutral]
        return node.op_type in LIGHT and node.domain == "" and bool(flowing) and all(name in self._is_half for name in flowing)

    def _convert(self, node: Any) -> None:
        for position, name in enumerate(node.input):
            if name in self._floats([name]):
                node.input[position] = self._half(name)
        self._nodes.append(node)
        for position, name in enumerate(node.output):
            if self._floats([name]):
                node.output[position] = self._halves[name] = f"{name}/half"
                self._is_half.add(name)
                self._nodes.append(self._cast(f"{name}/half", name, self._onnx.TensorProto.FLOAT))

    def _half(self, name: str) -> str:
        """The half value of a float one: a weight that is converted once, or the output of a cast."""
        if name not in self._halves:
            self._halves[name] = f"{name}/half"
            if name in self._weights:
                self._graph.initializer.append(_half_tensor(self._onnx, self._weights[name], f"{name}/half"))
            else:
                self._nodes.append(self._cast(name, f"{name}/half", self._onnx.TensorProto.FLOAT16))
        return self._halves[name]

    def _cast(self, source: str, target: str, dtype: int) -> Any:
        return self._onnx.helper.make_node("Cast", [source], [target], name=f"cast {target}", to=dtype)

    def _finish(self) -> None:
        """Drop casts back to float32 whose result nobody reads, and descriptions of values, which no longer hold."""
        del self._graph.node[:]
        self._graph.node.extend(self._nodes)
        used = {name for node in self._graph.node for name in _all_inputs(node)} | {value.name for value in self._graph.output}
        alive = [node for node in self._graph.node if not (node.op_type == "Cast" and node.name.startswith("cast ") and node.output[0] not in used)]
        del self._graph.node[:]
        self._graph.node.extend(alive)
        del self._graph.value_info[:]

    def _floats(self, names: Any) -> list[str]:
        return [name for name in names if self._types.get(name) == self._onnx.TensorProto.FLOAT]

    def _kept(self) -> set[str]:
        """First outputs of the nodes that stay in float32: all before a logarithm, and products of positions and frequencies before a sine or cosine."""
        producers = {name: node for node in self._graph.node for name in node.output}
        kept = {node.output[0] for end in self._graph.node if end.op_type == "Log" for node in _before(end, producers, lambda node: True)}
        angles = [node for node in self._graph.node if node.op_type in ("Sin", "Cos")]
        return kept | {node.output[0] for end in angles for node in _before(end, producers, lambda node: not self._has_matrix(node))}

    def _has_matrix(self, node: Any) -> bool:
        """Whether a constant with more than one axis longer than 1 goes in: a layer of the network, not a table of frequencies."""
        return any(sum(size > 1 for size in self._weights[name].dims) > 1 for name in node.input if name in self._weights)


def _before(end: Any, producers: dict[str, Any], passes: Any) -> Iterator[Any]:
    """Nodes on the way to `end`, as far as `passes` lets through."""
    seen: set[str] = set()
    waiting = [end]
    while waiting:
        for name in _all_inputs(waiting.pop()):
            node = producers.get(name)
            if node is not None and node.output[0] not in seen and passes(node):
                seen.add(node.output[0])
                waiting.append(node)
                yield node


def _all_inputs(node: Any) -> Iterator[str]:
    """What a node reads, within its subgraphs too."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            for nested in inner.node:
                yield from _all_inputs(nested)
            yield from (value.name for value in inner.output)


def _types(model: Any) -> dict[str, int]:
    """Element type of every value that has one."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(_without_data(model))
    found = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for value in (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info):
        found[value.name] = value.type.tensor_type.elem_type
    return found


def _without_data(model: Any) -> Any:
    """The same graph whose large constants are inputs: types do not depend on their numbers, and protobuf refuses more than 2 GB."""
    import onnx

    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.name = "types"
    for field in ("node", "input", "output", "value_info"):
        getattr(light.graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        if int(np.prod(tensor.dims)) <= 1024:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light


def _half_tensor(onnx: Any, tensor: Any, name: str) -> Any:
    """Numbers beyond half precision become its largest: a mask of -3e38 stays a mask and does not become infinite."""
    values = onnx.numpy_helper.to_array(tensor)
    finite = np.where(np.isfinite(values), np.clip(values, -LARGEST, LARGEST), values)
    return onnx.numpy_helper.from_array(finite.astype(np.float16), name)
