"""Norm tuning: w x^ + b becomes (w + dw) x^ + (b + db), where x^ is the normalised input; dw and db start at 0.

Paper: Tuning LayerNorm in Attention (arXiv 2312.11420). PEFT's `ln_tuning` trains w and b themselves: the same steps
of the optimiser, as long as there is no weight decay.
Ours: what trains is the difference, and it is lowered to `scale` and `shift`, the kinds that can be slots:
h = w x^ + b, g = 1 + dw / w, so that g h + (b + db - g b) is the line above.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from polyadapt.edits import Edit, Form
from polyadapt.methods.base import Method, select_ops
from polyadapt.model import Model
from polyadapt.sites import OpPort, module_name
from polyadapt_text.norm_tuning.card import NormTuningOptions


class NormForm(Form):
    """For each site dw [features] and, where the norm has a bias or gets one, db [features]."""

    def __init__(self, ports: list[OpPort], add_missing: bool) -> None:
        super().__init__()
        self._sites = [port.site for port in ports]
        self.weight = nn.ParameterDict()
        self.bias = nn.ParameterDict()
        for port in ports:
            name, module = module_name(port.site), _module(port)
            self.weight[name] = nn.Parameter(torch.zeros(port.out_features))
            has_bias = getattr(module, "bias", None) is not None
            if has_bias or add_missing:
                self.bias[name] = nn.Parameter(torch.zeros(port.out_features))
            self.register_buffer(f"base_weight:{name}", module.weight.detach().float().cpu(), persistent=False)
            self.register_buffer(f"base_bias:{name}", module.bias.detach().float().cpu() if has_bias else torch.zeros(port.out_features), persistent=False)

    def edits(self) -> list[Edit]:
        made = []
        for site in self._sites:
            name = module_name(site)
            weight, bias = self.get_buffer(f"base_weight:{name}"), self.get_buffer(f"base_bias:{name}")
            # Where the base's weight is 0 nothing comes through to be scaled.
            ratio = self.weight[name] / torch.where(weight == 0, torch.ones_like(weight), weight)  # (features,)
            made.append(Edit(site, "scale", {"g": 1.0 + ratio}))
            if name in self.bias:
                made.append(Edit(site, "shift", {"b": self.bias[name] - ratio * bias}))
        return made


class NormTuning(Method):
    """The method `norm-tuning`."""

    def form(self, model: Model, options: NormTuningOptions, generator: torch.Generator) -> Form:
        """A fresh form; nothing of it is random, so `generator` is not used."""
        return NormForm(select_ops(model, options.sites, ("norm",)), options.add_missing)


def _module(port: OpPort) -> Any:
    return port.module
