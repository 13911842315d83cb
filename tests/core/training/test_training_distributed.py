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


def test_two_processes_equal_one(tmp_path: Path, job: ModuleType) -> None:
    """29 examples in batches of 7: shares of 4 and 3, and a last batch of one example that leaves a process without any."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*command, str(JOB), str(tmp_path), "--batch-size", "7", "--dropout", "0"], env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    both = Artifact.load(tmp_path / "artifact")
    alone = job.train(None, dropout=0.0, batch_size=7)
    assert both.provenance["steps"] == alone.provenance["steps"] == 15
    for name, value in alone.slots.items():
        # Sums in another order: float32 noise through 15 steps of AdamW.
        torch.testing.assert_close(both.slots[name], value, rtol=1e-5, atol=2e-6, msg=name)
    assert abs(both.provenance["metrics"]["validation"]["loss"] - alone.provenance["metrics"]["validation"]["loss"]) < 1e-6
