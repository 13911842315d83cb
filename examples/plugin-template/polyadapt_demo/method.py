"""Gain: h * g with one trained number for each output feature, g = 1 at the start."""

from __future__ import annotations

import torch
from polyadapt.edits import Edit, Form
from polyadapt.methods.base import Method, select_ops
from polyadapt.model import Model
from polyadapt.sites import OpPort, module_name
from torch import nn

from polyadapt_demo.cards import GainOptions


class GainForm(Form):
    """A vector g for each site; as edits they are of kind `scale`."""

    def __init__(self, ports: list[OpPort]) -> None:
        super().__init__()
        self._sites = [port.site for port in ports]
        self.gains = nn.ParameterDict({module_name(port.site): nn.Parameter(torch.ones(port.out_features)) for port in ports})

    def edits(self) -> list[Edit]:
        """What the present parameters amount to."""
        return [Edit(site, "scale", {"g": self.gains[module_name(site)]}) for site in self._sites]


class Gain(Method):
    """The method `demo-gain`."""

    def form(self, model: Model, options: GainOptions, generator: torch.Generator) -> Form:
        """A fresh form; nothing of it is random, so `generator` is not used."""
        return GainForm(select_ops(model, options.sites))
