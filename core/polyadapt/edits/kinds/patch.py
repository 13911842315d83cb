"""`patch`: a difference on the op's own parameters (full or sparse fine-tuning). No slots: it is folded or switched in.

Tensors `weight` and `bias` have the shapes of the parameters (rows of a fused projection only). Sites of
the form `other.<name>` stand for parameters that belong to no op, such as class tokens.
"""

from __future__ import annotations

from typing import Any

import torch

from polyadapt.edits.kinds.kind import Kind, Tensors, normal


class Patch(Kind):
    """A difference on an op's own parameters."""

    name = "patch"
    has_slots = False
    folds = True
    no_rows = "it changes the op's own weights, which the whole batch shares"

    def example(self, port: Any, variant: str, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        parameters = {name: value for name in ("weight", "bias") if (value := getattr(port.module, name, None)) is not None}
        return {name: normal(tuple(value.shape), 0.3 * value.detach().std().item() + 1e-3, generator) for name, value in parameters.items()}

    def scaled(self, tensors: Tensors, variant: str, weight: float) -> dict[str, torch.Tensor]:
        return {name: value * weight for name, value in tensors.items()}

    def mix(self, left: Tensors, right: Tensors, variant: str) -> dict[str, torch.Tensor]:
        names = {**left, **right}
        return {name: left[name] + right[name] if name in left and name in right else names[name] for name in names}
