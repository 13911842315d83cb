"""Folding edits into the base's weights, in float32, with a way back.

What a kind folds becomes a change of weight and bias; what it cannot fold is returned and stays an extra
operation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from polyadapt.edits.edit import Edit
from polyadapt.edits.kinds import kind_of
from polyadapt.errors import UserError
from polyadapt.sites import OpPort, Ports


def can_fold(edit: Edit, ports: Ports) -> str:
    """Why an edit cannot be folded; empty when it can."""
    kind = kind_of(edit.kind)
    if not kind.folds:
        return f"{edit.kind} is not linear in the op's weights"
    if edit.kind == "patch":
        return ""
    port = ports.ops[edit.site]
    if port.parametrised:
        return "its weight is parametrised"
    if port.tied:
        return "its weight is shared with another module"
    if edit.kind == "shift" and not _takes_bias(port):
        return "its op has no place for a bias"
    if edit.kind == "scale" and port.kind == "norm" and edit.variant == "input":
        return "a norm undoes scales of its input"
    if edit.kind == "scale" and edit.variant == "input" and (port.kind == "embedding" or getattr(port.module, "groups", 1) != 1):
        return "its op does not see its input channels one by one"
    return ""


def fold(ports: Ports, edits: Iterable[Edit], untie: bool = False) -> tuple[list[Edit], list[tuple[nn.Module, str, nn.Parameter | None, nn.Parameter | None]]]:
    """Fold edits into the modules' parameters.

    Args:
        ports: of the backbone that is changed.
        edits: lowered edits; patches are left to whoever switches them in.
        untie: give a shared weight a copy of its own at the edited module instead of leaving the edit over.

    Returns:
        The edits that remain, and (module, parameter's name, old, new) of every replaced parameter.
    """
    remaining: list[Edit] = []
    by_module: dict[int, list[tuple[OpPort, Edit]]] = {}
    blocked: set[str] = set()
    for edit in sorted(edits, key=lambda edit: kind_of(edit.kind).order):
        why = can_fold(edit, ports)
        if (why and not (untie and "shared" in why)) or edit.kind == "patch" or edit.site in blocked:
            # An edit behind one that stays cannot slip in front of it.
            remaining.append(edit)
            blocked.add(edit.site)
            continue
        port = ports.ops[edit.site]
        by_module.setdefault(id(port.module), []).append((port, edit))
    replaced: list[tuple[nn.Module, str, nn.Parameter | None, nn.Parameter | None]] = []
    for work in by_module.values():
        replaced.extend(_fold_module(work))
    return remaining, replaced


@contextlib.contextmanager
def folded(ports: Ports, edits: Iterable[Edit]) -> Iterator[list[Edit]]:
    """Fold within a block; yields the edits that remain. The parameters are put back bit for bit."""
    remaining, replaced = fold(ports, edits)
    try:
        yield remaining
    finally:
        for module, name, old, _ in replaced:
            setattr(module, name, old)


def merge(ports: Ports, edits: Iterable[Edit], untie: bool = False) -> None:
    """Fold edits for good.

    Raises:
        UserError: an edit cannot be folded; nothing was changed.
    """
    chosen = list(edits)
    for edit in chosen:
        why = can_fold(edit, ports)
        if why and not (untie and "shared" in why):
            advice = "; pass untie=True to give it a weight of its own" if "shared" in why else "; keep it attached, or export it as `slots`"
            raise UserError(f"cannot merge {edit.key}: {why}{advice}")
    if any(edit.kind == "patch" for edit in chosen):
        raise UserError("patches are merged by leaving them switched on; attach the artifact instead")
    fold(ports, chosen, untie)


def _fold_module(work: list[tuple[OpPort, Edit]]) -> list[tuple[nn.Module, str, nn.Parameter | None, nn.Parameter | None]]:
    module: Any = work[0][0].module
    old_weight, old_bias = module.weight, getattr(module, "bias", None)
    weight, bias = canonical(work[0][0])
    for port, edit in work:
        start, stop = port.rows or (0, weight.shape[0])
        result = kind_of(edit.kind).fold(edit.tensors, edit.variant, weight[start:stop], bias[start:stop])
        assert result is not None, edit.key
        weight = torch.cat([weight[:start], result[0], weight[stop:]])
        bias = torch.cat([bias[:start], result[1], bias[stop:]])
    replaced: list[tuple[nn.Module, str, nn.Parameter | None, nn.Parameter | None]] = []
    turned = weight.T if _is_turned(work[0][0]) else weight
    new_weight = nn.Parameter(turned.reshape(old_weight.shape).to(old_weight.dtype).contiguous(), requires_grad=old_weight.requires_grad)
    replaced.append((module, "weight", old_weight, new_weight))
    module.weight = new_weight
    if old_bias is not None or bool((bias != 0).any()):
        new_bias = nn.Parameter(bias.to(old_weight.dtype), requires_grad=old_weight.requires_grad)
        replaced.append((module, "bias", old_bias, new_bias))
        module.bias = new_bias
    return replaced


def canonical(port: OpPort) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight as [out, in …] (a norm's as [out]) and bias as [out], float32 copies."""
    module: Any = port.module
    weight = module.weight.detach().to(torch.float32)
    weight = (weight.T if _is_turned(port) else weight).clone()
    bias = getattr(module, "bias", None)
    return weight, torch.zeros(weight.shape[0], device=weight.device) if bias is None else bias.detach().to(torch.float32).clone()


def _is_turned(port: OpPort) -> bool:
    return port.transposed or port.kind == "embedding"


def _takes_bias(port: OpPort) -> bool:
    return port.kind in ("linear", "conv") or getattr(port.module, "bias", None) is not None
