"""Algebra on lowered edits. It acts on effects, not on factors: the sum of two LoRAs is their concatenation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from polyadapt.edits.edit import Edit, refuse_repeated
from polyadapt.edits.kinds import kind_of
from polyadapt.errors import UserError


def scaled(edits: Iterable[Edit], weight: float) -> list[Edit]:
    """`weight` times the effect of every edit. Class heads cannot be scaled and are refused."""
    return [_with(edit, kind_of(edit.kind).scaled(edit.tensors, edit.variant, weight)) for edit in edits]


def added(left: Iterable[Edit], right: Iterable[Edit]) -> list[Edit]:
    """The sum of two sets of edits: concatenated ranks, multiplied scales, added shifts and patches.

    Raises:
        UserError: two edits of one key in one set, a kind that cannot be summed, or `scale` in one set and `lowrank` or `mask`
            in the other at one site: the scale would multiply what the other adds.
    """
    one, other = list(left), list(right)
    refuse_repeated(one)
    refuse_repeated(other)
    _refuse_products(one, other)
    first, second = {edit.key: edit for edit in one}, {edit.key: edit for edit in other}
    result = []
    for key in dict.fromkeys([*first, *second]):
        if key in first and key in second:
            edit = first[key]
            result.append(_with(edit, kind_of(edit.kind).mix(edit.tensors, second[key].tensors, edit.variant)))
        else:
            result.append(first.get(key) or second[key])
    return result


def average(sets: Sequence[Iterable[Edit]], weights: Sequence[float], rank: int | None = None) -> list[Edit]:
    """The weighted sum of several sets of edits; `rank` brings every `lowrank` back to that rank by SVD."""
    if len(sets) != len(weights) or not sets:
        raise UserError(f"average takes one weight for each set of edits: {len(sets)} sets, {len(weights)} weights")
    total = scaled(sets[0], weights[0])
    for edits, weight in zip(sets[1:], weights[1:], strict=True):
        total = added(total, scaled(edits, weight))
    return total if rank is None else [truncated(edit, rank) for edit in total]


def truncated(edit: Edit, rank: int) -> Edit:
    """A `lowrank` edit at its best approximation of a smaller rank (truncated SVD); other kinds unchanged."""
    if edit.kind != "lowrank" or edit.tensors["a"].shape[1] <= rank:
        return edit
    # The product has rank at most r, so its SVD follows from the two QR factors without ever forming [in, out].
    qa, ra = torch.linalg.qr(edit.tensors["a"].double())
    qb, rb = torch.linalg.qr(edit.tensors["b"].double().T)
    u, s, vh = torch.linalg.svd(ra @ rb.T)
    root = s[:rank].sqrt()
    a, b = qa @ u[:, :rank] * root, (root[:, None] * vh[:rank]) @ qb.T
    return _with(edit, {"a": a.to(edit.tensors["a"].dtype), "b": b.to(edit.tensors["b"].dtype)})


def _refuse_products(left: Sequence[Edit], right: Sequence[Edit]) -> None:
    """A scale at an op multiplies all that comes before it there, also what the other set brings."""
    for edits, others in ((left, right), (right, left)):
        scales = {edit.site for edit in edits if edit.kind == "scale"}
        clash = sorted(scales & {edit.site for edit in others if edit.kind in ("lowrank", "mask")})
        if clash:
            raise UserError(f"cannot add edits of which one scales an op and another changes its weights (DoRA) at {clash[0]}: their effects do not add; merge one of them first")


def _with(edit: Edit, tensors: dict[str, torch.Tensor]) -> Edit:
    return Edit(edit.site, edit.kind, tensors, edit.variant, edit.dropout, edit.structure)
