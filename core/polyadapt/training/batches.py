"""From a data set to batches: every example is processed once. Which rows make a batch is drawn in `drawing.py`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from polyadapt.data.dataset import Dataset
from polyadapt.errors import MissingExtraError, PolyadaptError, UserError
from polyadapt.model import Model, TaskModule
from polyadapt.training.alphabet import refuse_letters_outside
from polyadapt.training.losses import IGNORED
from polyadapt.training.masking import Masking
from polyadapt.training.targets import BESIDE, DECODER_INPUT, Arrays, Prepared, Reading, prepare_for
from polyadapt.training.texts import refuse_long_texts, vocabulary_of, warn_of_joined_words
from polyadapt_runtime.errors import BundleError, MissingLibraryError


@dataclass(frozen=True)
class TrainingData:
    """What to learn from, and what to measure on after every epoch. A split with such parts does as well."""

    train: Dataset
    validation: Dataset | None = None


class HasParts(Protocol):
    """Anything with the two parts of `TrainingData`."""

    @property
    def train(self) -> Dataset: ...
    @property
    def validation(self) -> Dataset | None: ...


@dataclass(frozen=True)
class Batch:
    """Tensors of some examples: what the model takes, and what the loss compares with."""

    inputs: dict[str, torch.Tensor]
    targets: dict[str, torch.Tensor]
    rows: tuple[int, ...]

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        if device.type == "cpu":
            return self
        place = {"device": device, "non_blocking": True}
        return Batch({name: value.to(**place) for name, value in self.inputs.items()}, {name: value.to(**place) for name, value in self.targets.items()}, self.rows)  # type: ignore[call-overload]


class Examples:
    """A data set behind a model's processor.

    Args:
        dataset: the rows.
        model: its processor makes the inputs, its task the targets.
        memory_bytes: processed arrays that are kept; further ones are processed again at each use.
    """

    def __init__(self, dataset: Dataset, model: Model, memory_bytes: int) -> None:
        self.dataset = dataset
        self._processor = model.processor
        self._prepare = prepare_for(model)
        if model.task.kind == "ctc" and (symbols := vocabulary_of(model)):
            refuse_letters_outside(dataset, symbols, f"the alphabet of {model.reference}", model.task.separator)
        if isinstance(self._prepare, Reading):
            self._prepare.ask(dataset)
        if model.task.kind == "causal-lm":
            warn_of_joined_words(dataset)
        if model.task.kind in ("transcription", "seq2seq-lm"):
            refuse_long_texts(model, dataset)
        self._pads_exactly = pads_exactly(model.processor.spec)
        self._pads_left = model.task.kind == "causal-lm" and model.processor.spec.get("pad_side") == "left"
        self._room = memory_bytes
        self._kept: dict[int, Prepared] = {}
        self._recent: dict[int, Prepared] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def id(self, row: int) -> str:
        """Name of a row for messages."""
        return str(self.dataset[row].id)

    def arrays(self, row: int) -> Prepared:
        """Inputs and targets of one row, without a batch dimension.

        Raises:
            UserError: the row cannot be processed; the file and line are named.
        """
        if row in self._kept:
            return self._kept[row]
        if row in self._recent:
            return self._recent[row]
        example = self.dataset[row]
        try:
            made = self._prepare(example)
        except (MissingExtraError, MissingLibraryError):
            raise
        except (PolyadaptError, BundleError) as error:
            where = example.source or example.id
            raise UserError(str(error) if where in str(error) else f"{where}: {error}") from error
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{example.source or example.id}: cannot be processed ({type(error).__name__}: {error}); repair or remove the row") from error
        size = sum(value.nbytes for part in made for value in part.values())
        if size <= self._room:
            self._room -= size
            self._kept[row] = made
        return made

    def batch(self, rows: Sequence[int], further: Sequence[Prepared] = ()) -> Batch:
        """The rows as one batch on the CPU, filled up to the longest among them and among `further` examples."""
        made = [*(self.arrays(row) for row in rows), *further]
        inputs = collate_inputs(self._processor, [inputs for inputs, _ in made])
        return Batch({name: torch.from_numpy(value[: len(rows)]) for name, value in inputs.items()}, self._targets(made, len(rows)), tuple(rows))

    def targets(self, rows: Sequence[int], further: Sequence[Prepared] = ()) -> dict[str, torch.Tensor]:
        """Only the targets of `batch`."""
        return self._targets([*(self.arrays(row) for row in rows), *further], len(rows))

    def groups(self, rows: Sequence[int]) -> list[Sequence[int]]:
        """Rows that can stand in one batch without seeing each other.

        Texts are masked where they are filled up. Sounds are not, so those of different lengths run one after
        another, and training sees what a single clip gives at inference.
        """
        if self._pads_exactly:
            return [rows]
        made = {row: self.arrays(row) for row in rows}
        groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for row, (inputs, _) in made.items():
            groups.setdefault(tuple(value.shape for name, value in inputs.items() if name != DECODER_INPUT), []).append(row)
        self._recent = made  # their batches are asked for next
        return list(groups.values())

    def longest(self) -> tuple[Prepared, ...]:
        """Examples that together have the greatest size of every input and target along every axis that varies."""
        best: dict[tuple[int, str, int], tuple[int, int]] = {}
        smallest: dict[tuple[int, str, int], int] = {}
        for row in range(len(self)):
            for part, arrays in enumerate(self.arrays(row)):
                for name, value in arrays.items():
                    for axis, size in enumerate(value.shape):
                        key = (part, name, axis)
                        smallest[key] = min(size, smallest.get(key, size))
                        if size > best.get(key, (-1, 0))[0]:
                            best[key] = (size, row)
        rows = dict.fromkeys(row for key, (size, row) in best.items() if size > smallest[key])
        return tuple(self.arrays(row) for row in rows)

    def lengths(self) -> list[int]:
        """How many values the inputs of every row have, before anything is filled up."""
        return [sum(value.size for value in self.arrays(row)[0].values()) for row in range(len(self))]

    def _targets(self, made: Sequence[Prepared], size: int) -> dict[str, torch.Tensor]:
        return {name: value[:size] for name, value in collate_targets([targets for _, targets in made], self._pads_left).items()}


def pads_exactly(spec: Mapping[str, Any]) -> bool:
    """Whether rows of different sizes can be filled up to one size and still not see what was filled in."""
    kind = spec.get("kind")
    if kind == "parts":
        return all(pads_exactly(part) for part in spec["parts"].values())
    if kind == "array":
        return all(isinstance(size, int) for size in spec["shape"])  # then all rows have one size
    return kind == "image" or (kind in ("text", "phonemes") and bool(spec["inputs"].get("mask")))


def collate_inputs(processor: Any, made: Sequence[Arrays]) -> dict[str, np.ndarray]:
    """Stack examples by the processor's rules; what it does not make is filled up at its end, where nothing looks at it."""
    beside = [name for name in made[0] if name == DECODER_INPUT or name.startswith(BESIDE)]
    collated: dict[str, np.ndarray] = dict(processor.collate([{name: value for name, value in arrays.items() if name not in beside} for arrays in made]))
    for name in beside:
        collated[name.removeprefix(BESIDE)] = stack_padded([arrays[name] for arrays in made], 0)
    return {name: np.ascontiguousarray(value) for name, value in collated.items()}


