"""Calls of a graph with checked feeds: what onnxruntime would refuse in its own words is refused here in ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from polyadapt_runtime.errors import ArtifactError, GraphError, InputError, nearest
from polyadapt_runtime.manifest import Graph, Manifest
from polyadapt_runtime.session import Session
from polyadapt_runtime.slots import check_groups

BATCH = "batch"  # what the format calls the axis of examples


class Runner:
    """A session behind the names, dtypes and shapes of its manifest.

    Raises:
        GraphError: the graph is not what the manifest describes.
    """

    def __init__(self, manifest: Manifest, graph: Graph, session: Session) -> None:
        self._manifest, self._session = manifest, session
        self._inputs = tuple(port.name for port in graph.inputs)
        self._known: dict[str, tuple[str, tuple[int | str, ...]]] = {port.name: (port.dtype, port.shape) for port in graph.inputs}
        if {name: dtype for name, (dtype, _) in self._known.items()} != session.inputs:
            raise GraphError(f"{graph.file} takes {session.inputs}, its manifest says {', '.join(self._inputs)}; export it again")
        reached = [slot for slot in manifest.slots.values() if session.overridable.get(slot.name) == slot.dtype]
        self._known.update({slot.name: (slot.dtype, slot.shape) for slot in reached})
        self._reaches_all = len(reached) == len(manifest.slots)

    def run(self, feeds: Mapping[str, Any], slots: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Outputs for arrays by input name, beside OrtValues by slot name.

        Raises:
            InputError: an unknown or missing input, another dtype or shape.
            ArtifactError: a slot given twice, or half a group of slots.
        """
        return self._session.arrays(self.feeds(feeds, slots))

    def feeds(self, feeds: Mapping[str, Any], slots: Mapping[str, Any]) -> dict[str, Any]:
        """What `run` feeds: the checked arrays, and those slots that are in this graph."""
        slots = slots if self._reaches_all else {name: value for name, value in slots.items() if name in self._known}
        own = {name: self._checked(name, value) for name, value in feeds.items()}
        if missing := [name for name in self._inputs if name not in own and name not in slots]:
            raise InputError(f"input {', '.join(map(repr, missing))} missing; this graph takes {', '.join(self._inputs)}")
        if twice := sorted(set(own) & set(slots)):
            raise ArtifactError(f"slots {', '.join(twice[:3])} are given by the artifact and by the feeds; give them once")
        if len(own) > len(self._inputs):
            check_groups(self._manifest, {*slots, *own}, "the call")
        return {**slots, **own}

    def _checked(self, name: str, value: Any) -> np.ndarray:
        """One feed as an array of the input's dtype and shape."""
        if name not in self._known:
            raise InputError(f"this graph has no input {name!r}{nearest(name, self._known)}")
        dtype, shape = self._known[name]
        array, wanted = as_array(value, name), np.dtype(dtype)
        if array.dtype.kind.replace("u", "i") != wanted.kind.replace("u", "i"):
            raise InputError(f"input {name!r} takes {dtype}, found {array.dtype}; convert it with .astype(numpy.{dtype})")
        if array.ndim != len(shape) or any(isinstance(size, int) and size != found for size, found in zip(shape, array.shape, strict=False)):
            raise InputError(f"input {name!r} takes shape [{', '.join(map(str, shape))}], found {list(array.shape)}")
        return array.astype(wanted, copy=False)


def as_array(value: Any, name: str) -> np.ndarray:
    """What is fed to an input, as an array.

    Raises:
        InputError: lists of different lengths.
    """
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(f"input {name!r} takes one array, and these values are none: {error}") from error


def rows_of(outputs: Mapping[str, np.ndarray], graph: Graph) -> list[dict[str, np.ndarray]]:
    """Outputs without their batch axis, by example. What the manifest gives no such axis is shared, whatever its size happens to be."""
    first = {port.name: port.shape[0] for port in graph.outputs if port.shape and port.name in outputs}
    axis = BATCH if BATCH in first.values() else next(iter(first.values()), None)  # of a graph by another hand the first output tells
    split = [name for name, size in first.items() if size == axis]
    if not split:
        raise GraphError(f"no output of {graph.file} has an axis of examples; it gives: {', '.join(outputs)}")
    return [{name: value[index] if name in split else value for name, value in outputs.items()} for index in range(outputs[split[0]].shape[0])]


def shares_examples(graph: Graph) -> bool:
    """Whether inputs have first axes of their own, as pictures and texts that are compared each with each: then a batch is no list of examples."""
    return len({port.shape[0] for port in graph.inputs if port.shape}) > 1
