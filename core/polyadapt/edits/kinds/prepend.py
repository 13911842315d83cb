"""`prepend`: P learned tokens in front of a sequence; tokens [P, width]. The identity is P = 0.

At the stream of a later block (deep prompts) the tokens take the place of the prompts that block 0 got. Stacked for a
bank, a second tensor `length` [artifacts] says how many tokens are real: they come first, and no token attends to the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from polyadapt.edits.kinds.kind import Kind, Tensors, normal


class Prepend(Kind):
    """Learned tokens in a stream."""

    name = "prepend"
    port = "stream"

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
        if "length" in tensors:
            tokens = torch.where(real(tensors)[..., None], tokens, h[:, offset : offset + tokens.shape[1]])
        return torch.cat([h[:, :offset], tokens, h[:, offset + tokens.shape[1] :]], dim=1)

    def stacked(self, sets: Sequence[Tensors], variant: str) -> dict[str, torch.Tensor]:
        lengths = [tensors["tokens"].shape[0] for tensors in sets]
        padded = [F.pad(tensors["tokens"], (0, 0, 0, max(lengths) - length)) for tensors, length in zip(sets, lengths, strict=True)]
        return {"tokens": torch.stack(padded), "length": torch.tensor(lengths)}

    def mix(self, left: Tensors, right: Tensors, variant: str) -> dict[str, torch.Tensor]:
        """Both prompts side by side. This is not the sum of two effects."""
        return {"tokens": torch.cat([left["tokens"], right["tokens"]], dim=0)}


def real(tensors: Tensors) -> torch.Tensor:
    """Which tokens of each row's prompt are no padding, bool [batch, P]."""
    places = torch.arange(tensors["tokens"].shape[-2], device=tensors["tokens"].device)
    return places < tensors["length"][:, None]


def padded_in_front(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The rows' prompts with their padding in front of them, so that the last token of each stands next to the sequence."""
    tokens = tensors["tokens"]  # (batch, P, width)
    longest = tokens.shape[1]
    places = (torch.arange(longest, device=tokens.device) + tensors["length"][:, None]) % longest  # (batch, P)
    return {**tensors, "tokens": tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))}