def collate_targets(made: Sequence[Arrays], pads_left: bool = False) -> dict[str, torch.Tensor]:
    """Stack targets; sequences are filled up with -100, which no loss counts, on the side where inputs are."""
    return {name: torch.from_numpy(stack_padded([arrays[name] for arrays in made], IGNORED, pads_left)) for name in made[0]}


def stack_padded(arrays: Sequence[np.ndarray], fill: int, left: bool = False) -> np.ndarray:
    """[n, …] of arrays whose first axis may differ in length: [length, …] -> [n, longest, …]."""
    if all(array.shape == arrays[0].shape for array in arrays):
        return np.stack(arrays)
    longest = max(array.shape[0] for array in arrays)
    stacked = np.full((len(arrays), longest, *arrays[0].shape[1:]), fill, dtype=arrays[0].dtype)
    for row, array in enumerate(arrays):
        stacked[row, longest - len(array) if left else 0 : longest if left else len(array)] = array
    return stacked


class Feed(Protocol):
    """Where batches come from and how the model answers them; caches of frozen prefixes are other feeds."""

    examples: Examples
    epoch: int  # set by the loop, counted from 1; 0 outside of training

    def groups(self, rows: Sequence[int]) -> list[Sequence[int]]:
        """Rows that run in one forward pass."""

    def batch(self, rows: Sequence[int]) -> Batch:
        """The rows on the training device."""

    def forward(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        """The model's outputs."""


Transform = Callable[[Batch, int], Batch]
"""(batch on the CPU, epoch) -> what the model gets instead: noise, augmentation. Draws should follow from the epoch and the rows."""


class PlainFeed:
    """Whole forward passes.

    Args:
        examples: what is fed.
        module: the model's.
        device: where it runs.
        transform: what happens to batches.
        masking: what happens to spectrograms, while training.
    """

    def __init__(self, examples: Examples, module: TaskModule, device: torch.device, transform: Transform | None = None, masking: Masking | None = None) -> None:
        self.examples, self._module, self._device, self._transform, self._masking = examples, module, device, transform, masking
        self.epoch = 0

    def groups(self, rows: Sequence[int]) -> list[Sequence[int]]:
        return self.examples.groups(rows) if rows else []

    def batch(self, rows: Sequence[int]) -> Batch:
        batch = self.examples.batch(rows)
        return (batch if self._transform is None else self._transform(batch, self.epoch)).to(self._device)

    def forward(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        with self._masked(batch):
            outputs: Mapping[str, torch.Tensor] = self._module(**batch.inputs)
        return outputs

    @contextlib.contextmanager
    def _masked(self, batch: Batch) -> Iterator[None]:
        """Have what the front gives masked within the block, while training: the pass stays one call of the whole module, whose hooks edits rely on."""
        front, masking = self._module.front, self._masking
        if masking is None or front is None or not self.epoch:
            yield
            return
        handle = front.register_forward_hook(lambda _module, _arguments, given: masking(given, batch.rows, self.epoch))
        try:
            yield
        finally:
            handle.remove()
