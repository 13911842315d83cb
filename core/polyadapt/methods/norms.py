"""Norms of the base that train beside an adapter: their output times 1 + g, plus b, both starting at zero.

The same functions as those of a norm whose own weight and bias train, and as many values. What trains are differences, so
weight decay pulls towards the pretrained norm.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from polyadapt.edits import Edit, Form
from polyadapt.edits.form import Composite
from polyadapt.errors import UserError
from polyadapt.model import Model
from polyadapt.sites import OpPort, SpanPort, module_name


class NormForm(Form):
    """Two vectors [features] for each norm."""

    def __init__(self, ports: Sequence[OpPort]) -> None:
        super().__init__()
        self._sites = [port.site for port in ports]
        self.g = nn.ParameterDict({module_name(port.site): nn.Parameter(torch.zeros(port.out_features)) for port in ports})
        self.b = nn.ParameterDict({module_name(port.site): nn.Parameter(torch.zeros(port.out_features)) for port in ports})

    def edits(self) -> list[Edit]:
        made = []
        for site in self._sites:
            made.append(Edit(site, "scale", {"g": 1.0 + self.g[module_name(site)]}))
            made.append(Edit(site, "shift", {"b": self.b[module_name(site)]}))
        return made


def with_feeding_norms(form: Form, model: Model, spans: Sequence[SpanPort]) -> Form:
    """A form and, beside it, the norms whose output these spans read.

    Raises:
        UserError: a span that no norm feeds, as far as its family says.
    """
    sites = []
    for span in spans:
        site = model.family.feeding_norm(model.backbone, span.site)
        if site not in model.ports.ops:
            raise UserError(f"family {model.family.card.id!r} names no norm that feeds {span.site}; leave train_norm out")
        sites.append(site)
    return Composite([form, NormForm([model.ports.ops[site] for site in dict.fromkeys(sites)])])
