"""DoRA: y = m / |W + s B A| * (W x + s B A x) + bias, row by row of W; m starts at |W|.

Paper: DoRA (arXiv 2402.09353). Official code: NVlabs/DoRA.
Ours: written as lowrank, then scale g = m / |W + s B A|, then shift (1 - g) * bias, because the bias is not scaled.
The norm comes from |W|^2 + 2 <W a, b> + b' (a'a) b, so the product B A is never formed.
"""

from __future__ import annotations

import torch
from torch import nn

from polyadapt.edits import Edit, Form
from polyadapt.methods.base import Method, select_ops, usual_sites, weight_rows
from polyadapt.methods.dora.card import DoraOptions
from polyadapt.methods.lora.card import USUAL_SITES
from polyadapt.methods.lora.method import LoraForm, ungrouped
from polyadapt.model import Model
from polyadapt.sites import OpPort, module_name


class DoraForm(Form):
    """LoRA factors and one magnitude [out] per site."""

    def __init__(self, ports: list[OpPort], options: DoraOptions, generator: torch.Generator) -> None:
        super().__init__()
        self.lora = LoraForm(ports, options, generator)
        self.magnitude = nn.ParameterDict({module_name(port.site): nn.Parameter(weight_rows(port)[0].float().norm(dim=1)) for port in ports})
        self._ports, self._detach = ports, options.detach_norm

    def edits(self) -> list[Edit]:
        result = []
        for port, low in zip(self._ports, self.lora.edits(), strict=True):
            weight, bias = weight_rows(port)
            weight = weight.to(low.tensors["a"].dtype)  # the norm of a base in bfloat16 is taken in the factors' float32, as at the start
            gain = self.magnitude[module_name(port.site)] / self._norm(weight, low.tensors["a"], low.tensors["b"])  # (out,)
            result += [low, Edit(port.site, "scale", {"g": gain})]
            if bias is not None:
                result.append(Edit(port.site, "shift", {"b": (1.0 - gain) * bias}))
        return result

    def _norm(self, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if self._detach:
            weight, a, b = weight.detach(), a.detach(), b.detach()
        cross = ((weight @ a) * b.T).sum(dim=1)  # (out,)
        own = ((a.T @ a) @ b * b).sum(dim=0)  # (out,)
        return (weight.pow(2).sum(dim=1) + 2 * cross + own).clamp_min(1e-24).sqrt()


class Dora(Method):
    """The method `dora`."""

    def form(self, model: Model, options: DoraOptions, generator: torch.Generator) -> Form:
        ports = select_ops(model, usual_sites(model, options.sites, "lowrank", USUAL_SITES))
        return DoraForm(ports if options.sites else ungrouped(ports), options, generator)
