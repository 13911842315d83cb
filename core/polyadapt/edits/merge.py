"""Folding edits into the base's weights, in float32 at least, with a way back.

What a kind folds becomes a change of weight and bias; what it cannot fold is returned and stays an extra
operation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from polyadapt.edits.edit import Edit
from polyadapt.edits.hooks import apply_at_op
from polyadapt.edits.kinds import kind_of
from polyadapt.errors import UserError
from polyadapt.sites import OpPort, Ports

# Of the largest value: how far a merged module may answer from the attached edits.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


def can_fold(edit: Edit, ports: Ports) -> str:
    """Why an edit cannot be folded; empty when it can."""
    kind = kind_of(edit.kind)
    if not kind.folds:
        return f"{edit.kind} is not linear in the op's weights"
    if edit.kind == "patch":
        return ""
    port = ports.ops[edit.site]
    if edit.kind == "shift":  # it leaves the weight as it is, whatever that is made of or shared with
        return "" if _takes_bias(port) else "its op has no place for a bias"
    if port.parametrised:
        return "its weight is parametrised"
    if port.tied:
        return "its weight is shared with another module"
    if edit.kind == "scale" and port.kind == "norm" and edit.variant == "input":
        return "a norm undoes scales of its input"
    if edit.kind == "scale" and edit.variant == "input" and port.rows is not None:
        return "its fused projection takes one input for several sites"
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
    """Fold edits for good, and check on seeded inputs that every changed module answers as with the edits attached.

    Raises:
        UserError: an edit cannot be folded, or the result is not what it was attached; nothing was changed.
    """
    chosen = list(edits)
    for edit in chosen:
        why = can_fold(edit, ports)
        if why and not (untie and "shared" in why):
            advice = "; pass untie=True to give it a weight of its own" if "shared" in why else "; keep it attached, or export it as `slots`"
            raise UserError(f"cannot merge {edit.key}: {why}{advice}")
    if any(edit.kind == "patch" for edit in chosen):
        raise UserError("patches are merged by Artifact.merge, which adds them to the parameters")
    with torch.no_grad():
        samples = list(_samples(ports, chosen))
        _, replaced = fold(ports, chosen, untie)
        for sample in samples:
            error = sample.error()
            if error > TOLERANCE[sample.x.dtype if sample.x.is_floating_point() else sample.expected.dtype]:
                for module, name, old, _ in replaced:
                    setattr(module, name, old)
                raise UserError(
                    f"cannot merge {sample.site}: the merged weights answer {error:.1g} away from the attached edits (values too large for their dtype?); keep it attached"
                )


@dataclass(frozen=True)
class _Sample:
    """An op's answer to a seeded input with its edits attached."""

    site: str
    module: Any
    x: torch.Tensor
    expected: torch.Tensor

    def error(self) -> float:
        """Distance of the module's present answer, relative to the largest expected value; infinite for not-a-number."""
        error = float((self.module(self.x) - self.expected).abs().max() / self.expected.abs().max().clamp_min(1e-12))
        return error if error == error else float("inf")


class _Given:
    """A fixed list of edits as hooks ask for them."""

    ports: Ports

    training = False
    context: torch.Tensor | None = None

    def __init__(self, ports: Ports, edits: list[Edit]) -> None:
        self.ports = ports
        self.sites = tuple(dict.fromkeys(edit.site for edit in edits))
        self._edits = edits

    def edits_at(self, port: str, site: str) -> list[Edit]:
        return [edit for edit in self._edits if edit.site == site]

    def saw(self, edit: Edit) -> None:
        """Nobody counts here."""


def _samples(ports: Ports, edits: Iterable[Edit]) -> Iterator[_Sample]:
    given = _Given(ports, sorted(edits, key=lambda edit: kind_of(edit.kind).order))
    by_module: dict[int, list[OpPort]] = {}
    for site in given.sites:
        by_module.setdefault(id(ports.ops[site].module), []).append(ports.ops[site])
    for sites in by_module.values():
        port = sites[0]
        if port.output is not None:
            continue  # the library fuses something behind it, so the module's own answer is another place's
        x = _sample_input(port)
        changed = x
        for edit in (edit for each in sites for edit in given.edits_at("op", each.site) if edit.variant == "input"):
            changed = kind_of("scale").apply_input(edit, changed, port)  # type: ignore[attr-defined]
        module: Any = port.module
        yield _Sample(port.site, module, x, apply_at_op(given, sites, changed, module(changed)))


def _sample_input(port: OpPort) -> torch.Tensor:
    """A small seeded input of an op."""
    module: Any = port.module
    generator = torch.Generator().manual_seed(0)
    if port.kind == "embedding":
        return torch.randint(0, module.num_embeddings, (8,), generator=generator).to(module.weight.device)
    if port.kind == "conv":
        shape = (2, module.in_channels, *((size - 1) * step + 3 for size, step in zip(module.kernel_size, module.dilation, strict=True)))
    elif port.kind == "norm" and port.is_channels_first:
        shape = (2, port.in_features, 3, 3)
    else:
        shape = (3, port.in_features)
    return torch.randn(shape, generator=generator).to(module.weight.device, module.weight.dtype)


def _fold_module(work: list[tuple[OpPort, Edit]]) -> list[tuple[nn.Module, str, nn.Parameter | None, nn.Parameter | None]]:
    module: Any = work[0][0].module
    old_weight, old_bias = module.weight, getattr(module, "bias", None)
    if all(edit.kind == "shift" for _, edit in work):
        _, bias = canonical(work[0][0])
        for port, edit in work:
            start, stop = port.rows or (0, len(bias))
            bias[start:stop] += edit.tensors["b"].to(bias)
        module.bias = nn.Parameter(bias.to(old_weight.dtype), requires_grad=old_weight.requires_grad)
        return [(module, "bias", old_bias, module.bias)]
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
    """Weight as [out, in …] (a norm's as [out]) and bias as [out]: copies in float32, or in float64 where the base is."""
    module: Any = port.module
    dtype = torch.promote_types(module.weight.dtype, torch.float32)
    weight = module.weight.detach().to(dtype)
    weight = (weight.T if _is_turned(port) else weight).clone()
    bias = getattr(module, "bias", None)
    return weight, torch.zeros(weight.shape[0], device=weight.device, dtype=dtype) if bias is None else bias.detach().to(dtype).clone()


def _is_turned(port: OpPort) -> bool:
    return port.transposed or port.kind == "embedding"


def _takes_bias(port: OpPort) -> bool:
    return port.kind in ("linear", "conv") or getattr(port.module, "bias", None) is not None
