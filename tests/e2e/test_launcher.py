"""A recipe under torchrun: two processes train together, the first one alone writes, and the result is that of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from polyadapt.artifact import Artifact

RECIPE = """
format = 1
seed = 0
[model]
reference = "polyadapt:tiny-mlp-policy"
[data]
uri = "npz:{data}"
split = {{ by = "random", fractions = {{ train = 0.6, validation = 0.2, test = 0.2 }} }}
[train]
epochs = 2
batch_size = 8
[[arm]]
name = "lora"
method = "lora"
[evaluate]
baselines = ["mean"]
"""


def run(launcher: list[str], recipe: Path, out: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launcher, "polyadapt.cli", "run", str(recipe), "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_two_processes_give_the_result_of_one(tmp_path: Path) -> None:
    import numpy as np

    from polyadapt.families.mlp_policy.card import CARD
    from polyadapt.testing.conformance import tiny_model

    backbone = tiny_model(CARD).backbone
    size_in, size_out = backbone.sizes["observation_size"], backbone.sizes["action_size"]
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=generator.standard_normal((60, size_in)).astype("float32"), y=generator.standard_normal((60, size_out)).astype("float32"))
    recipe = tmp_path / "job.toml"
    recipe.write_text(RECIPE.format(data=tmp_path / "data.npz"))
    run([], recipe, tmp_path / "one")
    run(["torch.distributed.run", "--nproc-per-node", "2", "-m"], recipe, tmp_path / "two")
    one, two = (Artifact.load(tmp_path / name / "artifacts" / "lora") for name in ("one", "two"))
    moved = max(float(value.abs().max()) for name, value in one.slots.items() if name.endswith(".b"))
    assert moved > 1e-4
    for name, value in one.slots.items():
        assert torch.allclose(two.slots[name], value, atol=1e-5), name
    first, second = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two"))
    assert [arm["name"] for arm in first["arms"]] == [arm["name"] for arm in second["arms"]] == ["mean", "lora"]
