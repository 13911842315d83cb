"""An ONNX file as protobuf, its slots taken off for the time of a conversion, and saved again without traces of where."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def load(path: Path) -> Any:
    """The whole model, weights included."""
    import onnx

    return onnx.load(str(path))


def save(model: Any, path: Path) -> None:
    """Write a model with its weights beside it, as the exporter writes every graph."""
    import onnx

    for holder in (model, model.graph, *model.graph.node):
        del holder.metadata_props[:]
        holder.ClearField("doc_string")
    onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)


def take_slots(model: Any) -> list[Any]:
    """Remove the defaults of all slots, so that no converter takes them for weights; gives what `put_slots` puts back.

    Without its default a slot is an input like others, and what reads it is no constant.
    """
    inputs = {value.name for value in model.graph.input}
    taken = [tensor for tensor in model.graph.initializer if tensor.name in inputs]
    _keep_initializers(model.graph, (tensor for tensor in model.graph.initializer if tensor.name not in inputs))
    return taken


def put_slots(model: Any, taken: Iterable[Any]) -> None:
    """Give slots their defaults again."""
    model.graph.initializer.extend(taken)


def keep_used(model: Any) -> None:
    """Drop the constants that no node reads any more, in subgraphs neither."""
    used = set(_read(model.graph)) | {value.name for value in (*model.graph.output, *model.graph.input)}
    _keep_initializers(model.graph, (tensor for tensor in model.graph.initializer if tensor.name in used))


def _read(graph: Any) -> Iterable[str]:
    """Every name that some node reads."""
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _read(inner)
                yield from (value.name for value in inner.output)


def _keep_initializers(graph: Any, kept: Iterable[Any]) -> None:
    chosen = list(kept)
    del graph.initializer[:]
    graph.initializer.extend(chosen)
