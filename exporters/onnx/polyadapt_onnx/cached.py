"""Models that write, as graphs with caches: an encoder that runs once, and a decoder for prompt and steps alike."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from polyadapt.families.base import TARGET
from polyadapt.model import Model, TaskModule
from polyadapt.signature import Signature, TensorSpec


class EncoderModule(nn.Module):
    """Raw inputs of an encoder-decoder in, its states and the decoder's memory out; the weights are those of `root`."""

    def __init__(self, root: TaskModule) -> None:
        super().__init__()
        self.root = root

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.root.front is not None:
            inputs = self.root.front(**inputs)
        return self.root.family.encode(self.root.backbone, inputs)


class CachedModule(nn.Module):
    """`past.{i}.key|value` in, `present.{i}.key|value` out; the weights are those of `root`."""

    def __init__(self, root: TaskModule, layers: int) -> None:
        super().__init__()
        self.root = root
        self._layers = layers

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        past = [(inputs[f"past.{index}.key"], inputs[f"past.{index}.value"]) for index in range(self._layers)]
        logits, present = self.root.family.cached_forward(self.root.backbone, inputs, past)
        outputs = {"logits": logits}
        for index, (key, value) in enumerate(present):
            outputs[f"present.{index}.key"], outputs[f"present.{index}.value"] = key, value
        return outputs


def encoder_signature(model: Model) -> Signature:
    """The model's inputs but for the decoder's; its states first, then what the decoder reads."""
    memory, width = model.family.memory(model.backbone), model.family.feature_size(model.backbone)
    states = TensorSpec("encoder_hidden_states", ("batch", memory[-1].shape[2], width), "float32", "the encoder's output at each position")
    return Signature(tuple(spec for spec in model.signature.inputs if spec.name != TARGET), (states, *memory))


def encoder_example(model: Model, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Seeded inputs of the encoder."""
    return {name: value for name, value in model.example(sizes, generator).items() if name != TARGET}


def cached_example(model: Model, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Seeded inputs of a step whose past is what the model itself computes for the first `past` tokens."""
    family, backbone = model.family, model.backbone
    layers, heads, size = family.cache_shape(backbone)
    signature = family.cached_signature(backbone, model.task)
    ids, symbol = signature.inputs[0].name, str(signature.inputs[0].shape[1])
    batch, tokens, past = sizes["batch"], sizes[symbol], sizes["past"]
    made = model.example({**sizes, symbol: past + tokens}, generator)
    whole = made.pop(ids)  # (batch, past + tokens)
    with torch.no_grad():
        memory = EncoderModule(model.module)(**made) if family.memory(backbone) else {"attention_mask": torch.ones_like(whole)}
        step = {spec.name: memory[spec.name] for spec in signature.inputs if spec.name in memory}
        state = [(torch.zeros(batch, heads, 0, size), torch.zeros(batch, heads, 0, size)) for _ in range(layers)]
        if past:
            before = {name: value[:, :past] if name == "attention_mask" else value for name, value in step.items()}
            _, state = family.cached_forward(backbone, {**before, ids: whole[:, :past]}, state)
    step = {ids: whole[:, past:], **step}
    for index, (key, value) in enumerate(state):
        step[f"past.{index}.key"], step[f"past.{index}.value"] = key, value
    return {name: value.detach().clone() for name, value in step.items()}
