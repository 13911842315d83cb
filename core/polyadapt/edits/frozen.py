"""A base that is frozen while something is attached, and put back as it was afterwards."""

from __future__ import annotations

from torch import nn


class Frozen:
    """Freezes every parameter of a root and remembers which trained, and which modules were in training mode."""

    def __init__(self, root: nn.Module) -> None:
        self._required = {id(parameter): parameter.requires_grad for parameter in root.parameters()}
        self._modes = {id(module): module.training for module in root.modules()}
        for parameter in root.parameters():
            parameter.requires_grad_(False)

    def restore(self, root: nn.Module) -> None:
        """Put flags and modes back. Parameters and modules that came later keep their own."""
        for parameter in root.parameters():
            parameter.requires_grad_(self._required.get(id(parameter), parameter.requires_grad))
        for module in root.modules():
            module.training = self._modes.get(id(module), module.training)
