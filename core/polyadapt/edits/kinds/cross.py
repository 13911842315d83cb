"""`cross`: a second attention over context tokens c, added to the first: out + scale * attention(q, c k, c v).

k, v [context, heads * size], scale [1]. The tokens [batch, n >= 1, context] are an ordinary input of the graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from polyadapt.edits.kinds.kind import AttentionCall, Kind, Tensors, normal


class Cross(Kind):
    """Attention over extra context tokens, added to the attention that is there."""

    name = "cross"
    port = "attention"
    order = 1
    no_rows = "its context tokens are one input of the graph, of the width that one artifact takes"

    def shapes(self, port: Any, variant: str = "") -> dict[str, tuple[int | str, ...]]:
        width = port.heads * port.head_size
        return {"k": ("context", width), "v": ("context", width), "scale": (1,)}

    def identity(self, port: Any, variant: str = "") -> dict[str, torch.Tensor]:
        width = port.heads * port.head_size
        return {"k": torch.zeros(1, width), "v": torch.zeros(1, width), "scale": torch.zeros(1)}

    def example(self, port: Any, variant: str, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        width = port.heads * port.head_size
        return {"k": normal((size, width), 1.0, generator), "v": normal((size, width), 1.0, generator), "scale": torch.tensor([0.7])}

    def after(self, tensors: Tensors, call: AttentionCall, output: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """The attention's output [batch, heads, queries, size] with the second attention added."""
        batch, heads, _, size = call.query.shape
        k, v = ((context.to(tensors[name].dtype) @ tensors[name]).reshape(batch, -1, heads, size).transpose(1, 2) for name in ("k", "v"))  # (batch, heads, n, size)
        return output + tensors["scale"] * F.scaled_dot_product_attention(call.query, k, v, scale=call.scale)

    def scaled(self, tensors: Tensors, variant: str, weight: float) -> dict[str, torch.Tensor]:
        return {**tensors, "scale": tensors["scale"] * weight}
