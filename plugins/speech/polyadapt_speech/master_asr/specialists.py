"""Specialists: what languages share and choose from, as masks over the weights (the paper's) or as low-rank modules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from polyadapt.edits import Edit
from polyadapt.edits.kinds.mask import weight_of
from polyadapt.sites import OpPort, module_name
from polyadapt_speech.master_asr.assembly import mask
from polyadapt_speech.master_asr.card import MasterAsrOptions


class Specialists(nn.Module, ABC):
    """K specialists a site. Subclasses turn a choice among them into an edit."""

    @abstractmethod
    def edit(self, port: OpPort, chosen: torch.Tensor) -> Edit:
        """The edit of one site, differentiable with respect to specialists and choice [K]."""


class MaskSpecialists(Specialists):
    """Scores M_k [out, in]: around the size of the weights, so that the first masks take small weights away (ours)."""

    def __init__(self, ports: Sequence[OpPort], options: MasterAsrOptions, generator: torch.Generator) -> None:
        super().__init__()
        self._sparsity = options.sparsity
        self.scores = nn.ParameterDict()
        for port in ports:
            size = weight_of(port, port.out_features).detach().abs().float().cpu()  # (out, in)
            noise = torch.randn(options.specialists, *size.shape, generator=generator)
            self.scores[module_name(port.site)] = nn.Parameter(size + noise * size.std())  # (K, out, in)

    def edit(self, port: OpPort, chosen: torch.Tensor) -> Edit:
        with torch.autocast(chosen.device.type, enabled=False):  # rounded scores would choose other weights than those that are saved
            assembled = torch.tensordot(chosen, self.scores[module_name(port.site)], dims=1)  # (out, in)
        return Edit(port.site, "mask", {"keep": mask(assembled, weight_of(port, port.out_features), self._sparsity)})


class LowRankSpecialists(Specialists):
    """Modules x A_k B_k, of which the chosen ones are averaged; all are written as one product of rank K r."""

    def __init__(self, ports: Sequence[OpPort], options: MasterAsrOptions, generator: torch.Generator) -> None:
        super().__init__()
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        count, rank = options.specialists, options.rank
        for port in ports:
            bound = 1.0 / math.sqrt(port.in_features)
            start = torch.rand(count, port.in_features, rank, generator=generator) * 2 - 1
            self.a[module_name(port.site)] = nn.Parameter(start * bound)  # (K, in, r)
            self.b[module_name(port.site)] = nn.Parameter(torch.zeros(count, rank, port.out_features))  # (K, r, out)

    def edit(self, port: OpPort, chosen: torch.Tensor) -> Edit:
        a, b = self.a[module_name(port.site)], self.b[module_name(port.site)]
        weighed = b * (chosen / chosen.sum())[:, None, None]  # (K, r, out)
        return Edit(port.site, "lowrank", {"a": a.transpose(0, 1).flatten(1), "b": weighed.flatten(0, 1)})  # (in, K r), (K r, out)


def make_specialists(ports: Sequence[OpPort], options: MasterAsrOptions, generator: torch.Generator) -> Specialists:
    """Fresh specialists of the kind that the options name."""
    return (MaskSpecialists if options.specialist == "mask" else LowRankSpecialists)(ports, options, generator)
