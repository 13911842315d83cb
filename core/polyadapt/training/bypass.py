"""Stand-ins for frozen modules: while they are in place, a forward pass begins at a cached activation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass
class Now:
    """The activations of the batch that runs, [batch, …]."""

    activations: torch.Tensor = field(default_factory=lambda: torch.zeros(0))


class Bypass(nn.Module):
    """Takes a module's place: its answer is given, its attributes are the module's own.

    A module that still runs (`is_live`) stays in the tree, so that it hears of training and evaluation mode.
    """

    def __init__(self, module: nn.Module, answer: Callable[..., Any], is_live: bool) -> None:
        super().__init__()
        self.__dict__["inner"] = module
        if is_live:
            self.add_module("live", module)
        self.__dict__["answer"] = answer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["answer"](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["inner"], name)


@dataclass(frozen=True)
class Shape:
    """A tensor that was seen at batch sizes 1 and 2: sizes, with -1 where the batch is."""

    sizes: tuple[int, ...]
    dtype: torch.dtype

    def zeros(self, batch: int, device: torch.device) -> torch.Tensor:
        """Zeros of this shape that take no memory."""
        return torch.zeros((), dtype=self.dtype, device=device).expand([batch if size < 0 else size for size in self.sizes])


def shape_of(one: Any, two: Any) -> Any:
    """The structure of an output seen at batch sizes 1 and 2, with a `Shape` for every tensor.

    Raises:
        TypeError: it holds something else than tensors, tuples, dictionaries and None.
    """
    if isinstance(one, torch.Tensor):
        return Shape(tuple(-1 if (left, right) == (1, 2) else left for left, right in zip(one.shape, two.shape, strict=True)), one.dtype)
    if one is None:
        return None
    if type(one) in (tuple, list):
        return type(one)(shape_of(left, right) for left, right in zip(one, two, strict=True))
    if type(one) is dict:
        return {name: shape_of(value, two[name]) for name, value in one.items()}
    raise TypeError(f"an output of type {type(one).__name__}")


def fill(shape: Any, batch: int, device: torch.device) -> Any:
    """Zeros in a structure of shapes."""
    if isinstance(shape, Shape):
        return shape.zeros(batch, device)
    if isinstance(shape, dict):
        return {name: fill(value, batch, device) for name, value in shape.items()}
    return shape if shape is None else type(shape)(fill(value, batch, device) for value in shape)


def zeros(shape: Any, now: Now) -> Callable[..., Any]:
    """The answer of a stem module: zeros, since nothing of it reaches the output."""
    return lambda *args, **kwargs: fill(shape, now.activations.shape[0], now.activations.device)


def front(shape: Mapping[str, Shape], now: Now) -> Callable[..., Any]:
    """The answer of pre-processing in the graph: zeros for sounds and pictures, and the inputs themselves for ids and masks."""

    def answer(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: value.zeros(now.activations.shape[0], now.activations.device) if value.dtype.is_floating_point else inputs[name] for name, value in shape.items()}

    return answer


def passing(wrap: Callable[[torch.Tensor], Any]) -> Callable[..., Any]:
    """The answer of a block below the last frozen one: what it was given, in the form that blocks answer in."""

    def answer(*args: Any, **kwargs: Any) -> Any:
        return wrap(args[0] if args else kwargs["hidden_states"])

    return answer


def given(now: Now, wrap: Callable[[torch.Tensor], Any]) -> Callable[..., Any]:
    """The answer of the last frozen block: the activations of this batch."""
    return lambda *args, **kwargs: wrap(now.activations)


@contextlib.contextmanager
def replaced(root: nn.Module, answers: Mapping[str, Callable[..., Any]], are_live: bool = False) -> Iterator[None]:
    """Put stand-ins in place of the modules at the given paths; the modules themselves return at the end of the block.

    Args:
        root: where paths begin.
        answers: what the stand-ins answer, by path.
        are_live: whether the answers run the modules.
    """
    places: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for path, answer in answers.items():
            parent_path, _, name = path.rpartition(".")
            parent = root.get_submodule(parent_path)
            module = parent._modules[name]
            assert module is not None
            places.append((parent, name, module))
            parent._modules[name] = Bypass(module, answer, are_live)
        yield
    finally:
        for parent, name, module in reversed(places):
            parent._modules[name] = module
