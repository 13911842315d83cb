"""Full fine-tuning: the base's own parameters move while the form is on; the artifact is their difference.

Originals are kept, so switching the form off restores the base bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from polyadapt.edits import Edit, Form
from polyadapt.edits.patches import BaseParameters, ParameterSlice, parameter_slices
from polyadapt.errors import UserError, nearest
from polyadapt.methods.base import Method
from polyadapt.methods.full.card import FullOptions
from polyadapt.model import Model
from polyadapt.sites import matches


class FullForm(Form):
    """Moves the chosen parameters of the base in place."""

    trains_base = True

    def __init__(self, slices: list[ParameterSlice]) -> None:
        super().__init__()
        self._slices = slices
        self._original = {id(part.parameter): part.parameter.detach().clone() for part in slices}
        self._moved: dict[int, torch.Tensor] = {}
        self._is_on = False  # the parameters' flags do not tell: whoever detaches puts those of the bare base back

    def base_values(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters_of_base())

    def edits(self) -> list[Edit]:
        return []

    def switch_on(self, base: BaseParameters) -> None:
        self._is_on = True
        for parameter in self.parameters_of_base():
            parameter.requires_grad_(True)
            if id(parameter) in self._moved:
                parameter.data.copy_(self._moved[id(parameter)])

    def switch_off(self, base: BaseParameters) -> None:
        for parameter in self.parameters_of_base():
            self._moved[id(parameter)] = parameter.detach().clone()
            parameter.requires_grad_(False)
            parameter.grad = None
            parameter.data.copy_(self._original[id(parameter)])
        self._is_on = False

    def lower(self) -> list[Edit]:
        edits: dict[str, dict[str, torch.Tensor]] = {}
        for part in self._slices:
            original = ParameterSlice(part.site, part.tensor, torch.nn.Parameter(self._original[id(part.parameter)], requires_grad=False), part.rows, part.dim)
            moved = ParameterSlice(part.site, part.tensor, torch.nn.Parameter(self._now(part.parameter), requires_grad=False), part.rows, part.dim)
            now = moved.view()  # where the base trains, which need not be where the form was made
            edits.setdefault(part.site, {})[part.tensor] = (now - original.view().to(now.device)).contiguous()
        return [Edit(site, "patch", tensors) for site, tensors in edits.items()]

    def trained(self) -> dict[str, torch.Tensor]:
        return {f"{index}": self._now(parameter) for index, parameter in enumerate(self.parameters_of_base())}

    def load_trained(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for index, parameter in enumerate(self.parameters_of_base()):
            if self._is_on:
                parameter.data.copy_(tensors[f"{index}"])
            else:
                self._moved[id(parameter)] = tensors[f"{index}"].to(parameter.device, parameter.dtype, copy=True)

    def _now(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        return parameter.detach() if self._is_on else self._moved.get(id(parameter), self._original[id(parameter)])

    def parameters_of_base(self) -> list[torch.nn.Parameter]:
        return list({id(part.parameter): part.parameter for part in self._slices}.values())


class Full(Method):
    """The method `full`."""

    def form(self, model: Model, options: FullOptions, generator: torch.Generator) -> Form:
        excluded = set(model.family.head_parameters(model.backbone))
        heads = {id(parameter) for name, parameter in model.backbone.named_parameters() if name in excluded}
        offered = [part for part in parameter_slices(model.backbone, model.ports) if id(part.parameter) not in heads]
        for glob in options.sites:
            if not any(matches(part.site, glob) for part in offered):
                raise UserError(f"no parameter matches {glob!r} in family {model.family.card.id}{nearest(glob, {part.site for part in offered})}")
        slices = [part for part in offered if any(matches(part.site, glob) for glob in options.sites)]
        if not slices:
            raise UserError("no sites are given; leave sites out to train every weight")
        return FullForm(slices)
