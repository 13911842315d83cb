"""Gradient reversal: what goes through stays, its gradient changes sign (Ganin and Lempitsky, arXiv 1409.7495)."""

from __future__ import annotations

from typing import Any

import torch


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: torch.Tensor, weight: float) -> torch.Tensor:
        context.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        return -context.weight * gradients[0], None


def reversed_gradient(x: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """x; whatever made it is trained to raise, `weight` times, what the rest is trained to lower."""
    result: torch.Tensor = _Reversal.apply(x, weight)  # type: ignore[no-untyped-call]
    return result
