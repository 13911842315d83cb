"""MAM: prefix tuning and a scaled parallel bottleneck, as two forms side by side.

Paper: Towards a Unified View of Parameter-Efficient Transfer Learning (arXiv 2110.04366). Official code:
jxhe/unify-parameter-efficient-tuning (Apache-2.0), whose RoBERTa path drops the gate by accident; this follows the equations.
"""

from __future__ import annotations

import torch

from polyadapt.edits import Form
from polyadapt.edits.form import Composite
from polyadapt.methods.base import Method, present
from polyadapt.methods.bottleneck.card import BottleneckOptions
from polyadapt.methods.bottleneck.method import BottleneckForm
from polyadapt.methods.mam.card import MamOptions
from polyadapt.methods.prefix.method import USUAL_SITES, DirectPrefix
from polyadapt.model import Model


class Mam(Method):
    """The method `mam`."""

    def form(self, model: Model, options: MamOptions, generator: torch.Generator) -> Form:
        attention = [model.ports.attention[site] for site in model.ports.select("attention", present(model, "attention", USUAL_SITES))]
        spans = [model.ports.spans[site] for site in model.ports.select("span", ("ffn",))]
        adapter = BottleneckOptions(rank=options.rank, scale=options.scale, insertion="parallel", activation="relu")
        return Composite([DirectPrefix(attention, options.length, generator), BottleneckForm(spans, adapter, generator)])
