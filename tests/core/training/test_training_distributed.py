"""Two processes give what one gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch

from polyadapt.artifact import Artifact

JOB = Path(__file__).with_name("job_policy.py")


def launched(*program: str) -> subprocess.CompletedProcess[str]:
    """A program in two processes of this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    return subprocess.run([*command, *program], env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"}, capture_output=True, text=True, timeout=120, check=False)


SUMS = """
import sys
import torch
import torch.distributed
from polyadapt.training.processes import find_processes
processes = find_processes("cpu", "no")
both, one, none = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
both.grad = torch.tensor([1.0, 2.0]) * (processes.rank + 1)
one.grad = torch.tensor([5.0, 7.0]) if processes.rank == 1 else None
processes.sum_gradients([both, one, none])
assert both.grad.tolist() == [3.0, 6.0] and one.grad.tolist() == [5.0, 7.0], (both.grad, one.grad)
assert none.grad is None, "an optimiser would move it by its momentum"
print("summed")
torch.distributed.destroy_process_group()  # a process that leaves its threads to the interpreter's end may abort there
"""


def test_what_has_no_gradient_anywhere_gets_none(tmp_path: Path) -> None:
    """As in one process: a language that does not speak in a step keeps its row and its moments."""
    script = tmp_path / "sums.py"
    script.write_text(SUMS, encoding="utf-8")
    done = launched(str(script))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("summed") == 2


def test_two_processes_equal_one(tmp_path: Path, job: ModuleType) -> None:
    """29 examples in batches of 7: shares of 4 and 3, and a last batch of one example that leaves a process without any."""
    done = launched(str(JOB), str(tmp_path), "--batch-size", "7", "--dropout", "0")
    assert done.returncode == 0, done.stderr[-2000:]
    both = Artifact.load(tmp_path / "artifact")
    alone = job.train(None, dropout=0.0, batch_size=7)
    assert both.provenance["steps"] == alone.provenance["steps"] == 15
    for name, value in alone.slots.items():
        # Sums in another order: float32 noise through 15 steps of AdamW.
        torch.testing.assert_close(both.slots[name], value, rtol=1e-5, atol=2e-6, msg=name)
    assert abs(both.provenance["metrics"]["validation"]["loss"] - alone.provenance["metrics"]["validation"]["loss"]) < 1e-6
