"""What is traced of a model: one view for each graph of its bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from polyadapt.families.card import ExportRecipe
from polyadapt.model import Model
from polyadapt.signature import Signature
from polyadapt_onnx.cached import CachedModule, cached_example
from polyadapt_onnx.slots import SlotGroup


@dataclass(frozen=True)
class View:
    """One graph: a module whose weights are the model's, with named tensors in and out.

    Attributes:
        name: in the manifest's `graphs`.
        inner: answers keyword tensors with a table of tensors.
        example: sizes of the recipe and a generator -> seeded inputs.
        prefix: where parameters of attached forms stand in `inner`.
        reaches: whether edits at a site are run by this graph.
    """

    name: str
    inner: torch.nn.Module
    signature: Signature
    recipe: ExportRecipe
    example: Callable[[Mapping[str, int], torch.Generator], dict[str, torch.Tensor]]
    prefix: str = "polyadapt.forms."
    reaches: Callable[[str], bool] = lambda site: True

    @property
    def file(self) -> str:
        """The graph's path in the bundle."""
        return f"onnx/{self.name}.onnx"

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs in order."""
        return [spec.name for spec in self.signature.outputs]

    def groups(self, groups: list[SlotGroup]) -> list[SlotGroup]:
        """Those whose sites this graph runs."""
        return [group for group in groups if self.reaches(group.site)]


def views_of(model: Model, recipe: ExportRecipe) -> list[View]:
    """The graphs of a model's bundle; `model` is always among them: the task module itself, or its cached form for text generation."""
    if model.task.kind == "causal-lm":
        layers, _, _ = model.family.cache_shape(model.backbone)
        signature = model.family.cached_signature(model.backbone, model.task)
        return [View("model", CachedModule(model.module, layers), signature, recipe, lambda sizes, generator: cached_example(model, sizes, generator), "root.polyadapt.forms.")]
    return [View("model", model.module, model.signature, recipe, model.example)]
