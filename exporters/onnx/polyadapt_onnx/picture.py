"""A small graph in front of models that take pictures: decoded pixels of any size to the tensor of the model.

An embedder without Pillow (a browser, a program in C) then needs a decoder only. onnxruntime resizes 8-bit pictures
as Pillow does, in two passes that each round to 8 bits, when weights outside the picture are left out. Mean and
deviation are in the model's own graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from polyadapt_onnx.gate import GateReport, Graph
from polyadapt_runtime.image import read_image

FILE, INPUT, OPSET, IR = "onnx/preprocess.onnx", "picture", 20, 10
# Pillow's filters as attributes of Resize; its bicubic has the coefficient -1/2.
FILTERS = {"bilinear": 'mode = "linear"', "bicubic": 'mode = "cubic", cubic_coeff_a = -0.5'}
# 2 of 255 steps, the most over many pictures of noise: tests/exporters/onnx/test_picture_graph.py measures it.
TOLERANCE = 2.01 / 255
CAUSE = "Pillow and onnxruntime round to 8 bits after each of two passes, and weigh with other precision: 2 of 255 steps"
# Noise that no filter drives beyond black or white. Where one does, Pillow cuts off between its passes, whose order it
# chooses by the shape of the picture, and single pixels at hard edges come out otherwise.
DARKEST, BRIGHTEST = 64, 192


def why_not(spec: Mapping[str, Any] | None) -> str:
    """Why a pre-processing spec has no graph; empty when it has one."""
    if spec is None or spec.get("kind") != "image":
        return "only pre-processing of kind image becomes a graph"
    if spec.get("interpolation", "bicubic") not in FILTERS:
        return f"ONNX has no resize that equals Pillow's {spec['interpolation']}; {' and '.join(FILTERS)} have one"
    if spec.get("channels", 3) != 3:
        return f"the model takes {spec['channels']} channel, and only pictures of 3 become a graph"
    if spec.get("crop_fraction", 1.0) > 1.0:
        return f"crop_fraction {spec['crop_fraction']} is above 1, so the picture is framed in black"
    return ""


def picture_graph(spec: Mapping[str, Any]) -> onnx.ModelProto:
    """uint8 [height, width, 3] to float32 [1, 3, h, w] in 0..1, as `polyadapt_runtime.image` does it.

    Args:
        spec: of kind `image`, one for which `why_not` is empty.
    """
    (height, width), fraction = spec["size_px"], float(spec.get("crop_fraction", 1.0))
    to_height, to_width = math.floor(height / fraction), math.floor(width / fraction)
    resize = f'antialias = 1, exclude_outside = 1, axes = [2, 3], coordinate_transformation_mode = "half_pixel", {FILTERS[spec.get("interpolation", "bicubic")]}'
    sizes = _SQUASH if spec.get("resize", "crop") == "squash" else _COVER
    text = f"""<ir_version: {IR}, opset_import: ["" : {OPSET}]>
    preprocess (uint8[height, width, 3] {INPUT}) => (float[1, 3, {height}, {width}] {spec["input"]})
    <int64[1] first = {{0}}, int64[2] plane_axes = {{2, 3}}, int64[2] crop = {{{height}, {width}}}, int64[2] least = {{{to_height}, {to_width}}},
     float half = {{0.5}}, float white = {{255}}>
    {{
        planes = Transpose <perm = [2, 0, 1]> ({INPUT})
        batch = Unsqueeze (planes, first)
        {sizes}
        resized = Resize <{resize}> (batch, , , size)
        margin = Sub (size, crop)
        margin_float = Cast <to = {onnx.TensorProto.FLOAT}> (margin)
        middle = Mul (margin_float, half)
        rounded = Round (middle)
        start = Cast <to = {onnx.TensorProto.INT64}> (rounded)
        end = Add (start, crop)
        centre = Slice (resized, start, end, plane_axes)
        pixels = Cast <to = {onnx.TensorProto.FLOAT}> (centre)
        {spec["input"]} = Div (pixels, white)
    }}"""
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    return model


_SQUASH = "size = Identity (least)"
# The other side as long as the shape of the picture asks for, and no side shorter than the least; as `_covering` of the runtime.
_COVER = f"""found = Shape <start = 0, end = 2> ({INPUT})
        found_height, found_width = Split <axis = 0, num_outputs = 2> (found)
        other = Concat <axis = 0> (found_width, found_height)
        least_height, least_width = Split <axis = 0, num_outputs = 2> (least)
        least_other = Concat <axis = 0> (least_width, least_height)
        product = Mul (least_other, found)
        kept_shape = Div (product, other)
        size = Max (least, kept_shape)"""


def write_picture_graph(staging: Path, spec: Mapping[str, Any] | None, report: GateReport, seed: int) -> None:
    """Write `onnx/preprocess.onnx` where the spec allows it, and compare it with the runtime's own way.

    Args:
        staging: the bundle's folder.
        spec: the model's pre-processing.
        report: takes one row for each picture; one beyond the tolerance blocks the export.
        seed: of the pictures, which are noise.
    """
    if spec is None or why_not(spec):
        return
    path = staging / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture_graph(spec).SerializeToString())
    graph, generator = Graph(path), np.random.default_rng(seed)
    for size in picture_sizes(*spec["size_px"]):
        picture = generator.integers(DARKEST, BRIGHTEST + 1, (*size, 3), dtype=np.uint8)
        error = float(np.abs(graph.run({INPUT: picture}, {})[spec["input"]][0] - read_image(picture, spec)).max())
        ok = error <= TOLERANCE
        message = f"preprocess.onnx, picture of {size[0]} x {size[1]}: error {error * 255:.1f} of 255 steps, tolerance {TOLERANCE * 255:.0f}"
        sizes = {"height": size[0], "width": size[1]}
        report.effects.append({"check": "preprocess", "sizes": sizes, "error": error, "tolerance": TOLERANCE, "cause": CAUSE, "ok": ok, "message": message})


def picture_sizes(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """(height, width) of larger, smaller, equal, wide and tall pictures."""
    return ((2 * height + 1, 3 * width), (height // 2 + 1, width // 2 + 3), (height, width), (height + 5, 4 * width + 1), (5 * height, width + 2))


def describe_picture_graph(staging: Path, spec: Mapping[str, Any] | None) -> dict[str, Any]:
    """The manifest's `graphs.preprocess`, where there is one."""
    if spec is None or not (staging / FILE).exists():
        return {}
    height, width = spec["size_px"]
    taken = {"name": INPUT, "dtype": "uint8", "shape": ["height", "width", 3], "meaning": "decoded picture, upright, red green blue", "unit": "0…255"}
    given = {"name": spec["input"], "dtype": "float32", "shape": [1, 3, height, width], "meaning": "picture as the model takes it", "unit": "0…1"}
    return {"preprocess": {"file": FILE, "data": [], "opset": OPSET, "ir": IR, "exporter": "polyadapt", "inputs": [taken], "outputs": [given]}}


def described_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's `preprocess`: the spec, and for pictures that have no graph the reason."""
    reason = why_not(spec) if spec.get("kind") == "image" else ""
    return {**spec, **({"without_graph": reason} if reason else {})}
