"""Banks: the edits of several artifacts stacked, of which every row of a batch chooses one set by its number.

A stacked tensor is [artifacts, …]; the rows that a batch chooses are [batch, …], which every kind's functions take.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from polyadapt.edits.edit import Edit
from polyadapt.edits.form import Form, Lowered
from polyadapt.edits.kinds import kind_of
from polyadapt.sites import Ports


def stacked_edits(ports: Ports, keys: Sequence[tuple[str, str, str]], sets: Sequence[Sequence[Edit]]) -> list[Edit]:
    """One edit for each (site, kind, variant), its tensors stacked over artifacts; an artifact without it brings the identity.

    Raises:
        UserError: a kind that rows of a batch cannot have of their own.
    """
    tables = [{(edit.site, edit.kind, edit.variant): edit.tensors for edit in edits} for edits in sets]
    made = []
    for site, name, variant in keys:
        kind = kind_of(name)
        identity = {} if kind.no_rows else kind.identity(ports.get(kind.port, site), variant)
        tensors: list[Mapping[str, torch.Tensor]] = [table.get((site, name, variant), identity) for table in tables]
        made.append(Edit(site, name, kind.stacked(tensors, variant), variant))
    return made


class Bank(Form):
    """Stacked edits as a form. Nothing applies until a batch has chosen.

    Args:
        edits: as `stacked_edits` makes them.
    """

    def __init__(self, edits: Sequence[Edit]) -> None:
        super().__init__()
        self.stacked = Lowered(edits)
        self._rows: list[Edit] = []

    def edits(self) -> list[Edit]:
        return self._rows

    @contextlib.contextmanager
    def choosing(self, artifact_id: torch.Tensor) -> Iterator[None]:
        """Within the block row i of a batch has the edits of artifact `artifact_id[i]`; they are looked up once for all sites.

        Args:
            artifact_id: int64 [batch].
        """
        self._rows = [
            replace(edit, tensors={name: value.index_select(0, artifact_id) for name, value in edit.tensors.items()})  # (batch, …)
            for edit in self.stacked.edits()
        ]
        try:
            yield
        finally:
            self._rows = []
