"""BitFit: h + b at every op that has a bias; b starts at zero.

Paper: BitFit (arXiv 2106.10199). Official code: benzakenelad/BitFit.
Ours: the difference to the bias is the parameter, which is the same training without weight decay and a
milder one with it.
"""

from __future__ import annotations

import torch
from torch import nn

from polyadapt.edits import Edit, Form
from polyadapt.errors import UserError
from polyadapt.methods.base import Method, select_ops
from polyadapt.methods.bitfit.card import BitFitOptions
from polyadapt.model import Model
from polyadapt.sites import OpPort, module_name


class ShiftForm(Form):
    """One vector [out] per site."""

    def __init__(self, ports: list[OpPort]) -> None:
        super().__init__()
        self._sites = [port.site for port in ports]
        self.b = nn.ParameterDict({module_name(port.site): nn.Parameter(torch.zeros(port.out_features)) for port in ports})

    def edits(self) -> list[Edit]:
        return [Edit(site, "shift", {"b": self.b[module_name(site)]}) for site in self._sites]


class BitFit(Method):
    """The method `bitfit`."""

    def form(self, model: Model, options: BitFitOptions, generator: torch.Generator) -> Form:
        ports = select_ops(model, options.sites, ("linear", "conv", "norm"))
        chosen = [port for port in ports if options.add_missing or getattr(port.module, "bias", None) is not None]
        if not chosen:
            raise UserError(f"no op of family {model.family.card.id} at {', '.join(options.sites)} has a bias; pass add_missing=true to give them one")
        return ShiftForm(chosen)
