"""Scaled dot-product attention spelt out, for exporters that cannot decompose the fused call.

`with ExplicitAttention():` replaces every `F.scaled_dot_product_attention` by products and a softmax of
the same meaning. It is used while a graph is traced; an engine that intercepts the same call inside a
module sees it first, and what that engine calls in turn arrives here.

Meaning of the call: Vaswani et al., Attention Is All You Need, arXiv 1706.03762, section 3.2.1; masks as
documented by torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode


class ExplicitAttention(TorchFunctionMode):
    """While active, attention runs as matrix products and a softmax."""

    def __torch_function__(self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """softmax(scale * q k^T + mask) v, with the arguments and the meaning of torch's fused call.

    A row whose every key is masked gives zeros, as the fused call does; a bare softmax would give
    not-a-number, which the next layer's products would spread.

    Shape:
        query [batch, heads, n, d], key and value [batch, heads or fewer, m, d], mask broadcast to [batch, heads, n, m].
    """
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)  # (B, H, m, d)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query @ key.transpose(-2, -1)) * factor  # (B, H, n, m)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is None:
        weights = scores.softmax(-1)
    else:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        weights = scores.softmax(-1).masked_fill((scores == -math.inf).all(-1, keepdim=True), 0.0)
    return F.dropout(weights, dropout_p, training=dropout_p > 0.0) @ value  # (B, H, n, d)
