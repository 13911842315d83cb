"""One edit, and the names of its tensors as slots: `{site}:{kind}[~variant].{tensor}`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
    slots: dict[str, torch.Tensor] = {}
    for edit in edits:
        for tensor, value in edit.tensors.items():
            name = slot_name(edit.site, edit.kind, edit.variant, tensor)
            if name in slots:
                raise UserError(f"two edits claim {edit.key}; combine them first")
            slots[name] = value
    return slots


def edits_from_slots(slots: Mapping[str, torch.Tensor]) -> list[Edit]:
    """The inverse of `slots_of`, in order of first appearance."""
    groups: dict[tuple[str, str, str], dict[str, torch.Tensor]] = {}
    for name, value in slots.items():
        site, kind, variant, tensor = parse_slot(name)
        groups.setdefault((site, kind, variant), {})[tensor] = value
    return [Edit(site, kind, tensors, variant) for (site, kind, variant), tensors in groups.items()]
