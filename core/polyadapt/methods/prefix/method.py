"""Prefix tuning: P learned keys and values [heads, P, size] at every attention call.

Paper: Prefix-Tuning (arXiv 2101.00190). Official code: XiangLi1999/PrefixTuning.
Exact identity (He et al. 2022, arXiv 2110.04366): head = (1 - lam) softmax(a) V + lam softmax(b) P_v, where lam is the
prefix's share of the softmax.
"""

from __future__ import annotations

import torch
from torch import nn

from polyadapt.edits import Edit, Form
from polyadapt.methods.base import Method, present
from polyadapt.methods.prefix.card import PrefixOptions
from polyadapt.model import Model
from polyadapt.sites import AttentionPort, module_name

START_STD = 0.02
USUAL_SITES = ("attn", "cross")


class DirectPrefix(Form):
    """The prefix itself is trained; starts at N(0, 0.02)."""

    def __init__(self, ports: list[AttentionPort], length: int, generator: torch.Generator) -> None:
        super().__init__()
        self._sites = [port.site for port in ports]
        self.k, self.v = nn.ParameterDict(), nn.ParameterDict()
        for port in ports:
            for store in (self.k, self.v):
                store[module_name(port.site)] = nn.Parameter(torch.randn(port.heads, length, port.head_size, generator=generator) * START_STD)

    def edits(self) -> list[Edit]:
        return [Edit(site, "keys", {"k": self.k[module_name(site)], "v": self.v[module_name(site)]}) for site in self._sites]


class MlpPrefix(Form):
    """Embedding [P, d] -> Linear(d, hidden) -> tanh -> Linear(hidden, all keys and values); only its result is kept."""

    def __init__(self, ports: list[AttentionPort], options: PrefixOptions, generator: torch.Generator) -> None:
        super().__init__()
        self._ports, self._length = ports, options.length
        width = ports[0].heads * ports[0].head_size
        total = sum(2 * port.heads * port.head_size for port in ports)
        self.embedding = nn.Parameter(torch.randn(options.length, width, generator=generator))
        self.inner = nn.Parameter((torch.rand(width, options.hidden, generator=generator) * 2 - 1) * width**-0.5)
        self.inner_bias = nn.Parameter(torch.zeros(options.hidden))
        self.outer = nn.Parameter((torch.rand(options.hidden, total, generator=generator) * 2 - 1) * options.hidden**-0.5)
        self.outer_bias = nn.Parameter(torch.zeros(total))

    def edits(self) -> list[Edit]:
        made = torch.tanh(self.embedding @ self.inner + self.inner_bias) @ self.outer + self.outer_bias  # (P, all)
        result, position = [], 0
        for port in self._ports:
            width = port.heads * port.head_size
            k, v = (made[:, start : start + width].reshape(self._length, port.heads, port.head_size).transpose(0, 1) for start in (position, position + width))
            result.append(Edit(port.site, "keys", {"k": k, "v": v}))  # (heads, P, size)
            position += 2 * width
        return result


class Prefix(Method):
    """The method `prefix`."""

    def form(self, model: Model, options: PrefixOptions, generator: torch.Generator) -> Form:
        ports = [model.ports.attention[site] for site in model.ports.select("attention", options.sites or present(model, "attention", USUAL_SITES))]
        if options.reparametrisation == "mlp":
            return MlpPrefix(ports, options, generator)
        return DirectPrefix(ports, options.length, generator)
