"""Weights of an ONNX file by the names that they had in training. The graph is read, never run.

Exporters fold and rename: a weight that weight norm made is called `onnx::Conv_8168`, equal tensors are shared through
Identity, an exponential of a constant becomes a constant. What a tensor is follows from the node that uses it:
    a convolution's weight   belongs to its bias, whose name survives
    the embedding            is what the graph's first input picks rows of
    exp(-log_scale)          is what the difference with the shift of the affine flow is multiplied by
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyadapt.errors import UserError

EMBEDDING, SHIFT, LOG_SCALE = "enc_p.emb.weight", "dp.flows.0.m", "dp.flows.0.logs"
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Geometry:
    """Stride and dilation of a convolution."""

    stride: int
    dilation: int


@dataclass(frozen=True)
class VoiceGraph:
    """What a file holds: arrays in float32 and the geometry of convolutions, both by the names of training."""

    arrays: Arrays
    geometry: Mapping[str, Geometry]


def read_voice_graph(path: Path) -> VoiceGraph:
    """Read an ONNX voice.

    Raises:
        UserError: there is no such file, it is no ONNX model, or its weights lie in another file.
    """
    import onnx

    if not path.is_file():
        raise UserError(f"no file {path}; give the .onnx file of a Piper voice")
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # of protobuf's own class, which onnx does not hand on
        raise UserError(f"{path} is no ONNX file ({error}); give the .onnx file of a Piper voice") from error
    constants = _constants(graph, path)
    found = {name: value for name, value in constants.items() if "." in name and not name.startswith("/")}
    geometry = {}
    ids = graph.input[0].name if graph.input else ""
    for node in graph.node:
        first, second = (*node.input[:2], "", "")[:2]
        if node.op_type in ("Conv", "ConvTranspose") and second in constants:
            name = _weight_name(node)
            found[name] = constants[second]
            geometry[name] = _geometry(node)
        elif node.op_type == "Gather" and first in constants and second == ids:
            found[EMBEDDING] = constants[first]
    scale = _log_scale(graph, constants)
    if scale is not None:
        found.setdefault(LOG_SCALE, scale)
    return VoiceGraph({name: value.astype(np.float32) for name, value in found.items()}, geometry)


def _constants(graph: Any, path: Path) -> Arrays:
    """Every tensor that the graph holds, those behind Identity and Constant nodes included."""
    from onnx import TensorProto, numpy_helper

    found: Arrays = {}
    for tensor in graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            raise UserError(f"{path} keeps {tensor.name} in another file; a Piper voice is one file, save the model with its weights inside")
        found[tensor.name] = numpy_helper.to_array(tensor)
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _weight_name(node: Any) -> str:
    """The name of a convolution's weight: its own, or that of its bias with another end."""
    weight = str(node.input[1])
    bias = str(node.input[2]) if len(node.input) > 2 else ""
    return f"{bias.removesuffix('.bias')}.weight" if bias.endswith(".bias") else weight


def _geometry(node: Any) -> Geometry:
    values = {attribute.name: list(attribute.ints) for attribute in node.attribute}
    return Geometry(values.get("strides", [1])[0], values.get("dilations", [1])[0])


def _log_scale(graph: Any, constants: Arrays) -> NDArray[Any] | None:
    """From what (z - shift) is multiplied by: exp(-log_scale), a constant or the exponential of one."""
    differences = {node.output[0] for node in graph.node if node.op_type == "Sub" and SHIFT in node.input}
    exponents = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Exp"}
    for node in graph.node:
        if node.op_type == "Mul" and differences.intersection(node.input):
            for name in node.input:
                if name in constants:
                    return -np.log(constants[name])
                if exponents.get(name) in constants:
                    return -constants[exponents[name]]
    return None
