"""Bottleneck adapters: h + s (act(u W_down + b_down) W_up + b_up), with u the block's input or its output.

Papers: Houlsby et al. (arXiv 1902.00751), Pfeiffer et al. (2005.00247), He et al. (2110.04366). Official code of the
last: jxhe/unify-parameter-efficient-tuning (Apache-2.0); there too the scale multiplies the bias.
Ours: the skip stands at the FFN's output before residual and norm, in every family. Further places: `placing.py`.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from polyadapt.edits import Edit, Form
from polyadapt.edits.kinds.place import SKIP, is_before, reads_output
from polyadapt.methods.base import Method
from polyadapt.methods.bottleneck.card import BottleneckOptions
from polyadapt.methods.norms import with_feeding_norms
from polyadapt.methods.placing import PLACEMENTS, placing_of
from polyadapt.model import Model
from polyadapt.sites import SpanPort, module_name

BERT_STD = 0.02


class OneBottleneck(nn.Module):
    """The trained tensors of one site: down [d, r], up [r, out], their biases, and optionally a norm and a scale."""

    def __init__(self, n_in: int, n_out: int, options: BottleneckOptions, generator: torch.Generator) -> None:
        super().__init__()
        rank = options.rank
        if options.init == "bert":
            down, up = torch.randn(n_in, rank, generator=generator) * BERT_STD, torch.randn(rank, n_out, generator=generator) * BERT_STD
        else:
            down, up = (torch.rand(n_in, rank, generator=generator) * 2 - 1) / math.sqrt(n_in), torch.zeros(rank, n_out)
        self.down, self.down_bias = nn.Parameter(down), nn.Parameter(torch.zeros(rank))
        self.up, self.up_bias = nn.Parameter(up), nn.Parameter(torch.zeros(n_out))
        self.norm_weight = nn.Parameter(torch.ones(n_in)) if options.norm else None
        self.norm_bias = nn.Parameter(torch.zeros(n_in)) if options.norm else None
        self.scale = nn.Parameter(torch.tensor([options.scale])) if options.learned_scale else None
        self._fixed_scale = options.scale

    def tensors(self) -> dict[str, torch.Tensor]:
        """The edit's tensors: norm folded into `down`, scale into `up`."""
        down: torch.Tensor = self.down
        down_bias: torch.Tensor = self.down_bias
        if self.norm_weight is not None and self.norm_bias is not None:
            down, down_bias = self.norm_weight[:, None] * down, self.norm_bias @ down + down_bias
        scale = self._fixed_scale if self.scale is None else self.scale
        return {"down": down, "down_bias": down_bias, "up": self.up * scale, "up_bias": self.up_bias * scale}


class BottleneckForm(Form):
    """One bottleneck per span."""

    def __init__(self, ports: list[SpanPort], options: BottleneckOptions, generator: torch.Generator) -> None:
        super().__init__()
        placing = placing_of(options)
        self.moves_at_start = placing.moves or ("both factors start at random" if options.init == "bert" else "")
        self._sites = [port.site for port in ports]
        self._variant = f"{placing.place}-{options.activation}{'-norm' if options.norm else ''}"
        self._skip, self._dropout = placing.skip, options.dropout
        self.adapters = nn.ModuleDict()
        for port in ports:
            n_in = port.out_features if reads_output(placing.place) else port.in_features
            n_out = port.in_features if is_before(placing.place) else port.out_features
            self.adapters[module_name(port.site)] = OneBottleneck(n_in, n_out, options, generator)

    def edits(self) -> list[Edit]:
        result = []
        for site in self._sites:
            adapter = self.adapters[module_name(site)]
            assert isinstance(adapter, OneBottleneck)
            tensors = adapter.tensors()
            if self._skip is not None:
                tensors[SKIP] = adapter.down.new_full((1,), self._skip)
            result.append(Edit(site, "bottleneck", tensors, self._variant, self._dropout))
        return result


class BottleneckAdapter(Method):
    """The method `bottleneck`."""

    def form(self, model: Model, options: BottleneckOptions, generator: torch.Generator) -> Form:
        spans = [model.ports.spans[site] for site in model.ports.select("span", options.sites or PLACEMENTS[options.placement])]
        form = BottleneckForm(spans, options, generator)
        return with_feeding_norms(form, model, spans) if options.train_norm else form
