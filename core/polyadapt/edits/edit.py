"""One edit, and the names of its tensors as slots: `{site}:{kind}[~variant].{tensor}`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from polyadapt.errors import UserError


@dataclass(frozen=True)
class Edit:
    """A change at one site.

    Attributes:
        site: canonical place.
        kind: a name of the closed list.
        tensors: what the kind's functions take, by name.
        variant: fixed structure within the kind (such as `parallel-gelu`), empty for the usual one.
        dropout: probability with which inputs are dropped while training.
        structure: for kind `module`, the live module whose state `tensors` are; rebuilt by its method, never from a file.
    """

    site: str
    kind: str
    tensors: Mapping[str, torch.Tensor]
    variant: str = ""
    dropout: float = 0.0
    structure: nn.Module | None = None

    @property
    def key(self) -> str:
        """`site:kind[~variant]`: edits with equal keys share a group of slots."""
        return group_name(self.site, self.kind, self.variant)


def group_name(site: str, kind: str, variant: str = "") -> str:
    """Name of a group of slots."""
    return f"{site}:{kind}~{variant}" if variant else f"{site}:{kind}"


def slot_name(site: str, kind: str, variant: str, tensor: str) -> str:
    """Name of one slot."""
    return f"{group_name(site, kind, variant)}.{tensor}"


def parse_slot(name: str) -> tuple[str, str, str, str]:
    """(site, kind, variant, tensor) of a slot's name.

    Raises:
        UserError: the name does not have that form.
    """
    site, colon, rest = name.partition(":")
    group, dot, tensor = rest.rpartition(".")
    if not (site and colon and group and dot and tensor):
        raise UserError(f"{name!r} is not a slot name; expected site:kind.tensor, such as block.0.attn.q:lowrank.a")
    kind, _, variant = group.partition("~")
    return site, kind, variant, tensor


def slots_of(edits: Iterable[Edit]) -> dict[str, torch.Tensor]:
    """All tensors of edits by slot name.

    Raises:
        UserError: two edits claim one group of slots.
    """
    chosen = list(edits)
    refuse_repeated(chosen)
    return {slot_name(edit.site, edit.kind, edit.variant, tensor): value for edit in chosen for tensor, value in edit.tensors.items()}


def refuse_repeated(edits: Iterable[Edit]) -> None:
    """Refuse two edits of one key: both would apply, and an artifact can hold but one of them.

    Raises:
        UserError: two edits claim one group of slots.
    """
    seen: set[str] = set()
    for edit in edits:
        if edit.key in seen:
            raise UserError(f"two edits claim {edit.key}; combine them first")
        seen.add(edit.key)


def in_dtype_of(edit: Edit, h: torch.Tensor) -> Edit:
    """An edit with its floating-point tensors in the dtype of an activation: adapters train in float32 beside a base in bfloat16.

    Under autocast torch chooses the dtypes itself, and the edit stays as it is. So does one with a module of its own, which
    counts in its own dtype: of a copy of its buffers nobody would see what training writes into them.
    """
    if edit.structure is not None:
        return edit
    others = [name for name, value in edit.tensors.items() if value.is_floating_point() and value.dtype != h.dtype]
    if not others or not h.is_floating_point() or torch.is_autocast_enabled(h.device.type):
        return edit
    return replace(edit, tensors={**edit.tensors, **{name: edit.tensors[name].to(h.dtype) for name in others}})


def edits_from_slots(slots: Mapping[str, torch.Tensor]) -> list[Edit]:
    """The inverse of `slots_of`, in order of first appearance."""
    groups: dict[tuple[str, str, str], dict[str, torch.Tensor]] = {}
    for name, value in slots.items():
        site, kind, variant, tensor = parse_slot(name)
        groups.setdefault((site, kind, variant), {})[tensor] = value
    return [Edit(site, kind, tensors, variant) for (site, kind, variant), tensors in groups.items()]
