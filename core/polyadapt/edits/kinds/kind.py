"""What every kind of edit offers: pure functions on its tensors, and nothing else.

Tensors of an edit serve the whole batch. In a bank every row of the batch has tensors of its own: the same ones with the
batch as an axis in front, and the same functions take them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from polyadapt.errors import UserError

if TYPE_CHECKING:
    from polyadapt.edits.edit import Edit

Tensors = Mapping[str, torch.Tensor]


@dataclass
class AttentionCall:
    """The arguments of one scaled-dot-product call.

    Shape:
        query [batch, heads, queries, size], key and value [batch, heads, keys, size]; mask broadcasts to
        [batch, heads, queries, keys], boolean (True = may look) or added to the scores.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    dropout: float
    is_causal: bool
    scale: float | None
    enable_gqa: bool

    def explicit_mask(self, front: int = 0) -> torch.Tensor | None:
        """The mask as a tensor, with `front` keys more before the others, seen by every query; None where all is seen."""
        if self.mask is not None:
            fill = True if self.mask.dtype == torch.bool else 0.0
            return F.pad(self.mask, (front, 0), value=fill)
        if not self.is_causal:
            return None
        queries, keys = self.query.shape[2], self.key.shape[2]
        # `is_causal` would shift the triangle by the keys in front: an explicit mask lets every query see all of them, and of
        # the others those that torch's triangle shows.
        return torch.ones(queries, front + keys, dtype=torch.bool, device=self.query.device).tril(diagonal=front)


def hiding(mask: torch.Tensor | None, shown: torch.Tensor) -> torch.Tensor:
    """An explicit mask that hides further keys in each row; `shown` is bool [batch, keys]."""
    shown = shown[:, None, None]  # (batch, 1, 1, keys)
    if mask is None:
        return shown
    return mask & shown if mask.dtype == torch.bool else torch.where(shown, mask, float("-inf"))  # (batch, 1, queries, keys)


class Kind:
    """Base of the kinds: defaults that say no.

    Attributes:
        port: sort of port.
        order: place in a row of edits at one port.
        no_rows: why rows of a batch cannot have edits of their own; empty where they can.
    """

    name = ""
    port = "op"
    order = 0
    has_slots = True
    folds = False
    no_rows = ""
    variants: tuple[str, ...] = ("",)

    def shapes(self, port: Any, variant: str = "") -> dict[str, tuple[int | str, ...]]:
        """Shapes of the tensors; a string marks an axis whose size each artifact chooses freely."""
        raise self.no("have slots")

    def identity(self, port: Any, variant: str = "") -> dict[str, torch.Tensor]:
        """Tensors with which the edit changes nothing."""
        raise self.no("have an identity")

    def example(self, port: Any, variant: str, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Seeded tensors without a zero factor, of an effect comparable to what they change; `size` fills free axes."""
        raise self.no("have examples")

    def place(self, variant: str) -> str:
        """For kinds at spans: where an adapter of this variant stands (`place.py`)."""
        raise self.no("stand at a span")

    def made(self, edit: Edit, u: torch.Tensor) -> torch.Tensor:
        """For kinds at spans: what the adapter makes of what it reads (dropped out already where the edit asks for it)."""
        raise self.no("stand at a span")

    def scaled(self, tensors: Tensors, variant: str, weight: float) -> dict[str, torch.Tensor]:
        """`weight` times the effect."""
        raise self.no("be scaled")

    def mix(self, left: Tensors, right: Tensors, variant: str) -> dict[str, torch.Tensor]:
        """The sum of two effects."""
        raise self.no("be mixed")

    def pad(self, tensors: Tensors, variant: str, size: int) -> dict[str, torch.Tensor]:
        """The same effect with its free axis brought to `size`."""
        raise self.no("be padded")

    def length(self, tensors: Tensors) -> int:
        """Size of the free axis; 0 where there is none."""
        return 0

    def stacked(self, sets: Sequence[Tensors], variant: str) -> dict[str, torch.Tensor]:
        """Edits of several artifacts as one, [artifacts, …], padded to the longest. Indexed by row, it is an edit for each row.

        Raises:
            UserError: rows of a batch cannot have edits of this kind of their own; it says why.
        """
        if self.no_rows:
            raise self.no(f"differ from row to row of a batch: {self.no_rows}")
        size = max(self.length(tensors) for tensors in sets)
        padded = [self.pad(tensors, variant, size) for tensors in sets]
        return {name: torch.stack([tensors[name] for tensors in padded]) for name in padded[0]}

    def widened(self, tensors: Tensors, variant: str, start: int, size: int) -> dict[str, torch.Tensor]:
        """The edit of a whole op with `size` outputs that does to its rows from `start` on what this one does, and nothing to the others."""
        raise self.no("be widened to a fused op")

    def fold(self, tensors: Tensors, variant: str, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """New weight [out, in] and bias [out] of the op with the edit inside, or None where that is impossible."""
        return None

    def no(self, what: str) -> UserError:
        """The refusal that a kind gives for what it cannot do."""
        return UserError(f"edits of kind {self.name!r} cannot {what}")


def real_places(length: torch.Tensor, size: int) -> torch.Tensor:
    """Which of `size` places each row fills, bool [batch, size]; `length` [batch] of them come first, the others are padding."""
    return torch.arange(size, device=length.device) < length[:, None]


def normal(shape: tuple[int, ...], scale: float, generator: torch.Generator) -> torch.Tensor:
    """Seeded normal values."""
    return torch.randn(shape, generator=generator) * scale


def along(vector: torch.Tensor, h: torch.Tensor, dim: int) -> torch.Tensor:
    """A vector [C], or one for each row [batch, C], shaped so that it broadcasts over dimension `dim` of h."""
    is_last = dim == -1 or dim == h.dim() - 1
    if vector.dim() == 2:
        others = [None] * (h.dim() - 2)
        return vector[:, *others] if is_last else vector[(..., *others)]  # (batch, 1…, C) or (batch, C, 1…)
    return vector if is_last else vector.reshape(-1, *([1] * (h.dim() - 1 - dim)))  # (C, 1, …)


def product(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """x [batch, …, in] times a factor [in, out], or times one for each row [batch, in, out]."""
    if factor.dim() == 2 or x.dim() == 3:
        return x @ factor
    if x.dim() == 2:
        return (x.unsqueeze(1) @ factor).squeeze(1)
    # One product a row: broadcast over more axes it would be one for each of their positions.
    return (x.flatten(1, -2) @ factor).reshape(*x.shape[:-1], factor.shape[-1])
