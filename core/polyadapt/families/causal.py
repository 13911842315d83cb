"""What GPT-2 and Llama share: next-token scores, key/value caches given and returned as tensors.

A *tower* is the stack of blocks without the output projection; it is called with keywords only, so that
an engine can put prompts before its embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from polyadapt.families.text import last_token, positions, random_ids, random_mask
from polyadapt.signature import Signature, Task, TensorSpec

Cache = list[tuple[torch.Tensor, torch.Tensor]]


def signature(task: Task, vocabulary: int, width: int) -> Signature:
    """Token ids and mask to scores of the next token, or to one vector a text."""
    inputs = (
        TensorSpec("input_ids", ("batch", "tokens"), "int64", "token ids"),
        TensorSpec("attention_mask", ("batch", "tokens"), "int64", "1 for real tokens, 0 for padding on either side"),
    )
    if task.kind == "causal-lm":
        return Signature(inputs, (TensorSpec("logits", ("batch", "tokens", vocabulary), "float32", "scores of the next token, before softmax"),))
    return Signature(inputs, (TensorSpec("features", ("batch", width), "float32", "vector of the last real token"),))


def forward(tower: Any, head: nn.Module | None, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Run the tower over whole texts.

    The tower takes `input_ids`, `attention_mask` and `position_ids`; the head is the output projection that
    task `causal-lm` needs.
    """
    mask = inputs["attention_mask"]
    hidden = tower(input_ids=inputs["input_ids"], attention_mask=mask, position_ids=positions(mask), use_cache=False).last_hidden_state  # (B, T, D)
    if task.kind == "causal-lm" and head is not None:
        return {"logits": head(hidden)}  # (B, T, V)
    return {"features": last_token(hidden, mask)}  # (B, D)


def cached_forward(tower: Any, head: nn.Module, inputs: Mapping[str, torch.Tensor], past: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, Cache]:
    """One step with caches: prefill (past of length 0), a single token, or a chunk.

    Shape:
        inputs: input_ids [batch, tokens], attention_mask [batch, past + tokens]; past and the returned caches
        per block (key, value), each [batch, key/value heads, past (+ tokens), head size]; logits [batch, tokens, vocabulary].
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    for index, (key, value) in enumerate(past):
        cache.update(key, value, index)
    length = past[0][0].shape[2]
    mask = inputs["attention_mask"]
    places = positions(mask)[:, length:]  # (B, T)
    result = tower(input_ids=inputs["input_ids"], attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True)
    present = [(layer.keys, layer.values) for layer in result.past_key_values.layers]
    return head(result.last_hidden_state), present


def example(vocabulary: int, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Seeded texts of different lengths, padded on the right."""
    batch, tokens = sizes["batch"], sizes["tokens"]
    return {"input_ids": random_ids(vocabulary, batch, tokens, generator), "attention_mask": random_mask(batch, tokens, generator)}


def score_head(backbone: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The library's class head `score` as (weight [feature, class], zeros [class]); None without one."""
    head: Any = getattr(backbone, "score", None)
    return None if head is None else (head.weight.detach().T, torch.zeros(head.weight.shape[0]))
