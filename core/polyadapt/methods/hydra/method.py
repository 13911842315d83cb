"""Hydra: y = u + s (Bp (Ap x + ap) + bp) + s (Bs (As u + as) + bs) with u = W x + b0.

Paper: Hydra (arXiv 2309.06922). Official code: extremebird/Hydra (MIT), whose published attention fold uses another
layer's weight; this follows the equations.
Both branches together are exactly a LoRA of rank rp + rs and a shift, and that is what is trained, run and exported:
    a = [Ap, W' As]   b = s [Bp; Bs]   shift = s (b0 As Bs + as Bs + bs + ap Bp + bp)      (input-major factors)
"""

from __future__ import annotations

import math

import torch
from torch import nn

from polyadapt.edits import Edit, Form
from polyadapt.errors import UserError
from polyadapt.methods.base import Method, select_ops, usual_sites, weight_rows
from polyadapt.methods.hydra.card import HydraOptions
from polyadapt.methods.lora.method import ungrouped
from polyadapt.model import Model
from polyadapt.sites import OpPort, module_name

USUAL_SITES = ("attn.o", "ffn.down")


class Branch(nn.Module):
    """down [n, r], up [r, out], and biases of both where the options want them."""

    def __init__(self, n_in: int, n_out: int, rank: int, options: HydraOptions, generator: torch.Generator) -> None:
        super().__init__()
        bound = math.sqrt(6.0 / (n_in + rank)) if options.init == "xavier" else 1.0 / math.sqrt(n_in)
        self.down = nn.Parameter((torch.rand(n_in, rank, generator=generator) * 2 - 1) * bound)
        self.up = nn.Parameter(torch.zeros(rank, n_out))
        self.down_bias = nn.Parameter(torch.zeros(rank)) if options.biases else None
        self.up_bias = nn.Parameter(torch.zeros(n_out)) if options.biases else None

    def constant(self) -> torch.Tensor | float:
        """What the biases add to the output, [out]."""
        return 0.0 if self.down_bias is None or self.up_bias is None else self.down_bias @ self.up + self.up_bias


class HydraForm(Form):
    """Two branches per site; a branch of rank 0 is absent."""

    def __init__(self, ports: list[OpPort], options: HydraOptions, generator: torch.Generator) -> None:
        super().__init__()
        self._ports, self._options = ports, options
        self.parallel, self.sequential = nn.ModuleDict(), nn.ModuleDict()
        for port in ports:
            if options.parallel_rank:
                self.parallel[module_name(port.site)] = Branch(port.in_features, port.out_features, options.parallel_rank, options, generator)
            if options.sequential_rank:
                self.sequential[module_name(port.site)] = Branch(port.out_features, port.out_features, options.sequential_rank, options, generator)

    def edits(self) -> list[Edit]:
        return [edit for port in self._ports for edit in self._edits(port)]

    def _edits(self, port: OpPort) -> list[Edit]:
        weight, bias = weight_rows(port)
        name, scale = module_name(port.site), self._options.scale
        downs: list[torch.Tensor] = []
        ups: list[torch.Tensor] = []
        shift: torch.Tensor | float = 0.0
        if name in self.parallel:
            branch = self.parallel[name]
            assert isinstance(branch, Branch)
            downs.append(branch.down)
            ups.append(branch.up)
            shift = shift + branch.constant()
        if name in self.sequential:
            branch = self.sequential[name]
            assert isinstance(branch, Branch)
            downs.append(weight.T.to(branch.down.dtype) @ branch.down)  # (in, r)
            ups.append(branch.up)
            shift = shift + branch.constant()
            if bias is not None:
                shift = shift + bias.to(branch.down.dtype) @ branch.down @ branch.up  # (out,)
        edits = [Edit(port.site, "lowrank", {"a": torch.cat(downs, dim=1), "b": scale * torch.cat(ups, dim=0)})]
        if isinstance(shift, torch.Tensor):
            edits.append(Edit(port.site, "shift", {"b": scale * shift}))
        return edits


class Hydra(Method):
    """The method `hydra`."""

    def form(self, model: Model, options: HydraOptions, generator: torch.Generator) -> Form:
        ports = select_ops(model, usual_sites(model, options.sites, "lowrank", USUAL_SITES))
        # The sequential branch mixes all channels, which the kernel of a grouped convolution cannot hold.
        fitting = ungrouped(ports)
        if not fitting or (options.sites and len(fitting) < len(ports)):
            grouped = [port.site for port in ports if port not in fitting]
            raise UserError(f"hydra takes no grouped convolutions, and {', '.join(grouped[:5])} {'are' if len(grouped) > 1 else 'is'} grouped; choose other sites")
        return HydraForm(fitting, options, generator)
