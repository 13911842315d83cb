"""`prepend`: P learned tokens in front of a sequence; tokens [P, width]. The identity is P = 0.

At the stream of a later block (deep prompts) the tokens take the place of the prompts that block 0 got.

Variant `instead` also replaces the base's own token in front of them, t <- keep t + first with first [width] and keep [1]:
so P + 1 prompts stand where, say, the distillation token of a spectrogram transformer stood. Its identity has keep = 1.

Stacked for a bank, a further tensor `length` [artifacts] says how many tokens are real: they come first, and no token
attends to the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from polyadapt.edits.kinds.kind import Kind, Tensors, along, normal, real_places

INSTEAD = "instead"


class Prepend(Kind):
    """Learned tokens in a stream."""

    name = "prepend"
    port = "stream"
    variants = ("", INSTEAD)

    def shapes(self, port: Any, variant: str = "") -> dict[str, tuple[int | str, ...]]:
        self._check(port, variant)
        replaced: dict[str, tuple[int | str, ...]] = {"first": (port.width,), "keep": (1,)}
        return {"tokens": ("p", port.width), **(replaced if variant else {})}

    def identity(self, port: Any, variant: str = "") -> dict[str, torch.Tensor]:
        self._check(port, variant)
        replaced = {"first": torch.zeros(port.width), "keep": torch.ones(1)}
        return {"tokens": torch.zeros(0, port.width), **(replaced if variant else {})}

    def example(self, port: Any, variant: str, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        made = {"tokens": normal((size, port.width), 1.0, generator)}
        return {**made, "first": normal((port.width,), 1.0, generator), "keep": 0.5 + normal((1,), 0.1, generator)} if variant else made

    def insert(self, tensors: Tensors, h: torch.Tensor, offset: int, behind: int = 0) -> torch.Tensor:
        """h [batch, T, width] -> [batch, T + P, width], the tokens standing at `offset` + `behind`: behind those of other prompts."""
        h, tokens, start = self._replaced(tensors, h, offset), self._tokens(tensors, h), offset + behind
        return torch.cat([h[:, :start], tokens, h[:, start:]], dim=1)

    def overwrite(self, tensors: Tensors, h: torch.Tensor, offset: int, behind: int = 0) -> torch.Tensor:
        """h of unchanged length with the tokens written over positions from `offset` + `behind` on."""
        h, tokens, start = self._replaced(tensors, h, offset), self._tokens(tensors, h), offset + behind
        if "length" in tensors:
            tokens = torch.where(real(tensors)[..., None], tokens, h[:, start : start + tokens.shape[1]])
        # A scatter keeps the length as it is also for a tracer, to which pieces put together have a length of their own.
        return h.slice_scatter(tokens, dim=1, start=start, end=start + tokens.shape[1])

    def stacked(self, sets: Sequence[Tensors], variant: str) -> dict[str, torch.Tensor]:
        lengths = [tensors["tokens"].shape[0] for tensors in sets]
        padded = [F.pad(tensors["tokens"], (0, 0, 0, max(lengths) - length)) for tensors, length in zip(sets, lengths, strict=True)]
        others = {name: torch.stack([tensors[name] for tensors in sets]) for name in sets[0] if name != "tokens"}
        return {"tokens": torch.stack(padded), **others, "length": torch.tensor(lengths)}

    def mix(self, left: Tensors, right: Tensors, variant: str) -> dict[str, torch.Tensor]:
        """Both prompts side by side. This is not the sum of two effects."""
        if variant:
            raise self.no("be mixed where both replace the same token")
        return {"tokens": torch.cat([left["tokens"], right["tokens"]], dim=0)}

    def _check(self, port: Any, variant: str) -> None:
        if variant and not port.offset:
            raise self.no(f"replace a token at {port.site}: the stream has no token of its own before its prompts")

    def _tokens(self, tensors: Tensors, h: torch.Tensor) -> torch.Tensor:
        return tensors["tokens"].to(h.dtype).expand(h.shape[0], -1, -1)  # (batch, P, width)

    def _replaced(self, tensors: Tensors, h: torch.Tensor, offset: int) -> torch.Tensor:
        """h with the token at `offset` - 1 replaced, where the edit does that."""
        if "first" not in tensors:
            return h
        token = h[:, offset - 1 : offset]  # (batch, 1, width)
        token = token * along(tensors["keep"], token, -1).to(h.dtype) + along(tensors["first"], token, -1).to(h.dtype)
        return torch.cat([h[:, : offset - 1], token, h[:, offset:]], dim=1)


def real(tensors: Tensors) -> torch.Tensor:
    """Which tokens of each row's prompt are no padding, bool [batch, P]."""
    return real_places(tensors["length"], tensors["tokens"].shape[-2])


def padded_in_front(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The rows' prompts with their padding in front of them, so that the last token of each stands next to the sequence."""
    tokens = tensors["tokens"]  # (batch, P, width)
    longest = tokens.shape[1]
    # Padding repeats the first token, which nobody sees. (Moving it round by a remainder would divide by 0 where no row has a prompt.)
    places = (torch.arange(longest, device=tokens.device) - (longest - tensors["length"][:, None])).clamp_min(0)  # (batch, P)
    return {**tensors, "tokens": tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2]))}
