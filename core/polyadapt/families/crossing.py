"""What T5 and Whisper share: a decoder whose cross attention reads keys and values that were computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from polyadapt.signature import TensorSpec

Pairs = Sequence[tuple[torch.Tensor, torch.Tensor]]


def specs(blocks: int, heads: int, size: int, source: str) -> tuple[TensorSpec, ...]:
    """`cross.I.key` and `cross.I.value` of every decoder block; `source` names the axis of the encoder's states."""
    names = [f"cross.{index}.{part}" for index in range(blocks) for part in ("key", "value")]
    return tuple(TensorSpec(name, ("batch", heads, source, size), "float32", "cross attention of one decoder block, the same at every step") for name in names)


def keys_and_values(projections: Sequence[tuple[nn.Module, nn.Module]], hidden: torch.Tensor, heads: int) -> dict[str, torch.Tensor]:
    """The projections (key, value) of every decoder block on the encoder's states.

    Shape:
        hidden [batch, source, width] -> each [batch, heads, source, head size].
    """
    found = {}
    for index, pair in enumerate(projections):
        for part, project in zip(("key", "value"), pair, strict=True):
            found[f"cross.{index}.{part}"] = project(hidden).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, H, source, d)
    return found


def cache_of(inputs: Mapping[str, torch.Tensor], past: Pairs) -> Any:
    """transformers' cache with the past of self-attention, and cross attention complete."""
    from transformers import DynamicCache, EncoderDecoderCache

    own, cross = DynamicCache(), DynamicCache()
    for index, (key, value) in enumerate(past):
        own.update(key, value, index)
        cross.update(inputs[f"cross.{index}.key"], inputs[f"cross.{index}.value"], index)
    cache = EncoderDecoderCache(own, cross)
    cache.is_updated = dict.fromkeys(range(len(past)), True)  # so that no block computes its cross attention's keys again
    return cache


def stand_in(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Something with the batch and the length of the encoder's states: the library looks at nothing else of them.

    Shape:
        [batch, source, head size].
    """
    return inputs["cross.0.key"][:, 0]


def present(cache: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of self-attention after a step."""
    return [(layer.keys, layer.values) for layer in cache.self_attention_cache.layers]
