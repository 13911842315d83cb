"""`bottleneck`: A(u) = act(u down + down_bias) up + up_bias beside, behind or before a span; down [d, r] and up [r, out].

Variant `{place}-{relu|gelu|silu|tanh|none}[-norm]`, the places as in `place.py`: parallel reads u = x, the span's input;
sequential reads u = h, its output. `-norm` brings u to mean 0 and variance 1 per token first (a trained
norm's own weight and bias are folded into `down` and `down_bias`). Scales are folded into `up` and `up_bias`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from polyadapt.edits.kinds.kind import Kind, Tensors, along, normal, product
from polyadapt.edits.kinds.place import PARALLEL, PLACES, SKIP, has_skip, is_before, placed, reads_output
from polyadapt.errors import UserError

if TYPE_CHECKING:
    from polyadapt.edits.edit import Edit

NORM_EPSILON = 1e-5
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh, "none": lambda u: u}


class Bottleneck(Kind):
    """A small two-layer network at a span."""

    name = "bottleneck"
    port = "span"
    order = 3
    variants = tuple(f"{place}-{act}{norm}" for place in PLACES for act in ACTIVATIONS for norm in ("", "-norm"))

    def shapes(self, port: Any, variant: str = "") -> dict[str, tuple[int | str, ...]]:
        n_in, n_out = self._widths(port, variant)
        return {"down": (n_in, "r"), "down_bias": ("r",), "up": ("r", n_out), "up_bias": (n_out,)} | ({SKIP: (1,)} if has_skip(self.place(variant)) else {})

    def identity(self, port: Any, variant: str = "") -> dict[str, torch.Tensor]:
        n_in, n_out = self._widths(port, variant)
        made = {"down": torch.zeros(n_in, 0), "down_bias": torch.zeros(0), "up": torch.zeros(0, n_out), "up_bias": torch.zeros(n_out)}
        return made | ({SKIP: torch.zeros(1)} if has_skip(self.place(variant)) else {})

    def example(self, port: Any, variant: str, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        n_in, n_out = self._widths(port, variant)
        made = {
            "down": normal((n_in, size), n_in**-0.5, generator),
            "down_bias": normal((size,), 0.3, generator),
            "up": normal((size, n_out), 0.3 * size**-0.5, generator),
            "up_bias": normal((n_out,), 0.1, generator),
        }
        return made | ({SKIP: normal((1,), 0.3, generator)} if has_skip(self.place(variant)) else {})

    def place(self, variant: str) -> str:
        return parse_variant(variant)[0]

    def made(self, edit: Edit, u: torch.Tensor) -> torch.Tensor:
        _, activation, norm = parse_variant(edit.variant)
        if norm:
            u = F.layer_norm(u, u.shape[-1:], eps=NORM_EPSILON)
        inner = ACTIVATIONS[activation](product(u, edit.tensors["down"]) + along(edit.tensors["down_bias"], u, -1))  # (…, r)
        return product(inner, edit.tensors["up"]) + along(edit.tensors["up_bias"], u, -1)  # (…, out)

    def apply(self, edit: Edit, x: torch.Tensor, h: torch.Tensor, port: Any, dropout: float = 0.0) -> torch.Tensor:
        place = self.place(edit.variant)
        if port.channel_dim == 1:
            x, h = x.movedim(1, -1), h.movedim(1, -1)  # (batch, …, features)
        u = h if reads_output(place) else x  # (…, d)
        result = placed(place, u, self.made(edit, F.dropout(u, dropout)), h, edit.tensors.get(SKIP))
        return result.movedim(-1, 1) if port.channel_dim == 1 else result

    def scaled(self, tensors: Tensors, variant: str, weight: float) -> dict[str, torch.Tensor]:
        return {name: value * weight if name in ("up", "up_bias", SKIP) else value for name, value in tensors.items()}

    def mix(self, left: Tensors, right: Tensors, variant: str) -> dict[str, torch.Tensor]:
        if not variant.startswith(PARALLEL):
            raise self.no("be mixed when sequential: the second would read what the first has changed")
        joined = {name: torch.cat([left[name], right[name]], dim=dim) for name, dim in (("down", 1), ("down_bias", 0), ("up", 0))}
        return joined | {name: left[name] + right[name] for name in ("up_bias", SKIP) if name in left}

    def length(self, tensors: Tensors) -> int:
        return tensors["down_bias"].shape[0]

    def pad(self, tensors: Tensors, variant: str, size: int) -> dict[str, torch.Tensor]:
        missing = size - tensors["down_bias"].shape[0]
        # Zero rows of `up` silence whatever the activation makes of the padding.
        wider = {"down": F.pad(tensors["down"], (0, missing)), "down_bias": F.pad(tensors["down_bias"], (0, missing)), "up": F.pad(tensors["up"], (0, 0, 0, missing))}
        return {**tensors, **wider}

    def _widths(self, port: Any, variant: str) -> tuple[int, int]:
        """Widths of what the adapter reads and of what it makes."""
        place = self.place(variant)
        if is_before(place) and port.channel_dim == 1:
            raise self.no(f"stand before {port.site}, whose span lies between convolutions; use a place beside or behind it")
        return int(port.out_features if reads_output(place) else port.in_features), int(port.in_features if is_before(place) else port.out_features)


def parse_variant(variant: str) -> tuple[str, str, bool]:
    """(place, activation, norm) of a variant.

    Raises:
        UserError: it is not one of the known variants.
    """
    parts = variant.split("-")
    if variant not in Bottleneck.variants:
        raise UserError(f"bottleneck has no variant {variant!r}; it has {{{'|'.join(PLACES)}}}-{{{'|'.join(ACTIVATIONS)}}}[-norm]")
    return parts[0], parts[1], len(parts) == 3
