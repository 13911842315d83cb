"""A real training job in a process of its own, small enough to be killed again and again.

python job_policy.py DIRECTORY [--kill mid-epoch checkpoint end] [--batch-size N] [--dropout P]

With `--kill`, one process for each point is forked (so that libraries are imported once), trains in DIRECTORY/POINT and
kills itself there.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from polyadapt.data.dataset import Dataset, Example
from polyadapt.families.mlp_policy.card import CARD as POLICY
from polyadapt.methods.base import load_method
from polyadapt.methods.lora.card import CARD as LORA
from polyadapt.model import Model
from polyadapt.sources.processors import array_spec, make_processor
from polyadapt.testing.conformance import tiny_model
from polyadapt.training import TrainingData, TrainSettings, fit

OBSERVATION, ACTION = 39, 4


def policy_model() -> Model:
    model = tiny_model(POLICY, "control")
    model.processor = make_processor(array_spec(model.signature))
    return model


def policy_data(size: int, seed: int) -> Dataset:
    """Actions that are a fixed linear function of the observation."""
    generator = np.random.default_rng(seed)
    observations = generator.normal(size=(size, OBSERVATION)).astype(np.float32)
    weights = np.random.default_rng(99).normal(size=(OBSERVATION, ACTION)).astype(np.float32) / 6
    rows = [Example(f"{seed}-{row}", observations[row], extra={"target": observations[row] @ weights}) for row in range(size)]
    return Dataset("policy", rows, "array")


def settings(**changes: Any) -> TrainSettings:
    """Two and a half epochs of work with a short last batch, a checkpoint every third step and one after every epoch."""
    return TrainSettings(**{"epochs": 3, "batch_size": 8, "checkpoint_every_steps": 3, "log_every_steps": 1, "early_stopping": 5, "frozen_prefix": "off", **changes})


def train(directory: Path | None, resume: bool = False, dropout: float = 0.1, emit: Any = None, **changes: Any) -> Any:
    method = load_method(LORA)
    options = method.card.options(sites=("*",), dropout=dropout)  # type: ignore[call-arg]
    data = TrainingData(policy_data(29, 1), policy_data(6, 2))
    return fit(policy_model(), method, options, data, settings(**changes), emit or (lambda event: None), directory, resume, 3)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str) -> Any:
    """A listener that kills this process at the named point, or a trap where no event is sent."""
    if point == "checkpoint":
        from polyadapt.training import checkpoint

        calls = []
        save = checkpoint.save_tensors

        def save_and_die(path: Path, tensors: Any) -> None:
            save(path, tensors)
            calls.append(path)
            if len(calls) == 8:  # the first file of the third checkpoint is there, the others are not
                kill()

        checkpoint.save_tensors = save_and_die
    return lambda event: kill() if (point, event.kind, event.get("step")) in {("mid-epoch", "step", 6), ("end", "finished", 12)} else None


def die_at(point: str, directory: Path) -> None:
    """Train in a forked process that is killed; ends this one when it was not."""
    child = os.fork()
    if child == 0:
        train(directory / point, emit=arm(point))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        sys.exit(f"the process at {point} ended with status {status} and was not killed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--kill", nargs="*", default=[])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.1)
    arguments = parser.parse_args()
    if arguments.kill:
        import torch._dynamo  # what an optimiser imports at its first use

        for point in arguments.kill:
            die_at(point, arguments.directory)
        sys.exit(0)
    artifact = train(arguments.directory, dropout=arguments.dropout, batch_size=arguments.batch_size)
    if int(os.environ.get("RANK", "0")) == 0:
        artifact.save(arguments.directory / "artifact")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        import torch.distributed

        torch.distributed.destroy_process_group()
