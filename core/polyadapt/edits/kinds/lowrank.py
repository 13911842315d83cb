"""`lowrank`: h + (x a) b, with a [in, r] and b [r, out], input-major for every op; the scale is folded into b.

Linear:       in = features.                 h + (x @ a) @ b
Convolution:  in = channels/groups * kernel.  The same product, reshaped to the kernel of a convolution.
Embedding:    in = vocabulary.                h + a[ids] @ b
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from polyadapt.edits.kinds.kind import Kind, Tensors, normal, product
from polyadapt.errors import UserError

if TYPE_CHECKING:
    from polyadapt.edits.edit import Edit


class LowRank(Kind):
    """A product of two thin factors beside an op."""

    name = "lowrank"
    order = 0
    folds = True

    def shapes(self, port: Any, variant: str = "") -> dict[str, tuple[int | str, ...]]:
        if port.kind == "norm":
            raise UserError(f"edits of kind 'lowrank' fit linear layers, convolutions and embeddings, and {port.site} is a norm; choose other sites")
        return {"a": (port.in_features, "r"), "b": ("r", port.out_features)}

    def identity(self, port: Any, variant: str = "") -> dict[str, torch.Tensor]:
        # Rank 0 is nothing to compute; but of a convolution over no channels cuDNN makes an error, and onnxruntime's build for the web leaves its output unwritten.
        rank = 0 if port.kind in ("linear", "embedding") else 1
        return {"a": torch.zeros(port.in_features, rank), "b": torch.zeros(rank, port.out_features)}

    def example(self, port: Any, variant: str, size: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        fan_in = 1 if port.kind == "embedding" else port.in_features
        return {"a": normal((port.in_features, size), fan_in**-0.5, generator), "b": normal((size, port.out_features), 0.3 * size**-0.5, generator)}

    def apply(self, edit: Edit, x: torch.Tensor, h: torch.Tensor, port: Any) -> torch.Tensor:
        a, b = edit.tensors["a"], edit.tensors["b"]
        if port.kind == "linear":
            return h + product(product(x, a), b)  # (…, in) -> (…, r) -> (…, out)
        if port.kind == "embedding":
            return h + product(looked_up(x, a), b)
        if a.dim() == 3:
            return h + convolve_rows(port.module, x, a, b)
        # torch runs no convolution without channels either, so rank 0 ends here.
        return h + convolve(port.module, x, a, b) if a.shape[1] else h

    def scaled(self, tensors: Tensors, variant: str, weight: float) -> dict[str, torch.Tensor]:
        return {"a": tensors["a"], "b": tensors["b"] * weight}

    def mix(self, left: Tensors, right: Tensors, variant: str) -> dict[str, torch.Tensor]:
        return {"a": torch.cat([left["a"], right["a"]], dim=-1), "b": torch.cat([left["b"], right["b"]], dim=-2)}

    def length(self, tensors: Tensors) -> int:
        return tensors["a"].shape[1]

    def pad(self, tensors: Tensors, variant: str, size: int) -> dict[str, torch.Tensor]:
        missing = size - tensors["a"].shape[1]
        return {"a": F.pad(tensors["a"], (0, missing)), "b": F.pad(tensors["b"], (0, 0, 0, missing))}

    def widened(self, tensors: Tensors, variant: str, start: int, size: int) -> dict[str, torch.Tensor]:
        return {"a": tensors["a"], "b": F.pad(tensors["b"], (start, size - start - tensors["b"].shape[-1]))}  # (…, r, size)

    def fold(self, tensors: Tensors, variant: str, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        delta = (tensors["a"].to(weight.dtype) @ tensors["b"].to(weight.dtype)).T  # (out, in)
        return weight + delta.reshape(weight.shape), bias


def convolve(module: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The low-rank convolution beside `module`: r channels with its kernel, then 1x1 to the outputs.

    With groups the product itself is the kernel: the two-step form would mix the groups.
    """
    function: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(module.kernel_size)]
    x, padding = padded(module, x)
    kernel = tuple(module.kernel_size)
    if module.groups != 1:
        full = (a @ b).T.reshape(b.shape[1], module.in_channels // module.groups, *kernel)  # (out, in/groups, k…)
        grouped: torch.Tensor = function(x, full, None, module.stride, padding, module.dilation, module.groups)
        return grouped
    # The channels come from the module: taken from a traced tensor, the legacy exporter would not know the kernel's size.
    down = a.T.reshape(a.shape[1], module.in_channels, *kernel)  # (r, in, k…)
    up = b.T[(..., *[None] * len(kernel))]  # (out, r, 1…)
    result: torch.Tensor = function(function(x, down, None, module.stride, padding, module.dilation), up)
    return result


def looked_up(ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Entries of a table [vocabulary, r], or of one for each row [batch, vocabulary, r], for ids [batch, …]."""
    if table.dim() == 2:
        return F.embedding(ids, table)
    rows = torch.arange(table.shape[0], device=ids.device)[:, *[None] * (ids.dim() - 1)]  # (batch, 1…)
    return F.embedding(ids + rows * table.shape[1], table.flatten(0, 1))


def convolve_rows(module: Any, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The low-rank convolution with factors for each row: a [batch, in, r], b [batch, r, out].

    A convolution has one kernel for the whole batch, so the patches that it sees are laid out (by one-hot kernels) and
    multiplied row by row.
    """
    function: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(module.kernel_size)]
    x, padding = padded(module, x)
    kernel, groups = tuple(module.kernel_size), module.groups
    taps = math.prod(kernel)
    if taps > 1 or max(module.stride) > 1:
        one_hot = torch.eye(taps, dtype=x.dtype, device=x.device).reshape(taps, 1, *kernel).repeat(module.in_channels, *[1] * (len(kernel) + 1))
        x = function(x, one_hot, None, module.stride, padding, module.dilation, module.in_channels)  # (batch, channels * taps, places…)
    places = x.shape[2:]
    patches = x.reshape(x.shape[0], groups, a.shape[1], -1).transpose(2, 3)  # (batch, groups, places, in)
    up = b.reshape(*b.shape[:2], groups, b.shape[2] // groups).transpose(1, 2)  # (batch, groups, r, out / groups)
    changed = patches @ a.unsqueeze(1) @ up  # (batch, groups, places, out / groups)
    return changed.transpose(2, 3).reshape(x.shape[0], b.shape[2], *places)  # (batch, out, places…)


def padded(module: Any, x: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Input and padding argument of a convolution whose class pads in a way of its own."""
    if type(module).__name__ == "Conv2dSame":
        from timm.layers import pad_same

        return pad_same(x, list(module.kernel_size), list(module.stride), list(module.dilation)), 0
    if module.padding_mode != "zeros":
        return F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode), 0
    return x, module.padding
