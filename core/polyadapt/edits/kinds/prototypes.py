"""`prototypes`: class scores in place of the base's: weight [d, C], bias [C], cosine [1].

A linear head has cosine 0. With cosine 1 the columns of `weight` are unit prototypes times the
temperature, and `bias` is 0. C is free: classes can be added to an exported model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from polyadapt.edits.kinds.kind import Kind, Tensors, normal
from polyadapt.model import score

if TYPE_CHECKING:
    from polyadapt.edits.edit import Edit


class Prototypes(Kind):
    """Class scores that replace the base's."""

    name = "prototypes"
    port = "head"

    def shapes(self, port: Any, variant: str = "") -> dict[str, tuple[int | str, ...]]:
        return {"weight": (port.in_features, "c"), "bias": ("c",), "cosine": (1,)}

    def identity(self, port: Any, variant: str = "") -> dict[str, torch.Tensor]:
        head = port.module
        return {"weight": head.weight.detach().clone(), "bias": head.bias.detach().clone(), "cosine": head.cosine.detach().clone()}

    def example(self, port: Any, variant: str, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        columns = F.normalize(normal((port.in_features, size), 1.0, generator), dim=0) * 10.0
        return {"weight": columns, "bias": normal((size,), 0.1, generator), "cosine": torch.ones(1)}

    def apply(self, edit: Edit, x: torch.Tensor, h: torch.Tensor, port: Any) -> torch.Tensor:
        weight, bias, cosine = (edit.tensors[name] for name in ("weight", "bias", "cosine"))
        if weight.dim() == 2:
            return score(x, weight, bias, cosine)
        frames = x if x.dim() == 3 else x.unsqueeze(1)  # (batch, frames, d)
        scores = score(frames, weight, bias.unsqueeze(1), cosine.unsqueeze(1))  # a head for each row
        return scores if x.dim() == 3 else scores.squeeze(1)

    def length(self, tensors: Tensors) -> int:
        return tensors["bias"].shape[0]

    def pad(self, tensors: Tensors, variant: str, size: int) -> dict[str, torch.Tensor]:
        missing = size - tensors["bias"].shape[0]
        return {"weight": F.pad(tensors["weight"], (0, missing)), "bias": F.pad(tensors["bias"], (0, missing), value=float("-inf")), "cosine": tensors["cosine"]}
