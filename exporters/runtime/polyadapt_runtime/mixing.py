"""Mixes of artifacts: a weighted sum of their effects, as tensors for the same slots.

The algebra is that of `polyadapt.edits.algebra`, kind by kind, in the order in which the artifacts are named:

    lowrank               ranks side by side, the weight in b           scale    product of the factors 1 + w (g - 1)
    bottleneck, parallel  widths side by side, the weight in up         shift    sum of w b
    mask                  1 + sum of w (keep - 1)
    keys, prepend         tokens side by side, with weight 1 alone. They share one softmax, so this is no sum of effects.

A scale beside another artifact's lowrank or mask at one site is refused: it would multiply what that one adds.
What two artifacts cannot share (a class head, a sequential bottleneck, a second attention, a module), one alone may hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from polyadapt_runtime.errors import ArtifactError
from polyadapt_runtime.manifest import Slot
from polyadapt_runtime.slots import products, scaled
from polyadapt_runtime.tensors import Tensors

Join = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _along(axis: int) -> Join:
    return lambda left, right: np.concatenate([left, right], axis=axis)


_JOINS: dict[str, dict[str, Join]] = {
    "lowrank": {"a": _along(1), "b": _along(0)},
    "mask": {"keep": lambda left, right: left + right - 1},
    "scale": {"g": np.multiply},
    "shift": {"b": np.add},
    "bottleneck": {"down": _along(1), "down_bias": _along(0), "up": _along(0), "up_bias": np.add, "skip": np.add},
    "keys": {"k": _along(1), "v": _along(1)},
    "prepend": {"tokens": _along(0)},
}
_REFUSED = {
    "prototypes": "each brings a class head of its own; mix artifacts of which one at the most has classes",
    "cross": "their second attentions cannot be summed in one; call them one at a time",
    "module": "their modules have fixed sizes; call them one at a time",
}


def mixed(parts: Sequence[tuple[str, float, Tensors]], slots: Mapping[str, Slot]) -> Tensors:
    """The weighted sum of several artifacts' effects.

    Args:
        parts: name, weight and tensors of each artifact, two or more.
        slots: of the bundle.

    Raises:
        ArtifactError: a kind that cannot be weighed or summed; the message says which, where and why.
    """
    total: Tensors = {}
    for index, (name, weight, tensors) in enumerate(parts):
        weighed = scaled(tensors, slots, weight, f"artifact {name!r}")
        _refuse_products(total, weighed, slots)
        shared = {slot for slot in weighed if slot in total}
        joins = {slot: _join(slots[slot], [other for other, _, _ in parts[: index + 1]]) for slot in shared}
        total |= {slot: joins[slot](total[slot], value) if slot in shared else value for slot, value in weighed.items()}
    return total


def _join(slot: Slot, names: Sequence[str]) -> Join:
    """How the tensors of one slot are put together."""
    reason = _REFUSED.get(slot.kind, "" if slot.kind in _JOINS else f"edits of kind {slot.kind!r} have no sum")
    if slot.kind == "bottleneck" and not slot.variant.startswith("parallel"):
        reason = "the second sequential bottleneck would read what the first has changed; call them one at a time"
    if slot.kind == "prepend" and slot.variant:
        reason = "both take the place of the same token; call them one at a time"
    if reason:
        raise ArtifactError(f"cannot mix {', '.join(map(repr, names))}: more than one holds {slot.group}, and {reason}")
    return _JOINS[slot.kind][slot.tensor]


def _refuse_products(left: Iterable[str], right: Iterable[str], slots: Mapping[str, Slot]) -> None:
    """The scale of one artifact would multiply what another one changes in the weights of the same op."""
    first, second = ([slots[name] for name in names] for names in (left, right))
    if clash := [*products(first, second), *products(second, first)]:
        raise ArtifactError(f"cannot mix edits of which one scales an op and another changes its weights (DoRA) at {clash[0]}: their effects do not add; call them one at a time")
