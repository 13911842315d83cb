"""The graphs of a bundle: one for most models, an encoder and a decoder for those that write from a source, and those that compute an input."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyadapt_runtime.errors import GraphError, InputError
from polyadapt_runtime.manifest import Manifest
from polyadapt_runtime.runner import Runner
from polyadapt_runtime.session import CUDA, Session


class Graphs:
    """Sessions and runners by the name of their graph, in the order in which they run. A graph that computes an input is opened at its first use.

    Raises:
        GraphError: a graph is not what the manifest describes, or a slot is in none of them.
        DeviceError: CUDA was asked for and does not run.
    """

    def __init__(self, root: Path, manifest: Manifest, device: str, threads: int | None) -> None:
        self._root, self._manifest, self._threads, self._lock = root, manifest, threads, threading.Lock()
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
        name = graph or self._manifest.chain[0]
        if name not in self._manifest.runnable:
            raise InputError(f"this bundle has no graph {name!r}; it has: {', '.join(self._manifest.runnable)}")
        return self._runner(name).run(feeds, slots)

    def _runner(self, name: str) -> Runner:
        with self._lock:
            if name not in self.runners:
                graph, device = self._manifest.graphs[name], "cuda" if self.first.provider == CUDA else "cpu"  # where the others run
                self.runners[name] = Runner(self._manifest, graph, Session(self._root / graph.file, device, self._threads))
            return self.runners[name]


def check_slots(manifest: Manifest, sessions: Mapping[str, Session]) -> None:
    """Every slot is in one graph at least.

    Raises:
        GraphError: naming those that are in none.
    """
    found = {(name, dtype) for session in sessions.values() for name, dtype in session.overridable.items()}
    if lost := [slot.name for slot in manifest.slots.values() if (slot.name, slot.dtype) not in found]:
        files = ", ".join(manifest.graphs[name].file for name in sessions)
        raise GraphError(f"{files} has no overridable initializer {', '.join(lost[:3])} of the listed dtype; export it again")
