"""The example for Node on a bundle without recorded cases: nothing was compared, so nothing is proved."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "node"

pytestmark = [
    pytest.mark.program("node", package="nodejs"),
    pytest.mark.skipif(not (EXAMPLE / "node_modules" / "onnxruntime-node").is_dir(), reason="onnxruntime-node is not installed; run: make web"),
]


def test_no_case_is_no_proof(kit: Any, bundle_copy: Path) -> None:
    (bundle_copy / "parity/cases.json").write_text('{"cases": []}')
    kit.seal(bundle_copy)
    done = subprocess.run([str(shutil.which("node")), EXAMPLE / "classify.mjs", bundle_copy], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines() == ["not proved: this bundle holds no recorded case"] and done.returncode == 1, done.stderr
