"""`bottleneck`: h + act(u down + down_bias) up + up_bias, with down [d, r] and up [r, out].

Variant `{parallel|sequential}-{relu|gelu|silu|tanh|none}[-norm]`: parallel reads u = x, the span's
input; sequential reads u = h, its output. `-norm` brings u to mean 0 and variance 1 per token first (a trained
norm's own weight and bias are folded into `down` and `down_bias`). Scales are folded into `up` and `up_bias`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from polyadapt.edits.kinds.kind import Kind, Tensors, along, normal, product
from polyadapt.errors import UserError

if TYPE_CHECKING:
    from polyadapt.edits.edit import Edit

NORM_EPSILON = 1e-5
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "tanh": torch.tanh, "none": lambda u: u}


class Bottleneck(Kind):
    """A small two-layer network beside or behind a span."""

    name = "bottleneck"
    port = "span"
    order = 3
    variants = tuple(f"{side}-{act}{norm}" for side in ("parallel", "sequential") for act in ACTIVATIONS for norm in ("", "-norm"))

    def shapes(self, port: Any, variant: str = "") -> dict[str, tuple[int | str, ...]]:
        return {"down": (self._width(port, variant), "r"), "down_bias": ("r",), "up": ("r", port.out_features), "up_bias": (port.out_features,)}

    def identity(self, port: Any, variant: str = "") -> dict[str, torch.Tensor]:
        n_in, n_out = self._width(port, variant), port.out_features
        return {"down": torch.zeros(n_in, 0), "down_bias": torch.zeros(0), "up": torch.zeros(0, n_out), "up_bias": torch.zeros(n_out)}

    def example(self, port: Any, variant: str, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        n_in, n_out = self._width(port, variant), port.out_features
        return {
            "down": normal((n_in, size), n_in**-0.5, generator),
            "down_bias": normal((size,), 0.3, generator),
            "up": normal((size, n_out), 0.3 * size**-0.5, generator),
            "up_bias": normal((n_out,), 0.1, generator),
        }

    def apply(self, edit: Edit, x: torch.Tensor, h: torch.Tensor, port: Any) -> torch.Tensor:
        side, activation, norm = parse_variant(edit.variant)
        u = _features_last(x if side == "parallel" else h, port.channel_dim)  # (…, d)
        if norm:
            u = F.layer_norm(u, u.shape[-1:], eps=NORM_EPSILON)
        inner = ACTIVATIONS[activation](product(u, edit.tensors["down"]) + along(edit.tensors["down_bias"], u, -1))  # (…, r)
        added = product(inner, edit.tensors["up"])  # (…, out)
        if port.channel_dim == 1:
            added = added.movedim(-1, 1)
        return h + added + along(edit.tensors["up_bias"], h, port.channel_dim)

    def scaled(self, tensors: Tensors, variant: str, weight: float) -> dict[str, torch.Tensor]:
        return {**tensors, "up": tensors["up"] * weight, "up_bias": tensors["up_bias"] * weight}

    def mix(self, left: Tensors, right: Tensors, variant: str) -> dict[str, torch.Tensor]:
        if not variant.startswith("parallel"):
            raise self.no("be mixed when sequential: the second would read what the first has changed")
        joined = {name: torch.cat([left[name], right[name]], dim=dim) for name, dim in (("down", 1), ("down_bias", 0), ("up", 0))}
        return {**joined, "up_bias": left["up_bias"] + right["up_bias"]}

    def length(self, tensors: Tensors) -> int:
        return tensors["down_bias"].shape[0]

    def pad(self, tensors: Tensors, variant: str, size: int) -> dict[str, torch.Tensor]:
        missing = size - tensors["down_bias"].shape[0]
        # Zero rows of `up` silence whatever the activation makes of the padding.
        return {
            "down": F.pad(tensors["down"], (0, missing)),
            "down_bias": F.pad(tensors["down_bias"], (0, missing)),
            "up": F.pad(tensors["up"], (0, 0, 0, missing)),
            "up_bias": tensors["up_bias"],
        }

    def _width(self, port: Any, variant: str) -> int:
        return int(port.in_features if variant.startswith("parallel") else port.out_features)


def _features_last(u: torch.Tensor, channel_dim: int) -> torch.Tensor:
    """u [batch, features, …] as [batch, …, features]; as it is where its features are last."""
    return u.movedim(1, -1) if channel_dim == 1 else u


def parse_variant(variant: str) -> tuple[str, str, bool]:
    """(side, activation, norm) of a variant.

    Raises:
        UserError: it is not one of the known variants.
    """
    parts = variant.split("-")
    if variant not in Bottleneck.variants:
        raise UserError(f"bottleneck has no variant {variant!r}; it has {{parallel|sequential}}-{{{'|'.join(ACTIVATIONS)}}}[-norm]")
    return parts[0], parts[1], len(parts) == 3
