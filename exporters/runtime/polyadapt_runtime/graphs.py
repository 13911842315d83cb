"""The graphs of a bundle, opened: one for most models, an encoder and a decoder for those that write from a source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyadapt_runtime.errors import GraphError, InputError
from polyadapt_runtime.manifest import Manifest
from polyadapt_runtime.runner import Runner
from polyadapt_runtime.session import Session


class Graphs:
    """Sessions and runners by the name of their graph, in the order in which they run.

    Raises:
        GraphError: a graph is not what the manifest describes, or a slot is in none of them.
        DeviceError: CUDA was asked for and does not run.
    """

    def __init__(self, root: Path, manifest: Manifest, device: str, threads: int | None) -> None:
        self.sessions: dict[str, Session] = {}
        for name in manifest.chain:
            self.sessions[name] = Session(root / manifest.graphs[name].file, device, threads)
        check_slots(manifest, self.sessions)
        self.runners = {name: Runner(manifest, manifest.graphs[name], session) for name, session in self.sessions.items()}
        self.first, self.last = (self.sessions[manifest.chain[end]] for end in (0, -1))

    def run(self, feeds: Mapping[str, Any], slots: Mapping[str, Any], graph: str | None = None) -> dict[str, np.ndarray]:
        """Run one graph, by default the first.

        Raises:
            InputError: an unknown graph, or what `Runner.run` refuses.
            ArtifactError: likewise.
        """
        name = graph or next(iter(self.runners))
        if name not in self.runners:
            raise InputError(f"this bundle has no graph {name!r}; it has: {', '.join(self.runners)}")
        return self.runners[name].run(feeds, slots)


def check_slots(manifest: Manifest, sessions: Mapping[str, Session]) -> None:
    """Every slot is in one graph at least.

    Raises:
        GraphError: naming those that are in none.
    """
    found = {(name, dtype) for session in sessions.values() for name, dtype in session.overridable.items()}
    if lost := [slot.name for slot in manifest.slots.values() if (slot.name, slot.dtype) not in found]:
        files = ", ".join(manifest.graphs[name].file for name in sessions)
        raise GraphError(f"{files} has no overridable initializer {', '.join(lost[:3])} of the listed dtype; export it again")
