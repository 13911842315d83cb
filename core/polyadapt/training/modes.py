"""Which modules are in training mode: the adapters, and of the base only what trains."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from polyadapt.edits import Form
from polyadapt.edits.attach import Attachments
from polyadapt.model import Model
from polyadapt.sites import stack

Switch = Callable[[bool], None]


def training_modes(model: Model, attachments: Attachments, form: Form) -> Switch:
    """The switch between training steps and validation.

    A frozen base stays in evaluation mode throughout. Of a base that trains, the stem and the blocks below the
    lowest trained parameter stay in evaluation mode, and so does everything with running statistics.
    """
    root = model.module
    if not form.trains_base:

        def switch_adapters(on: bool) -> None:
            attachments.train(on)

        return switch_adapters
    still = {id(module) for module in _still(model)}

    def switch(on: bool) -> None:
        root.train(on)
        if on:
            for module in root.modules():
                if id(module) in still or getattr(module, "running_mean", None) is not None:
                    module.training = False

    return switch


def _still(model: Model) -> list[nn.Module]:
    """Every module of the stem and of the lowest blocks that hold no trained parameter, up to the first that does."""
    backbone, family = model.backbone, model.family
    found: list[nn.Module] = []
    paths = [*stack(family.stem(backbone), backbone), *stack(family.blocks(backbone), backbone)]
    for path in paths:
        module = backbone.get_submodule(path)
        if any(parameter.requires_grad for parameter in module.parameters()):
            break
        found.extend(module.modules())
    return found
