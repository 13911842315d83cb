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

from polyadapt.edits.kinds.kind import AttentionCall, Kind, Tensors, hiding, normal, real_places


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
        longest = k.shape[-2]
        mask = call.explicit_mask(front=longest)
        if "length" in tensors:
            shown = real_places(tensors["length"], longest)  # (batch, P)
            mask = hiding(mask, F.pad(shown, (0, call.key.shape[2]), value=True))
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
