"""The base's own parameters as sites, and differences that are switched into them and out again.

A parameter of an op is `(site, "weight")` or `(site, "bias")`, in row slices where a projection is fused;
every other parameter (class tokens, position tables) is `other.<name>`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from polyadapt.edits.edit import Edit
from polyadapt.errors import UserError, nearest
from polyadapt.sites import OpPort, Ports


@dataclass(frozen=True)
class ParameterSlice:
    """One parameter of the base, or the rows of it that a site owns."""

    site: str
    tensor: str
    parameter: nn.Parameter
    rows: tuple[int, int] | None
    dim: int

    def view(self) -> torch.Tensor:
        """The values, sharing memory with the parameter."""
        data = self.parameter.data
        return data if self.rows is None else data.narrow(self.dim, self.rows[0], self.rows[1] - self.rows[0])


class BaseParameters:
    """All parameters of a backbone by site, with the memory of what was changed."""

    def __init__(self, backbone: nn.Module, ports: Ports) -> None:
        self.slices = {(part.site, part.tensor): part for part in parameter_slices(backbone, ports)}
        self._originals: dict[int, dict[int, tuple[nn.Parameter, torch.Tensor]]] = {}
        self._order: list[int] = []

    def add(self, edits: Iterable[Edit], owner: object) -> None:
        """Add the differences of `patch` edits to the parameters; `restore` brings the old bits back.

        Raises:
            UserError: an edit that does not fit; no parameter was changed.
        """
        changes = self.fitting(edits)
        saved = {id(part.parameter): (part.parameter, part.parameter.data.clone()) for part, _ in changes}
        for part, difference in changes:
            view = part.view()
            view.add_(difference.to(view.device, view.dtype))
        if saved:
            self._originals[id(owner)] = saved
            self._order.append(id(owner))

    def fitting(self, edits: Iterable[Edit]) -> list[tuple[ParameterSlice, torch.Tensor]]:
        """Every slice that `patch` edits change, with its difference.

        Raises:
            UserError: a parameter that does not exist, or a difference of another shape.
        """
        found = []
        for edit in edits:
            for tensor, difference in edit.tensors.items():
                part = self.slice(edit.site, tensor)
                shape = part.view().shape
                if shape != difference.shape:
                    raise UserError(f"{edit.key}.{tensor}: expected shape {tuple(shape)}, found {tuple(difference.shape)}")
                found.append((part, difference))
        return found

    def restore(self, owner: object) -> None:
        """Undo what `add` did for this owner.

        Raises:
            UserError: another patch was switched on later and still is.
        """
        if id(owner) not in self._originals:
            return
        if self._order[-1] != id(owner):
            raise UserError("patches are switched off in the opposite order of switching on; switch the later one off first")
        self._order.pop()
        saved = self._originals.pop(id(owner))
        for parameter, values in saved.values():
            parameter.data.copy_(values)

    def slice(self, site: str, tensor: str) -> ParameterSlice:
        """The slice at one site.

        Raises:
            UserError: there is none.
        """
        if (site, tensor) not in self.slices:
            raise UserError(f"no parameter {tensor!r} at site {site!r}{nearest(site, {name for name, _ in self.slices})}")
        return self.slices[(site, tensor)]


def parameter_slices(backbone: nn.Module, ports: Ports) -> list[ParameterSlice]:
    """Every parameter of a backbone exactly once: by site where an op owns it, else as `other.<name>`."""
    found: list[ParameterSlice] = []
    covered: set[int] = set()
    for port in ports.ops.values():
        for tensor in ("weight", "bias"):
            parameter = dict(port.module.named_parameters(recurse=False)).get(tensor)
            if parameter is None or (port.rows is None and id(parameter) in covered):
                continue
            found.append(ParameterSlice(port.site, tensor, parameter, port.rows, _row_dim(port, tensor)))
            covered.add(id(parameter))
    for name, parameter in backbone.named_parameters():
        if id(parameter) not in covered:
            found.append(ParameterSlice(f"other.{name}", "weight", parameter, None, 0))
    return found


def _row_dim(port: OpPort, tensor: str) -> int:
    return 1 if port.transposed and tensor == "weight" else 0
