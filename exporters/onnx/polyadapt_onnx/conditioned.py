"""Inputs that a model computes from another medium, as graphs of their own: a speaker vector from a recording."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from polyadapt.artifact import Artifact
from polyadapt.model import Model, TaskModule


class ConditionerModule(nn.Module):
    """Tensors of the other medium in, the input of that name out; the weights are those of `root`."""

    def __init__(self, root: TaskModule, name: str) -> None:
        super().__init__()
        self.root = root
        self._name = name

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {self._name: self.root.family.condition(self.root.backbone, self._name, inputs)}


def condition_example(model: Model, name: str, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Seeded inputs of a conditioner."""
    return model.family.condition_example(model.backbone, name, sizes, generator)


def condition_of(artifact: Artifact) -> dict[str, list[float]]:
    """Values that an artifact brings for such inputs, as the manifest holds them."""
    return {name: value.flatten().tolist() for name, value in artifact.conditions.items()}


def describe_conditioners(model: Model) -> dict[str, Any]:
    """The manifest's `conditioners`: how raw input of the other medium is prepared, by the name of the graph and of the input that it computes."""
    return {name: {"preprocess": dict(conditioner.preprocess)} for name, conditioner in model.family.conditioners(model.backbone).items()}
