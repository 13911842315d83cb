"""The attention port: one interception of scaled-dot-product attention for every library.

While an attention module runs, a `TorchFunctionMode` sees its call of `F.scaled_dot_product_attention`
and lets edits change it. No attention class is copied or replaced, and the graph exports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from polyadapt.edits.edit import Edit, in_dtype_of
from polyadapt.edits.kinds import AttentionCall
from polyadapt.edits.kinds.cross import Cross
from polyadapt.edits.kinds.keys import Keys
from polyadapt.edits.kinds.kind import hiding
from polyadapt.errors import UserError


class AttentionInterception(TorchFunctionMode):
    """Applies edits to the attention call made while it is entered.

    Args:
        edits: what to apply, in order.
        context: tokens for `cross` edits, [batch, n, width].
        seen: called with each edit that was applied.
        shown: from the number of keys, which of them each row may look at, bool [batch, keys]; None where all are real.
    """

    def __init__(self, edits: Sequence[Edit], context: torch.Tensor | None, seen: Callable[[Edit], None], shown: Callable[[int], torch.Tensor] | None = None) -> None:
        super().__init__()
        self._edits, self._context, self._seen, self._shown = edits, context, seen, shown

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        given = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **given)
        call = read_call(args, given)
        if self._shown is not None:
            call = replace(call, mask=hiding(call.explicit_mask(), self._shown(call.key.shape[2])), is_causal=False)
        for edit in self._edits:
            if edit.kind == "keys":
                call = Keys().before(edit.tensors, call)
                self._seen(edit)
        output = run_call(func, call)
        for edit in self._edits:
            if edit.kind == "cross":
                if self._context is None:
                    raise UserError(f"the edit {edit.key} needs context tokens; pass them as `context`")
                output = Cross().after(in_dtype_of(edit, call.query).tensors, call, output, self._context)
                self._seen(edit)
        return output


def read_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AttentionCall:
    """Positional and named arguments of the torch function as one object."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return AttentionCall(
        given["query"],
        given["key"],
        given["value"],
        given.get("attn_mask"),
        float(given.get("dropout_p") or 0.0),
        bool(given.get("is_causal", False)),
        given.get("scale"),
        bool(given.get("enable_gqa", False)),
    )


def run_call(func: Any, call: AttentionCall) -> torch.Tensor:
    """The torch function itself with the (changed) arguments."""
    result: torch.Tensor = func(
        call.query, call.key, call.value, attn_mask=call.mask, dropout_p=call.dropout, is_causal=call.is_causal, scale=call.scale, enable_gqa=call.enable_gqa
    )
    return result
