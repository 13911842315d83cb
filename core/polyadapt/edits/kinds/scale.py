"""`scale`: h * g with g [out]; variant `input` multiplies the op's input channels instead, g [in], where the op is one site's alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from polyadapt.edits.kinds.kind import Kind, Tensors, along, normal

if TYPE_CHECKING:
    from polyadapt.edits.edit import Edit


class Scale(Kind):
    """Learned factors per feature."""

    name = "scale"
    order = 1
    folds = True
    variants = ("", "input")

    def shapes(self, port: Any, variant: str = "") -> dict[str, tuple[int | str, ...]]:
        return {"g": (self._size(port, variant),)}

    def identity(self, port: Any, variant: str = "") -> dict[str, torch.Tensor]:
        return {"g": torch.ones(self._size(port, variant))}

    def example(self, port: Any, variant: str, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"g": 1.0 + normal((self._size(port, variant),), 0.3, generator)}

    def apply(self, edit: Edit, x: torch.Tensor, h: torch.Tensor, port: Any) -> torch.Tensor:
        return h * along(edit.tensors["g"], h, port.channel_dim)

    def apply_input(self, edit: Edit, x: torch.Tensor, port: Any) -> torch.Tensor:
        """The `input` variant, before the op runs."""
        return x * along(edit.tensors["g"], x, port.channel_dim)

    def scaled(self, tensors: Tensors, variant: str, weight: float) -> dict[str, torch.Tensor]:
        return {"g": 1.0 + weight * (tensors["g"] - 1.0)}

    def mix(self, left: Tensors, right: Tensors, variant: str) -> dict[str, torch.Tensor]:
        return {"g": left["g"] * right["g"]}

    def pad(self, tensors: Tensors, variant: str, size: int) -> dict[str, torch.Tensor]:
        return dict(tensors)

    def widened(self, tensors: Tensors, variant: str, start: int, size: int) -> dict[str, torch.Tensor]:
        return {"g": F.pad(tensors["g"], (start, size - start - tensors["g"].shape[-1]), value=1.0)}  # (…, size)

    def fold(self, tensors: Tensors, variant: str, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        g = tensors["g"].to(weight.dtype)
        if variant == "input":
            return weight * g.reshape(-1, *([1] * (weight.dim() - 2))), bias  # (out, in, k…)
        return weight * g.reshape(-1, *([1] * (weight.dim() - 1))), bias * g

    def _size(self, port: Any, variant: str) -> int:
        if variant == "input" and getattr(port, "rows", None) is not None:
            raise self.no(f"scale the input of {port.site} alone: its fused projection serves other sites too; scale their outputs")
        return int(port.in_channels if variant == "input" else port.out_features)
