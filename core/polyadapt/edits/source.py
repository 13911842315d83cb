"""What hooks ask of whoever holds the forms."""

from __future__ import annotations

from typing import Protocol

import torch

from polyadapt.edits.edit import Edit
from polyadapt.sites import Ports


class EditSource(Protocol):
    """Active edits by port.

    Attributes:
        ports: of the root that hooks stand on.
        training: whether edits drop out their inputs.
        context: tokens for `cross` edits, [batch, n, width].
    """

    ports: Ports
    training: bool
    context: torch.Tensor | None

    def edits_at(self, port: str, site: str) -> list[Edit]:
        """Active edits at one port, in the order of their kinds."""
        ...

    def saw(self, edit: Edit) -> None:
        """Note that an edit was applied."""
        ...
