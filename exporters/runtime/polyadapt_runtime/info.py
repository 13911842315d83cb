"""What a bundle is and how it runs, as plain data: for people, logs and support."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from polyadapt_runtime.manifest import Manifest
from polyadapt_runtime.session import Session, engine
from polyadapt_runtime.slots import ArtifactInfo
from polyadapt_runtime.variants import describe as describe_variants

_KEPT = ("name", "family", "task", "base_id", "form", "licences", "versions", "parity")


def describe(manifest: Manifest, session: Session, artifacts: Mapping[str, ArtifactInfo]) -> dict[str, Any]:
    """A table of strings, numbers, lists and tables.

    `slots` counts groups of slots by kind, `versions` are those that made the bundle, `runs_with` those that run it here.
    """
    first, last = (manifest.graphs[manifest.chain[end]] for end in (0, -1))
    return {
        **{key: manifest.raw.get(key) for key in _KEPT},
        "graphs": list(manifest.chain),
        "inputs": [asdict(port) for port in first.inputs],
        "outputs": [asdict(port) for port in last.outputs],
        "conditioners": {name: str(spec.get("kind", "")) for name, spec in manifest.conditioners.items()},
        "slots": dict(sorted(Counter(manifest.slots[members[0]].kind for members in manifest.groups.values()).items())),
        "artifacts": [{"name": info.name, "method": info.method, "source": info.source, "labels": list(info.labels), "slots": len(info.slots)} for info in artifacts.values()],
        **describe_variants(manifest),
        "provider": session.provider,
        "provider_note": session.note,
        "runs_with": {"onnxruntime": engine().__version__, "numpy": np.__version__},
    }
