"""USAT's flow adapters: LayerNorm, down, ReLU, up, along the frames of a coupling, or the tokens of one of durations (arXiv 2404.18094).

*Beside* (X) an adapter reads x0, which the coupling keeps, and adds to the shift m of the other half: m + A(x0).
*Inside* (H) it reads and changes the hidden frames h of the transform, h + A(h). What follows is the linear map
m = W h + b, so W (h + A(h)) + b = m + W A(h): an adapter beside the last layer whose up-weights are W times the trained ones.
That is the form it is lowered to: exact, and smaller.

The norm has no bias: frames behind a row's end are 0 and stay 0, so a row does not hear its padding.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt.edits import Edit, Form
from polyadapt.edits.kinds.module import tensors_of
from polyadapt.sites import SpanPort, module_name
from polyadapt_speech.usat.network.norm import ChannelNorm

VARIANT = "usat"


class FlowAdapter(nn.Module):
    """One adapter. Values come from `start`, from training or from a file.

    Args:
        n_in: channels that it reads.
        n_out: channels that it adds to.
        rank: inner width r.
        kernel: odd width of the convolution; 1 for the linear variant.

    Shape:
        x [batch, n_in, frames] -> [batch, n_out, frames].
    """

    def __init__(self, n_in: int, n_out: int, rank: int, kernel: int) -> None:
        super().__init__()
        # On the meta device torch draws nothing from the global generator.
        self.norm = ChannelNorm(n_in, bias=False)
        self.down = nn.Conv1d(n_in, rank, kernel, padding=kernel // 2, device="meta").to_empty(device="cpu")
        self.up = nn.Conv1d(rank, n_out, 1, device="meta").to_empty(device="cpu")

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> FlowAdapter:
        """Down uniform within 1 / sqrt(inputs), everything else 0, so that nothing is added."""
        bound = 1 / math.sqrt(self.down.weight[0].numel())
        self.down.weight.uniform_(-bound, bound, generator=generator)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            assert zero is not None
            nn.init.zeros_(zero)
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.up(F.relu(self.down(self.norm(x))))  # (B, n_out, F)
        return result


class FlowForm(Form):
    """One adapter a coupling.

    Args:
        ports: spans of the flow. One that is a single layer is *inside*: its adapter works on what the layer reads.
        rank, kernel: of every adapter.
        generator: of the starting values.
        dropout: of what adapters read, while training.
    """

    def __init__(self, ports: list[SpanPort], rank: int, kernel: int, generator: torch.Generator, dropout: float = 0.0) -> None:
        super().__init__()
        self._ports, self._rank, self._kernel, self._dropout = ports, rank, kernel, dropout
        self.adapters = nn.ModuleDict()
        for port in ports:
            width = port.in_features if _is_inside(port) else port.out_features
            self.adapters[module_name(port.site)] = FlowAdapter(port.in_features, width, rank, kernel).start(generator)

    def edits(self) -> list[Edit]:
        made = []
        for port in self._ports:
            adapter = self.adapters[module_name(port.site)]
            assert isinstance(adapter, FlowAdapter)
            if _is_inside(port):
                lowered = FlowAdapter(port.in_features, port.out_features, self._rank, self._kernel)
                made.append(Edit(port.site, "module", _through(adapter, port.end.module), VARIANT, self._dropout, lowered))
            else:
                made.append(Edit(port.site, "module", tensors_of(adapter), VARIANT, self._dropout, adapter))
        return made


def _is_inside(port: SpanPort) -> bool:
    return port.start.path == port.end.path


def _through(adapter: FlowAdapter, layer: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of W A(h), for the layer m = W h + b."""
    weight = layer.get_parameter("weight").detach()[:, :, 0]  # (n_out, width)
    assert adapter.up.bias is not None
    up = (weight @ adapter.up.weight[:, :, 0])[:, :, None]  # (n_out, r, 1)
    return {**tensors_of(adapter), "up-weight": up, "up-bias": weight @ adapter.up.bias}
