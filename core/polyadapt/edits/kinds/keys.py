"""`keys`: P learned keys and values in front of the real ones at an attention call; k, v [heads, P, size].

The identity is P = 0. Padding with zero rows is refused: a zero key still takes softmax mass. Stacked for a bank, a third
tensor `length` [artifacts] says how many keys are real, and the mask hides the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F

from polyadapt.edits.kinds.kind import AttentionCall, Kind, Tensors, normal


class Keys(Kind):
    """A learned prefix of keys and values."""

    name = "keys"
    port = "attention"
    order = 0

    def shapes(self, port: Any, variant: str = "") -> dict[str, tuple[int | str, ...]]:
        return {"k": (port.heads, "p", port.head_size), "v": (port.heads, "p", port.head_size)}

    def identity(self, port: Any, variant: str = "") -> dict[str, torch.Tensor]:
        return {name: torch.zeros(port.heads, 0, port.head_size) for name in ("k", "v")}

    def example(self, port: Any, variant: str, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {name: normal((port.heads, size, port.head_size), 1.0, generator) for name in ("k", "v")}

    def before(self, tensors: Tensors, call: AttentionCall) -> AttentionCall:
        """The attention call with the prefix in it."""
        batch, heads = call.key.shape[:2]
        k, v = (self._heads(tensors[name], heads).to(call.key.dtype) for name in ("k", "v"))  # (heads, P, size), or with the batch in front
        key = torch.cat([k.expand(batch, -1, -1, -1), call.key], dim=2)  # (batch, heads, P + keys, size)
        value = torch.cat([v.expand(batch, -1, -1, -1), call.value], dim=2)
        mask = self._mask(call, k.shape[-2])
        if "length" in tensors:
            mask = self._row_mask(call, mask, tensors["length"], k.shape[-2])
        return replace(call, key=key, value=value, mask=mask, is_causal=False)

    def stacked(self, sets: Sequence[Tensors], variant: str) -> dict[str, torch.Tensor]:
        lengths = [tensors["k"].shape[1] for tensors in sets]
        padded = {name: torch.stack([F.pad(tensors[name], (0, 0, 0, max(lengths) - tensors[name].shape[1])) for tensors in sets]) for name in ("k", "v")}
        return {**padded, "length": torch.tensor(lengths)}

    def mix(self, left: Tensors, right: Tensors, variant: str) -> dict[str, torch.Tensor]:
        """Both prefixes side by side. This is not the sum of two effects: they share one softmax."""
        return {name: torch.cat([left[name], right[name]], dim=1) for name in ("k", "v")}

    def _heads(self, prefix: torch.Tensor, heads: int) -> torch.Tensor:
        return prefix if prefix.shape[-3] == heads else prefix.repeat_interleave(heads // prefix.shape[-3], dim=-3)

    def _row_mask(self, call: AttentionCall, mask: torch.Tensor | None, length: torch.Tensor, longest: int) -> torch.Tensor:
        """The mask with the padding of each row's prefix hidden; `length` [batch]."""
        keys = call.key.shape[2]
        shown = torch.arange(longest, device=length.device) < length[:, None]  # (batch, P)
        shown = F.pad(shown, (0, keys), value=True)[:, None, None]  # (batch, 1, 1, P + keys)
        if mask is None:
            return shown
        return mask & shown if mask.dtype == torch.bool else torch.where(shown, mask, float("-inf"))  # (batch, 1, queries, P + keys)

    def _mask(self, call: AttentionCall, length: int) -> torch.Tensor | None:
        if call.mask is not None:
            fill = True if call.mask.dtype == torch.bool else 0.0
            return F.pad(call.mask, (length, 0), value=fill)
        if not call.is_causal:
            return None
        queries, keys = call.query.shape[2], call.key.shape[2]
        # `is_causal` would shift the triangle by the prefix: an explicit mask lets every query see all of it, and of the
        # real keys those that torch's triangle shows.
        return torch.ones(queries, length + keys, dtype=torch.bool, device=call.query.device).tril(diagonal=length)
