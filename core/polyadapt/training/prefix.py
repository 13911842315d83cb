"""The frozen prefix: what lies below everything that trains is computed once and reused in every epoch.

Activations are computed in fixed order and batch size, so they are the same in every run and after a resume.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from polyadapt.errors import UserError
from polyadapt.training.batches import Batch, Examples
from polyadapt.training.bypass import Shape
from polyadapt.training.checkpoint import remove_leftovers
from polyadapt.training.drawing import in_batches
from polyadapt.training.processes import Processes
from polyadapt.training.store import Rows, RowsInMemory, RowsOnDisk, write_rows
from polyadapt.training.targets import Prepared

FOLDER = "prefix"
ACTIVATIONS = "activations of the frozen prefix"  # stands among a batch's inputs and is no input of any model


class UnfitError(Exception):
    """This model, or these data, cannot be cached; the message says why."""


@dataclass(frozen=True)
class Part:
    """One data set, and further examples that fix the size to which its batches are filled up."""

    name: str
    examples: Examples
    further: Sequence[Prepared] = ()

    def batch(self, rows: Sequence[int]) -> Batch:
        """The rows, filled up to the common size."""
        return self.examples.batch(rows, self.further)

    def chunks(self, batch_size: int) -> Iterator[Sequence[int]]:
        """All rows in fixed order and size."""
        return in_batches(range(len(self.examples)), batch_size)


@dataclass(frozen=True)
class Lower:
    """The lower part of a model, as a cache needs it.

    Attributes:
        compute: (part, rows) -> activations [rows, …].
        finish: (inputs, activations) -> outputs: the upper part.
        kept: names of inputs that the upper part looks at.
        dropped: inputs that it gets as zeros of the given shape.
        identity: what the activations depend on besides the data.
    """

    compute: Callable[[Part, Sequence[int]], torch.Tensor]
    finish: Callable[[Mapping[str, torch.Tensor], torch.Tensor], Mapping[str, torch.Tensor]]
    kept: tuple[str, ...]
    dropped: Mapping[str, Shape]
    identity: Mapping[str, Any]


class PrefixFeed:
    """Batches of cached activations, answered by the upper part alone."""

    def __init__(self, part: Part, rows: Rows, lower: Lower, batch_size: int, device: torch.device) -> None:
        self.examples, self.epoch = part.examples, 0
        self._rows, self._lower, self._device = rows, lower, device
        chunks = list(part.chunks(batch_size))
        targets = [part.examples.targets(chunk, part.further) for chunk in chunks]
        inputs = [part.batch(chunk).inputs for chunk in chunks] if lower.kept else []
        self._inputs = {name: torch.cat([piece[name] for piece in inputs]) for name in lower.kept}
        self._targets = {name: torch.cat([piece[name] for piece in targets]) for name in targets[0]}

    def groups(self, rows: Sequence[int]) -> list[Sequence[int]]:
        return [rows] if rows else []

    def batch(self, rows: Sequence[int]) -> Batch:
        index = torch.tensor(rows)
        inputs = {name: value[index] for name, value in self._inputs.items()}
        inputs[ACTIVATIONS] = self._rows.take(rows)
        return Batch(inputs, {name: value[index] for name, value in self._targets.items()}, tuple(rows)).to(self._device)

    def forward(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        inputs = dict(batch.inputs)
        activations = inputs.pop(ACTIVATIONS)
        for name, shape in self._lower.dropped.items():
            inputs[name] = shape.zeros(len(batch.rows), self._device)
        return self._lower.finish(inputs, activations)


@dataclass(frozen=True)
class Cache:
    """How and where activations are held.

    Attributes:
        batch_size: rows that are computed at once.
        memory_bytes: above it activations stay on the disk and are read as they are needed.
        directory: of the run; None holds everything in memory.
        precision: of the forward pass.
        processes: the main one writes, the others read.
    """

    batch_size: int
    memory_bytes: int
    directory: Path | None
    precision: str
    processes: Processes

    def feeds(self, lower: Lower, parts: Sequence[Part]) -> list[PrefixFeed]:
        """Compute the activations of every part, or read back what an earlier run computed.

        Raises:
            UnfitError: there is no room.
            UserError: the run's directory is not shared by all processes.
        """
        first = self._compute(lower, parts[0], next(parts[0].chunks(self.batch_size)))
        size = first[0].numel() * first.element_size() * sum(len(part.examples) for part in parts)
        fits = size <= self.memory_bytes
        if not fits and self.directory is None:
            raise UnfitError(f"its activations take {size / 1e9:.2f} GB, more than train.memory_bytes, and the run has no directory for them")
        return [PrefixFeed(part, self._rows(lower, part, first, fits, part is parts[0]), lower, self.batch_size, self.processes.device) for part in parts]

    def _compute(self, lower: Lower, part: Part, rows: Sequence[int]) -> torch.Tensor:
        with torch.no_grad(), self.processes.autocast(self.precision):
            return lower.compute(part, rows)

    def _rows(self, lower: Lower, part: Part, first: torch.Tensor, fits: bool, begins: bool) -> Rows:
        # The first piece of the first part has been computed, to know the size.
        pieces = (first if begins and rows[0] == 0 else self._compute(lower, part, rows) for rows in part.chunks(self.batch_size))
        if self.directory is None:
            return RowsInMemory(torch.cat(list(pieces)))
        folder = self.directory / FOLDER
        path = folder / f"{part.name}-{self._digest(lower, part, first)}.safetensors"
        if self.processes.is_main and not path.is_file():
            remove_leftovers(folder)
            write_rows(path, pieces, len(part.examples), first.shape[1:], first.dtype)
        self.processes.wait()
        if not path.is_file():
            raise UserError(
                f"{path} was written by the first process, and process {self.processes.rank} does not see it; "
                "give the run a directory that all machines share, or set train.frozen_prefix = 'off'"
            )
        held = RowsOnDisk(path)
        return RowsInMemory(held.take(range(len(part.examples))).to(self.processes.device)) if fits else held

    def _digest(self, lower: Lower, part: Part, first: torch.Tensor) -> str:
        """Name of a file of activations: they are read back only where everything that they depend on is the same."""
        facts = {
            **lower.identity,
            "data": part.examples.dataset.hash,
            "shape": list(first.shape[1:]),
            "dtype": str(first.dtype),
            "batch_size": self.batch_size,
            "precision": self.precision,
            "device": self.processes.device.type,
            "torch": torch.__version__,
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]
