"""LoRA: h + (alpha / r) (x A) B with A [in, r] random and B [r, out] zero, on linear, fused, convolutional and embedding sites.

Of an embedding it is the other way round, as in the official code: rows of A that no text has met stay zero.

Paper: LoRA: Low-Rank Adaptation of Large Language Models (arXiv 2106.09685). Official code: microsoft/LoRA (MIT).
Ours: input-major factors, and each of q, k and v its own site even where a library fuses them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import nn

from polyadapt.edits import Edit, Form
from polyadapt.errors import UserError
from polyadapt.methods.base import Method, select_ops, usual_sites
from polyadapt.methods.lora.card import USUAL_SITES, LoraOptions
from polyadapt.model import Model
from polyadapt.sites import OpPort, matches, module_name, short_names

Value = TypeVar("Value", int, float)


class LoraForm(Form):
    """Factors A and B per site; the scale enters B when they become edits.

    Raises:
        UserError: a pattern of the options matches none of the sites.
    """

    def __init__(self, ports: list[OpPort], options: LoraOptions, generator: torch.Generator) -> None:
        super().__init__()
        for name, patterns in (("rank_pattern", options.rank_pattern), ("alpha_pattern", options.alpha_pattern)):
            for pattern in patterns:
                if not any(matches(port.site, pattern) for port in ports):
                    raise UserError(f"{name} {pattern!r} matches no adapted site; sites: {', '.join(short_names(port.site for port in ports))}")
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        self._sites = [port.site for port in ports]
        self._dropout = options.dropout
        self._scales = {}
        for port in ports:
            rank = by_pattern(options.rank_pattern, port.site, options.rank)
            alpha = by_pattern(options.alpha_pattern, port.site, options.alpha)
            self._scales[port.site] = alpha / (math.sqrt(rank) if options.rank_stabilised else rank)
            a, b = initial_factors(port, rank, generator)
            self.a[module_name(port.site)] = nn.Parameter(a)  # (in, r)
            self.b[module_name(port.site)] = nn.Parameter(b)  # (r, out)

    def edits(self) -> list[Edit]:
        return [Edit(site, "lowrank", {"a": self.a[module_name(site)], "b": self.b[module_name(site)] * self._scales[site]}, dropout=self._dropout) for site in self._sites]


class Lora(Method):
    """The method `lora`."""

    def form(self, model: Model, options: LoraOptions, generator: torch.Generator) -> Form:
        ports = select_ops(model, usual_sites(model, options.sites, "lowrank", USUAL_SITES), ("linear", "conv", "embedding"))
        return LoraForm(ports if options.sites else ungrouped(ports), options, generator)


def initial_factors(port: OpPort, rank: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A [in, r] and B [r, out] whose product is zero: A as torch draws a Linear's weight (Kaiming uniform with a = sqrt 5), of embeddings B normal."""
    if port.kind == "embedding":
        return torch.zeros(port.in_features, rank), torch.randn(rank, port.out_features, generator=generator)
    bound = 1.0 / math.sqrt(port.in_features)
    return (torch.rand(port.in_features, rank, generator=generator) * 2 - 1) * bound, torch.zeros(rank, port.out_features)


def ungrouped(ports: list[OpPort]) -> list[OpPort]:
    """Ports without grouped (depthwise) convolutions: a low-rank kernel saves little there and costs a full convolution."""
    return [port for port in ports if getattr(port.module, "groups", 1) == 1]


def by_pattern(patterns: Mapping[str, Value], site: str, default: Value) -> Value:
    """The value of the first glob that matches a site."""
    return next((value for pattern, value in patterns.items() if matches(site, pattern)), default)
