"""(IA)3: k and v times learned vectors, and the inner activation of the FFN times another; all start at one.

Paper: Few-Shot Parameter-Efficient Fine-Tuning … (arXiv 2205.05638). Official code: r-three/t-few (MIT).
"""

from __future__ import annotations

import torch
from torch import nn

from polyadapt.edits import Edit, Form
from polyadapt.methods.base import Method, present, select_ops, usual_sites
from polyadapt.methods.ia3.card import Ia3Options
from polyadapt.model import Model
from polyadapt.sites import OpPort, matches, module_name

USUAL_SITES = ("attn.k", "attn.v", "cross.k", "cross.v")


class ScaleForm(Form):
    """One vector per site: [out] for outputs, [in channels] for inputs."""

    def __init__(self, outputs: list[OpPort], inputs: list[OpPort]) -> None:
        super().__init__()
        self._outputs, self._inputs = [port.site for port in outputs], [port.site for port in inputs]
        self.output = nn.ParameterDict({module_name(port.site): nn.Parameter(torch.ones(port.out_features)) for port in outputs})
        self.input = nn.ParameterDict({module_name(port.site): nn.Parameter(torch.ones(port.in_channels)) for port in inputs})

    def edits(self) -> list[Edit]:
        scales = [Edit(site, "scale", {"g": self.output[module_name(site)]}) for site in self._outputs]
        return scales + [Edit(site, "scale", {"g": self.input[module_name(site)]}, "input") for site in self._inputs]


class Ia3(Method):
    """The method `ia3`."""

    def form(self, model: Model, options: Ia3Options, generator: torch.Generator) -> Form:
        outputs = select_ops(model, usual_sites(model, options.sites, "scale", present(model, "op", USUAL_SITES)))
        usual = ("ffn.down",) if any(matches(site, "ffn.down") for site in model.ports.ops) else ()
        inputs = select_ops(model, options.input_sites or usual) if options.input_sites or usual else []
        return ScaleForm(outputs, inputs)
