"""What is traced of a model: one view for each graph of its bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from polyadapt.families.card import ExportRecipe
from polyadapt.model import Model
from polyadapt.signature import Signature
from polyadapt_onnx.cached import CachedModule, EncoderModule, cached_example, encoder_example, encoder_signature
from polyadapt_onnx.conditioned import ConditionerModule, condition_example
from polyadapt_onnx.slots import SlotGroup
from polyadapt_runtime.generate import TASKS


@dataclass(frozen=True)
class View:
    """One graph: a module whose weights are the model's, with named tensors in and out.

    Attributes:
        name: in the manifest's `graphs`.
        inner: answers keyword tensors with a table of tensors.
        example: sizes of the recipe and a generator -> seeded inputs.
        prefix: where parameters of attached forms stand in `inner`.
        reaches: whether edits at a site are run by this graph.
        stem: of its file; the name by default.
    """

    name: str
    inner: torch.nn.Module
    signature: Signature
    recipe: ExportRecipe
    example: Callable[[Mapping[str, int], torch.Generator], dict[str, torch.Tensor]]
    prefix: str = "polyadapt.forms."
    reaches: Callable[[str], bool] = lambda site: True
    stem: str = ""

    @property
    def file(self) -> str:
        """The graph's path in the bundle."""
        return f"onnx/{self.stem or self.name}.onnx"

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs in order."""
        return [spec.name for spec in self.signature.outputs]

    def groups(self, groups: list[SlotGroup]) -> list[SlotGroup]:
        """Those whose sites this graph runs."""
        return [group for group in groups if self.reaches(group.site)]


def views_of(model: Model, recipe: ExportRecipe) -> list[View]:
    """The graphs of a model's bundle: those that answer, then one for each input that the model computes from another medium."""
    return [*_answering(model, recipe), *_conditioning(model)]


def _answering(model: Model, recipe: ExportRecipe) -> list[View]:
    """`model` alone, or `encoder` and `decoder` where an encoder runs once and a decoder often."""
    if not writes(model):
        return [View("model", model.module, model.signature, recipe, model.example)]
    family, prefix = model.family, "root.polyadapt.forms."
    step = CachedModule(model.module, family.cache_shape(model.backbone)[0])
    signature = family.cached_signature(model.backbone, model.task)

    def example(sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        return cached_example(model, sizes, generator)

    if not family.memory(model.backbone):
        return [View("model", step, signature, recipe, example, prefix)]
    return [
        View(
            "encoder",
            EncoderModule(model.module),
            encoder_signature(model),
            recipe,
            lambda sizes, generator: encoder_example(model, sizes, generator),
            prefix,
            family.encodes,
            "encoder_model",
        ),
        View("decoder", step, signature, recipe, example, prefix, lambda site: not family.encodes(site), "decoder_model_merged"),
    ]


def _conditioning(model: Model) -> list[View]:
    """A graph for each of the model's conditioners; edits are at sites, and a conditioner has none."""
    recipes, found = model.family.card.conditioners, model.family.conditioners(model.backbone)
    return [
        View(name, ConditionerModule(model.module, name), found[name].signature, recipe, partial(condition_example, model, name), reaches=lambda site: False)
        for name, recipe in recipes.items()
        if name in found
    ]


def writes(model: Model) -> bool:
    """Whether the model's task is to write text, token after token."""
    return model.task.kind in TASKS
