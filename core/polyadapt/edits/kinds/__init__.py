"""The closed list of kinds. A new kind is a reviewed event; a new method is not."""

from __future__ import annotations

from polyadapt.edits.kinds.bottleneck import Bottleneck
from polyadapt.edits.kinds.cross import Cross
from polyadapt.edits.kinds.keys import Keys
from polyadapt.edits.kinds.kind import AttentionCall, Kind, Tensors
from polyadapt.edits.kinds.lowrank import LowRank
from polyadapt.edits.kinds.mask import Mask
from polyadapt.edits.kinds.module import Module
from polyadapt.edits.kinds.patch import Patch
from polyadapt.edits.kinds.prepend import Prepend
from polyadapt.edits.kinds.prototypes import Prototypes
from polyadapt.edits.kinds.scale import Scale
from polyadapt.edits.kinds.shift import Shift
from polyadapt.errors import unknown

KINDS: dict[str, Kind] = {kind.name: kind for kind in (Mask(), LowRank(), Scale(), Shift(), Bottleneck(), Keys(), Prepend(), Cross(), Prototypes(), Module(), Patch())}


def kind_of(name: str) -> Kind:
    """The kind of that name.

    Raises:
        UserError: it is not in the list.
    """
    if name not in KINDS:
        raise unknown("kind of edit", name, KINDS)
    return KINDS[name]


__all__ = ["KINDS", "AttentionCall", "Kind", "Tensors", "kind_of"]
