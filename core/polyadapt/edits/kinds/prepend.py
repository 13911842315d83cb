"""`prepend`: P learned tokens in front of a sequence; tokens [P, width]. The identity is P = 0.

At the stream of a later block (deep prompts) the tokens take the place of the prompts that block 0 got.
"""

from __future__ import annotations

from typing import Any

import torch

from polyadapt.edits.kinds.kind import Kind, Tensors, normal


class Prepend(Kind):
    """Learned tokens in a stream."""

    name = "prepend"
    port = "stream"
    no_rows = "rows of other lengths, the base's 0 among them, need masks and positions of their own in every block"

    def shapes(self, port: Any, variant: str = "") -> dict[str, tuple[int | str, ...]]:
        return {"tokens": ("p", port.width)}

    def identity(self, port: Any, variant: str = "") -> dict[str, torch.Tensor]:
        return {"tokens": torch.zeros(0, port.width)}

    def example(self, port: Any, variant: str, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"tokens": normal((size, port.width), 1.0, generator)}

    def insert(self, tensors: Tensors, h: torch.Tensor, offset: int) -> torch.Tensor:
        """h [batch, T, width] -> [batch, T + P, width], the tokens standing at `offset`."""
        tokens = tensors["tokens"].to(h.dtype).expand(h.shape[0], -1, -1)  # (batch, P, width)
        return torch.cat([h[:, :offset], tokens, h[:, offset:]], dim=1)

    def overwrite(self, tensors: Tensors, h: torch.Tensor, offset: int) -> torch.Tensor:
        """h of unchanged length with the tokens written over positions `offset` … `offset + P`."""
        tokens = tensors["tokens"].to(h.dtype).expand(h.shape[0], -1, -1)
        return torch.cat([h[:, :offset], tokens, h[:, offset + tokens.shape[1] :]], dim=1)

    def mix(self, left: Tensors, right: Tensors, variant: str) -> dict[str, torch.Tensor]:
        """Both prompts side by side. This is not the sum of two effects."""
        return {"tokens": torch.cat([left["tokens"], right["tokens"]], dim=0)}
