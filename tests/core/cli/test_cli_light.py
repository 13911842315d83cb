"""Listings stay light: no torch, no numpy, and well under a second of processor time."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "transformers", "timm", "onnxruntime", "onnx", "matplotlib", "sklearn", "PIL"}

PROBE = """
import json, sys
sys.argv = json.loads(sys.argv[1])
try:
    {body}
except SystemExit:
    pass
sys.stderr.write("\\n" + json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""

CASES = [
    ("import polyadapt", [], 0.3),
    ("from polyadapt.cli import main; main()", ["polyadapt", "--help"], 0.4),
    ("from polyadapt.cli import main; main()", ["polyadapt", "methods"], 0.6),
    ("from polyadapt.cli import main; main()", ["polyadapt", "methods", "--json", "--domain", "text"], 0.6),
    ("from polyadapt.cli import main; main()", ["polyadapt", "plugins"], 0.6),
    ("from polyadapt.cli import main; main()", ["polyadapt", "models"], 0.6),
    ("from polyadapt.cli import main; main()", ["polyadapt", "families"], 0.6),
    ("from polyadapt.cli import main; main()", ["polyadapt", "readers"], 0.6),
    ("from polyadapt.cli import main; main()", ["polyadapt", "show", "lora"], 0.6),
    ("from polyadapt.cli import main; main()", ["polyadapt", "run", "--help"], 0.4),
]


def probe(body: str, arguments: list[str]) -> tuple[set[str], float]:
    """Top-level modules that a fresh process imported, and its seconds of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", PROBE.format(body=body), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": ""})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return set(json.loads(done.stderr.rpartition("\n")[2])), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(("body", "arguments", "budget_s"), CASES, ids=lambda value: "-".join(value) if isinstance(value, list) else None)
def test_nothing_heavy_is_imported_and_the_time_budget_is_kept(body: str, arguments: list[str], budget_s: float) -> None:
    modules, taken_s = probe(body, arguments)
    assert "polyadapt" in modules
    assert not modules & HEAVY
    # Processor time, and the best of a few runs: other load on the machine is not what is tested.
    for _ in range(4):
        taken_s = min(taken_s, probe(body, arguments)[1] if taken_s > budget_s else taken_s)
    assert taken_s <= budget_s
