"""`shift`: h + b with b [out]: a bias, also where the op has none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from polyadapt.edits.kinds.kind import Kind, Tensors, along, normal

if TYPE_CHECKING:
    from polyadapt.edits.edit import Edit


class Shift(Kind):
    """A learned bias."""

    name = "shift"
    order = 2
    folds = True

    def shapes(self, port: Any, variant: str = "") -> dict[str, tuple[int | str, ...]]:
        return {"b": (port.out_features,)}

    def identity(self, port: Any, variant: str = "") -> dict[str, torch.Tensor]:
        return {"b": torch.zeros(port.out_features)}

    def example(self, port: Any, variant: str, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"b": normal((port.out_features,), 0.3, generator)}

    def apply(self, edit: Edit, x: torch.Tensor, h: torch.Tensor, port: Any) -> torch.Tensor:
        return h + along(edit.tensors["b"], h, port.channel_dim)

    def scaled(self, tensors: Tensors, variant: str, weight: float) -> dict[str, torch.Tensor]:
        return {"b": weight * tensors["b"]}

    def mix(self, left: Tensors, right: Tensors, variant: str) -> dict[str, torch.Tensor]:
        return {"b": left["b"] + right["b"]}

    def pad(self, tensors: Tensors, variant: str, size: int) -> dict[str, torch.Tensor]:
        return dict(tensors)

    def widened(self, tensors: Tensors, variant: str, start: int, size: int) -> dict[str, torch.Tensor]:
        return {"b": F.pad(tensors["b"], (start, size - start - tensors["b"].shape[-1]))}  # (…, size)

    def fold(self, tensors: Tensors, variant: str, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        return weight, bias + tensors["b"].to(bias.dtype)
