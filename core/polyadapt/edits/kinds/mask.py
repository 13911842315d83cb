"""`mask`: h - x (W * (1 - keep))', with keep [out, in] in {0, 1}: some of a projection's own weights are left out.

W stays where it is, so what is saved is the mask alone, and with `keep` all ones nothing changes by a bit. The effect is
linear in `1 - keep`; values between 0 and 1 are weighed masks. Bias and everything else beside the op are not touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from polyadapt.edits.kinds.kind import Kind, Tensors, product
from polyadapt.errors import UserError

if TYPE_CHECKING:
    from polyadapt.edits.edit import Edit

EXAMPLE_KEPT = 0.7


class Mask(Kind):
    """Weights of a linear op that are switched off."""

    name = "mask"
    order = -1  # it takes from what the op's own weights gave, before anything is added or scaled
    folds = True

    def shapes(self, port: Any, variant: str = "") -> dict[str, tuple[int | str, ...]]:
        if port.kind != "linear":
            raise UserError(f"edits of kind 'mask' fit linear ops, and {port.site} is a {port.kind} op; choose other sites")
        return {"keep": (port.out_features, port.in_features)}

    def identity(self, port: Any, variant: str = "") -> dict[str, torch.Tensor]:
        return {"keep": torch.ones(port.out_features, port.in_features)}

    def example(self, port: Any, variant: str, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"keep": (torch.rand(port.out_features, port.in_features, generator=generator) < EXAMPLE_KEPT).float()}

    def apply(self, edit: Edit, x: torch.Tensor, h: torch.Tensor, port: Any) -> torch.Tensor:
        keep = edit.tensors["keep"]
        left_out = weight_of(port, keep.shape[-2]) * (1.0 - keep)  # (…, out, in)
        return h - product(x, left_out.transpose(-1, -2))

    def scaled(self, tensors: Tensors, variant: str, weight: float) -> dict[str, torch.Tensor]:
        return {"keep": 1.0 + weight * (tensors["keep"] - 1.0)}

    def mix(self, left: Tensors, right: Tensors, variant: str) -> dict[str, torch.Tensor]:
        return {"keep": left["keep"] + right["keep"] - 1.0}

    def pad(self, tensors: Tensors, variant: str, size: int) -> dict[str, torch.Tensor]:
        return dict(tensors)

    def widened(self, tensors: Tensors, variant: str, start: int, size: int) -> dict[str, torch.Tensor]:
        keep = tensors["keep"]
        return {"keep": F.pad(keep, (0, 0, start, size - start - keep.shape[-2]), value=1.0)}  # (…, size, in)

    def fold(self, tensors: Tensors, variant: str, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        return weight * tensors["keep"].to(weight.dtype), bias


def weight_of(port: Any, rows: int) -> torch.Tensor:
    """The weight of a linear op as [out, in], live: the whole of a fused projection where so many rows are asked for, else the site's."""
    weight: torch.Tensor = port.module.weight.T if port.transposed else port.module.weight
    return weight if port.rows is None or weight.shape[0] == rows else weight[slice(*port.rows)]
