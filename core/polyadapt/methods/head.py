"""The class head that methods share: a trained `prototypes` edit at site `head`."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt.edits import Edit, Form
from polyadapt.model import Head

TEMPERATURE = 16.0  # scale of cosine scores, as few-shot classifiers use it (SAVC)


class HeadForm(Form):
    """A linear head that starts at zero or as a head that is there, or cosine prototypes that start at random unit vectors.

    Args:
        features: that it reads.
        classes: that it scores.
        kind: linear or cosine.
        generator: of the prototypes' start.
        own: the base's own head, where it was trained for these very classes.

    Shape:
        weight [features, classes], bias [classes].
    """

    def __init__(self, features: int, classes: int, kind: str, generator: torch.Generator, own: Head | None = None) -> None:
        super().__init__()
        self.is_cosine = kind == "cosine"
        start = torch.randn(features, classes, generator=generator) if self.is_cosine else torch.zeros(features, classes)
        self.weight = nn.Parameter(start)
        self.bias = nn.Parameter(torch.zeros(classes), requires_grad=not self.is_cosine)
        if own is not None and not self.is_cosine and not bool(own.cosine.any()):
            with torch.no_grad():
                self.weight.copy_(own.weight)
                self.bias.copy_(own.bias)

    def edits(self) -> list[Edit]:
        weight = F.normalize(self.weight, dim=0) * TEMPERATURE if self.is_cosine else self.weight  # (d, C)
        cosine = self.bias.new_full((1,), 1.0 if self.is_cosine else 0.0)
        return [Edit("head", "prototypes", {"weight": weight, "bias": self.bias, "cosine": cosine})]
