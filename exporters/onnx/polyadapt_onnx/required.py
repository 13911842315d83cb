"""The same graph with its slots as required inputs, for engines that cannot feed a slot with a default.

JavaScript's onnxruntime packages list plain inputs only: one refuses a slot, the other takes it and ignores it.
So beside `model.onnx` lie `model_slots.onnx`, the same nodes over the same weights, and `model_slots.safetensors`,
the defaults that it no longer holds; feeding them gives the base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch

from polyadapt.edits import kind_of
from polyadapt.tensors import save_tensors
from polyadapt_onnx.gate import Case, GateReport, Graph, numpy_of
from polyadapt_onnx.slots import SlotGroup

SUFFIX = "_slots"
# Their identity may have rank 0. Who must feed every slot is given one row of zeros instead of empty tensors, which does the same, exactly.
RANKED = ("lowrank", "bottleneck")


def required_file(graph: Path) -> Path:
    """Where the form of a graph with required slots lies: `onnx/model.onnx` has `onnx/model_slots.onnx`."""
    return graph.with_name(f"{graph.stem}{SUFFIX}.onnx")


def defaults_file(graph: Path) -> Path:
    """Where the defaults of that form lie."""
    return graph.with_name(f"{graph.stem}{SUFFIX}.safetensors")


def defaults_of(groups: Iterable[SlotGroup]) -> dict[str, torch.Tensor]:
    """The identity by slot name; rank 1 with zeros where the graph's own default has rank 0."""
    made: dict[str, torch.Tensor] = {}
    for group in groups:
        tensors = kind_of(group.kind).pad(group.default, group.variant, 1) if group.kind in RANKED else group.default
        made |= {name: tensors[tensor] for tensor, name in group.names().items()}
    return made


def write_required(graph: Path, defaults: Mapping[str, torch.Tensor]) -> Path:
    """Write the form of one graph whose slots must be fed, and the file of their defaults, beside it.

    Args:
        graph: an ONNX file in which every slot is an input with an initializer of the same name.
        defaults: what those initializers stand for.

    Returns:
        The new ONNX file. It names the weights file of `graph`, and is moved together with it.
    """
    model = onnx.load(str(graph), load_external_data=False)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in defaults]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    target = required_file(graph)
    target.write_bytes(model.SerializeToString())
    save_tensors(defaults_file(graph), defaults)
    return target


def describe_required(graph: Path) -> dict[str, str]:
    """What a graph's entry in the manifest says of that form, where there is one."""
    named = {"slots_file": required_file(graph), "slots_defaults": defaults_file(graph)}
    return {key: f"onnx/{path.name}" for key, path in named.items() if path.exists()}


def check_required(graph: Graph, path: Path, defaults: Mapping[str, torch.Tensor], cases: Sequence[Case], report: GateReport) -> None:
    """Compare the two forms of a graph: fed with defaults and a case's slots, one answers as the other does, bit for bit.

    Args:
        graph: the form whose slots have defaults.
        path: the form whose slots are required.
        defaults: what stands for the slots that a case does not feed.
        cases: of the base, of random edits and of artifacts.
        report: takes one row for each case.
    """
    required, identity = Graph(path), numpy_of(defaults)
    for case in cases:
        expected, found = graph.run(case.inputs, case.slots), required.run(case.inputs, {**identity, **case.slots})
        ok = not required.overridable and all(np.array_equal(found[output], value, equal_nan=True) for output, value in expected.items())
        message = f"{path.name}, {case.name}: {'equals' if ok else 'differs from'} the graph whose slots have defaults"
        report.effects.append({"check": "required-slots", "case": case.name, "artifact": case.artifact, "ok": ok, "message": message})
