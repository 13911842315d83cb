"""Listings stay light: no torch, no numpy, and a few times the processor time of what they cannot do without."""

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

YARDSTICK = "import pydantic, click, pluggy, rich.table"
"""The libraries that every listing takes. Budgets are multiples of this, so that a slow machine is not what fails."""

CASES = [
    ("import polyadapt", [], 0.75),
    ("from polyadapt.cli import main; main()", ["polyadapt", "--help"], 3.5),
    ("from polyadapt.cli import main; main()", ["polyadapt", "methods"], 4.5),
    ("from polyadapt.cli import main; main()", ["polyadapt", "methods", "--json", "--domain", "text"], 4.5),
    ("from polyadapt.cli import main; main()", ["polyadapt", "plugins"], 4.5),
    ("from polyadapt.cli import main; main()", ["polyadapt", "models"], 4.5),
    ("from polyadapt.cli import main; main()", ["polyadapt", "families"], 4.5),
    ("from polyadapt.cli import main; main()", ["polyadapt", "readers"], 4.5),
    ("from polyadapt.cli import main; main()", ["polyadapt", "show", "lora"], 4.5),
    ("from polyadapt.cli import main; main()", ["polyadapt", "run", "--help"], 1.5),
]


def probe(body: str, arguments: list[str]) -> tuple[set[str], float]:
    """Top-level modules that a fresh process imported, and its seconds of processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", PROBE.format(body=body), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": ""})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return set(json.loads(done.stderr.rpartition("\n")[2])), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(("body", "arguments", "budget"), CASES, ids=lambda value: "-".join(value) if isinstance(value, list) else None)
def test_nothing_heavy_is_imported_and_the_time_budget_is_kept(body: str, arguments: list[str], budget: float) -> None:
    modules, _ = probe(body, arguments)  # the first run also writes bytecode
    assert "polyadapt" in modules
    assert not modules & HEAVY
    taken_s, yardstick_s = float("inf"), float("inf")
    # Processor time, side by side, and the best of a few runs: other load on the machine is not what is tested.
    for _ in range(5):
        yardstick_s = min(yardstick_s, probe(YARDSTICK, [])[1])
        taken_s = min(taken_s, probe(body, arguments)[1])
        if taken_s <= budget * yardstick_s:
            break
    assert taken_s <= budget * yardstick_s, f"{taken_s / yardstick_s:.2f} times the yardstick"
