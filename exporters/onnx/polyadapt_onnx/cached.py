"""Causal language models as one graph for prefill and decoding: caches are ordinary inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from polyadapt.model import Model, TaskModule


class CachedModule(nn.Module):
    """`past.{i}.key|value` in, `present.{i}.key|value` out; the weights are those of `root`."""

    def __init__(self, root: TaskModule, layers: int) -> None:
        super().__init__()
        self.root = root
        self._layers = layers

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        past = [(inputs[f"past.{index}.key"], inputs[f"past.{index}.value"]) for index in range(self._layers)]
        logits, present = self.root.family.cached_forward(self.root.backbone, inputs["input_ids"], inputs["attention_mask"], past)
        outputs = {"logits": logits}
        for index, (key, value) in enumerate(present):
            outputs[f"present.{index}.key"], outputs[f"present.{index}.value"] = key, value
        return outputs


def cached_example(model: Model, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Seeded inputs whose past is what the model itself computes for the first `past` tokens."""
    layers, heads, size = model.family.cache_shape(model.backbone)
    batch, tokens, past = sizes["batch"], sizes["tokens"], sizes["past"]
    whole = model.family.example(model.backbone, model.task, {"batch": batch, "tokens": tokens + past}, generator)["input_ids"]
    empty = [(torch.zeros(batch, heads, 0, size), torch.zeros(batch, heads, 0, size)) for _ in range(layers)]
    state = empty
    if past:
        with torch.no_grad():
            _, state = model.family.cached_forward(model.backbone, whole[:, :past], torch.ones(batch, past, dtype=torch.int64), empty)
    made = {"input_ids": whole[:, past:], "attention_mask": torch.ones(batch, past + tokens, dtype=torch.int64)}
    for index, (key, value) in enumerate(state):
        made[f"past.{index}.key"], made[f"past.{index}.value"] = key.detach().clone(), value.detach().clone()
    return made
