"""From a torch module with attached edits to an ONNX file whose slots are overridable initializers.

Slots take the place of named parameters while the graph is traced, so they are inputs of it; each such input then
gets the identity as initializer of the same name, so that it may be fed and need not be.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from polyadapt.errors import ExportError
from polyadapt.families.card import ExportRecipe
from polyadapt.families.explicit_attention import ExplicitAttention
from polyadapt.signature import Signature, TensorSpec
from polyadapt.sites import module_name
from polyadapt_onnx.biases import biases_last
from polyadapt_onnx.slots import SlotGroup, free_axes

SLOT_FORM = "slots"


class GraphModule(nn.Module):
    """Named inputs and slots in, the signature's outputs in order out."""

    def __init__(self, inner: nn.Module, outputs: Sequence[str], slot_parameters: Mapping[str, str]) -> None:
        super().__init__()
        self.inner = inner
        self._outputs, self._slots = tuple(outputs), dict(slot_parameters)

    def forward(self, inputs: dict[str, torch.Tensor], slots: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        with substituted(self.inner, {self._slots[name]: value for name, value in slots.items()}):
            outputs = self.inner(**inputs)
        return tuple(outputs[name] for name in self._outputs)


@contextlib.contextmanager
def substituted(module: nn.Module, given: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Tensors in the place of named parameters within a block.

    What `torch.func.functional_call` does, which the legacy exporter's tracer refuses.
    """
    kept: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for path, value in given.items():
            owner, _, name = path.rpartition(".")
            table: dict[str, Any] = module.get_submodule(owner)._parameters
            kept.append((table, name, table[name]))
            table[name] = value
        yield
    finally:
        for table, name, value in reversed(kept):
            table[name] = value


@dataclass(frozen=True)
class Traced:
    """What `trace` is asked for.

    `inner` answers keyword tensors with a dict; `holder` is the name of the attached form's parameters in it.
    """

    inner: nn.Module
    signature: Signature
    example: Mapping[str, torch.Tensor]
    groups: Sequence[SlotGroup]
    example_slots: Mapping[str, torch.Tensor]
    recipe: ExportRecipe
    parameter_prefix: str = f"polyadapt.forms.{SLOT_FORM}.slots."


def write_graph(traced: Traced, path: Path) -> str:
    """Trace and save; returns the exporter that worked (`dynamo` or `legacy`).

    Raises:
        ExportError: the exporter failed, with its own reason in one line.
        OSError: the place cannot be written.
    """
    names = [name for group in traced.groups for name in group.names().values()]
    outputs = [spec.name for spec in traced.signature.outputs]
    module = GraphModule(traced.inner, outputs, {name: traced.parameter_prefix + module_name(name) for name in names}).eval()
    inputs = {spec.name: traced.example[spec.name] for spec in traced.signature.inputs}
    slots = {name: traced.example_slots[name] for name in names}
    path.parent.mkdir(parents=True, exist_ok=True)
    context = ExplicitAttention() if traced.recipe.explicit_attention else contextlib.nullcontext()
    with torch.no_grad(), context, quiet(), paused_collection():
        try:
            if traced.recipe.exporter == "legacy":
                _write_legacy(module, inputs, slots, traced, path)
            else:
                _write_dynamo(module, inputs, slots, traced, path)
        except (ExportError, OSError):  # a full disk is no fault of the graph's
            raise
        except Exception as error:
            reason = root_cause(error)
            raise ExportError(f"the {traced.recipe.exporter} exporter cannot trace this model: {reason}") from error
    return traced.recipe.exporter


def _write_dynamo(module: GraphModule, inputs: dict[str, torch.Tensor], slots: dict[str, torch.Tensor], traced: Traced, path: Path) -> None:
    dynamic = {
        "inputs": {spec.name: _dynamic_axes(spec, traced.recipe) for spec in traced.signature.inputs},
        "slots": {name: dict.fromkeys(free_axes(group.shapes[tensor]), Dim.DYNAMIC) for group in traced.groups for tensor, name in group.names().items()},
    }
    program = torch.onnx.export(module, (), kwargs={"inputs": inputs, "slots": slots}, dynamo=True, opset_version=traced.recipe.opset, dynamic_shapes=dynamic, verbose=False)
    assert program is not None
    finish(program.model, traced)
    program.save(str(path), external_data=True)


def _write_legacy(module: GraphModule, inputs: dict[str, torch.Tensor], slots: dict[str, torch.Tensor], traced: Traced, path: Path) -> None:
    import onnx_ir

    names = [*inputs, *slots]
    axes: dict[str, dict[int, str]] = {
        spec.name: {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)} for spec in (*traced.signature.inputs, *traced.signature.outputs)
    }
    for group in traced.groups:
        for tensor, name in group.names().items():
            axes[name] = {axis: f"{group.key}.{group.shapes[tensor][axis]}" for axis in free_axes(group.shapes[tensor])}
    flat = _Flat(module, tuple(inputs), tuple(slots)).eval()
    torch.onnx.export(
        flat,
        (*inputs.values(), *slots.values()),
        str(path),
        dynamo=False,
        opset_version=min(traced.recipe.opset, 17),
        input_names=names,
        output_names=[spec.name for spec in traced.signature.outputs],
        dynamic_axes=axes,
        do_constant_folding=True,
        keep_initializers_as_inputs=False,
    )
    model = onnx_ir.load(str(path))
    finish(model, traced)
    onnx_ir.save(model, str(path), external_data=f"{path.name}.data")


def root_cause(error: BaseException) -> str:
    """The innermost reason of an exporter's error, in one line of at most 300 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__


class _Flat(nn.Module):
    """The same graph module with positional tensors, as the legacy exporter wants them."""

    def __init__(self, module: GraphModule, inputs: tuple[str, ...], slots: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self._inputs, self._slots = module, inputs, slots

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        count = len(self._inputs)
        result: tuple[torch.Tensor, ...] = self.module(dict(zip(self._inputs, tensors[:count], strict=True)), dict(zip(self._slots, tensors[count:], strict=True)))
        return result


def finish(model: Any, traced: Traced) -> None:
    """Name inputs, outputs and dimensions, give slots their defaults, and strip traces of this machine."""
    import onnx_ir

    graph = model.graph
    slot_names = [name for group in traced.groups for name in group.names().values()]
    wanted = [spec.name for spec in traced.signature.inputs] + slot_names
    if len(graph.inputs) != len(wanted):
        raise ExportError(f"the traced graph has {len(graph.inputs)} inputs, expected {len(wanted)} (inputs and slots): an input that nothing uses was dropped")
    for value, name in zip(list(graph.inputs), wanted, strict=True):
        value.name = name
    for value, spec in zip(list(graph.outputs), traced.signature.outputs, strict=True):
        value.name = spec.name
    _name_dimensions(graph, traced.signature)
    biases_last(graph)
    defaults = {name: group.default[tensor] for group in traced.groups for tensor, name in group.names().items()}
    for value in list(graph.inputs):
        if value.name in defaults:
            value.const_value = onnx_ir.Tensor(defaults[value.name].detach().cpu().numpy().copy(), name=value.name)
            graph.initializers[value.name] = value
    for holder in (model, graph, *graph.all_nodes()):
        holder.metadata_props.clear()
        if hasattr(holder, "doc_string"):
            holder.doc_string = None
    for value in [*graph.inputs, *graph.outputs, *graph.initializers.values()]:
        value.metadata_props.clear()


def _name_dimensions(graph: Any, signature: Signature) -> None:
    """Give the tracer's symbols (s77) the signature's names, everywhere in the graph."""
    import onnx_ir

    names: dict[str, str] = {}
    for value, spec in zip(list(graph.inputs)[: len(signature.inputs)], signature.inputs, strict=True):
        for size, found in zip(spec.shape, value.shape or (), strict=False):
            if isinstance(size, str) and isinstance(found, onnx_ir.SymbolicDim) and found.value and "+" not in size:
                names.setdefault(str(found.value), size)
    values = [*graph.inputs, *graph.outputs, *(output for node in graph.all_nodes() for output in node.outputs)]
    for value in values:
        if value.shape is None:
            continue
        value.shape = onnx_ir.Shape(
            [onnx_ir.SymbolicDim(names[str(size.value)]) if isinstance(size, onnx_ir.SymbolicDim) and str(size.value) in names else size for size in value.shape]
        )


def _dynamic_axes(spec: TensorSpec, recipe: ExportRecipe) -> dict[int, Any]:
    kind = Dim.AUTO if recipe.maximum else Dim.DYNAMIC
    return {axis: Dim(size, max=recipe.maximum[size]) if size in recipe.maximum else kind for axis, size in enumerate(spec.shape) if isinstance(size, str)}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporters warn at length about things that the gate decides, and print whole graphs when they give up."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextlib.contextmanager
def paused_collection() -> Iterator[None]:
    """No garbage collection within a block: tracing makes millions of small objects that live until its end (a fifth of its time)."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
