"""Bundles of form `bank`: every row of a batch names its own artifact, and the graph gets the names as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from polyadapt_runtime.errors import ArtifactError, InputError, ManifestError, nearest
from polyadapt_runtime.manifest import NUMBERS as INPUT
from polyadapt_runtime.manifest import Manifest, need
from polyadapt_runtime.runner import as_array
from polyadapt_runtime.session import Session
from polyadapt_runtime.slots import Choice


class Bank:
    """Names of artifacts to the numbers that a graph takes; 0 is the base.

    Args:
        manifest: of a bundle of form `bank`.

    Raises:
        ManifestError: an artifact without a number, or two with the same.
    """

    def __init__(self, manifest: Manifest) -> None:
        table = manifest.raw["artifacts"]
        self._numbers: dict[str | None, int] = {None: 0, **{name: need(table[name], INPUT, int, f"artifacts.{name}") for name in manifest.artifacts}}
        if sorted(self._numbers.values()) != list(range(len(self._numbers))):
            raise ManifestError(f"artifacts of a bank are numbered from 1, each once; found {sorted(self._numbers.values())[1:]}; export it again")
        self._inputs = {name: {port.name: port.shape for port in manifest.graphs[name].inputs} for name in manifest.runnable}
        if not any(INPUT in inputs for inputs in self._inputs.values()):
            raise ManifestError(f"a bank's graph takes {INPUT!r}; {' and '.join(self._inputs)} of this bundle do not; export it again")

    def numbers(self, names: Sequence[Any]) -> np.ndarray:
        """int64 [rows].

        Raises:
            ArtifactError: an unknown name, or a mix.
        """
        for name in names:
            if isinstance(name, Mapping):
                raise ArtifactError("a bank holds no mixes; mix the artifacts before the export, or use form='slots'")
            if not isinstance(name, str | None) or name not in self._numbers:
                raise ArtifactError(f"no artifact {name!r} in this bank{nearest(str(name), (known for known in self._numbers if known is not None))}")
        return np.array([self._numbers[name] for name in names], np.int64)

    def slots(self, artifact: Choice, scale: float, session: Session) -> dict[str, Any]:
        """What a call with one row feeds besides its inputs: the number, as OrtValue.

        Raises:
            ArtifactError: an unknown name, more names than one, or a scale.
        """
        refuse_scale(scale)
        return {INPUT: session.value(self.numbers(named_rows(artifact, 1)))}

    def feeds(self, feeds: Mapping[str, Any], artifact: Choice, scale: float, graph: str | None = None) -> dict[str, Any]:
        """Feeds of a graph, by default the first, with the number of each row's artifact where an artifact reaches that graph.

        Numbers that the caller feeds already stay, as for a bank of his own.

        Raises:
            ArtifactError: an unknown name, a wrong number of names, names beside numbers, or a scale.
        """
        refuse_scale(scale)
        if INPUT in feeds:
            if artifact is not None:
                raise ArtifactError(f"the feeds hold {INPUT!r} and the call names artifacts; give one of both")
            refuse_negative(feeds[INPUT])
            return dict(feeds)
        inputs = self._inputs.get(graph or next(iter(self._inputs)), {})  # an unknown graph is refused where it would run
        numbers = self.numbers(named_rows(artifact, batch_of(feeds, inputs)))
        return {**feeds, INPUT: numbers} if INPUT in inputs else dict(feeds)


def batch_of(feeds: Mapping[str, Any], inputs: Mapping[str, tuple[int | str, ...]]) -> int:
    """Rows of the first feed that has them.

    Raises:
        InputError: no feed has a batch axis.
    """
    for name, value in feeds.items():
        if inputs.get(name, ())[:1] == ("batch",) and np.ndim(value):
            return len(value)
    raise InputError(f"no input with a batch axis is given; this graph takes {', '.join(inputs)}")


def refuse_scale(scale: float) -> None:
    """A bank's tensors are in the graph, so nothing is scaled on the way to it.

    Raises:
        ArtifactError: the scale is not 1.
    """
    if scale != 1.0:
        raise ArtifactError(f"scale={scale}: a bank's artifacts act as they were exported; scale the artifact before the export, or use form='slots'")


def refuse_negative(numbers: Any) -> None:
    """The graph would count numbers below 0 from the last artifact backwards.

    Raises:
        ArtifactError: there is one.
    """
    found = as_array(numbers, INPUT)
    if found.dtype.kind == "i" and found.size and int(found.min()) < 0:
        raise ArtifactError(f"{INPUT} is 0 for the base and from 1 on for artifacts, found {int(found.min())}; use the numbers in the manifest")


def named_rows(artifact: Choice, rows: int) -> list[Any]:
    """What each row names; what is no list stands for all.

    Raises:
        ArtifactError: another number of names than rows, or what is no name.
    """
    if artifact is None or isinstance(artifact, str | Mapping):
        return [artifact] * rows
    if not isinstance(artifact, Sequence):
        raise ArtifactError(f"an artifact is called by its name, or several by names with weights, found {artifact!r}; see artifacts()")
    names = list(artifact)
    if len(names) != rows:
        raise ArtifactError(f"{len(names)} artifacts are named for {rows} inputs; name one for each (None is the base), or a single one for all")
    return names


def own_classes(row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of one row without the classes that its artifact does not have: their scores are minus infinity, in every frame."""
    return {name: value[..., (value != -np.inf).reshape(-1, value.shape[-1]).any(axis=0)] if name == "logits" else value for name, value in row.items()}
