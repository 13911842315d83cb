"""A stage of training on the common loop: its checkpoints, its resume after a kill, its events and its Ctrl-C are those of any run.

A stage draws its own windows, so an epoch is a number of steps and not a pass over clips; the rows of a batch are drawn
speaker by speaker, from the seed and the epoch alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from polyadapt.errors import UserError
from polyadapt.files import read_json, write_json
from polyadapt.training import randomness
from polyadapt.training.batches import Batch
from polyadapt.training.checkpoint import clear_checkpoints, load_checkpoint
from polyadapt.training.drawing import SPAN, Batches, grouped_by_length
from polyadapt.training.events import Emit
from polyadapt.training.loop import Loop
from polyadapt.training.losses import Objective
from polyadapt.training.processes import Processes
from polyadapt.training.settings import TrainSettings
from polyadapt.training.work import Work

BETAS = (0.8, 0.99)  # VITS'
WEIGHT_DECAY = 0.01
EPOCH_STEPS = 250  # ours: a checkpoint is written after so many,
CPU_CHECKPOINT_STEPS = 50  # and on a CPU, where a step takes long, after so many
WARM_UP_STEPS = 2
PLAN = "plan.json"


class Stage(Protocol):
    """What a stage is to the loop.

    Attributes:
        name: in lower case, a folder's name.
        module: everything that its training changes.
        rows: names of what batches are drawn from.
        groups: rows that are drawn equally often, such as those of one speaker.
        lengths: of all rows, where a batch is filled up to its longest; None where windows of one size are cut.
        batch_size, learning_rate, gradient_clip: ours for this stage.
    """

    name: str
    module: nn.Module
    rows: Sequence[str]
    groups: Sequence[Sequence[int]]
    lengths: Sequence[int] | None
    batch_size: int
    learning_rate: float
    gradient_clip: float

    def losses(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Weighted losses of some rows, whose sum is minimised."""

    def resting(self, step: int, steps: int) -> Collection[nn.Parameter]:
        """Parameters that do not move in a step."""


@dataclass(frozen=True)
class Limits:
    """When a stage ends: after so many steps, or as many as take so many minutes. 0 minutes is no limit."""

    steps: int
    minutes: float = 0.0

    def part(self, share: float) -> Limits:
        """A share of both."""
        return Limits(max(1, round(self.steps * share)), self.minutes * share)


class _Clips:
    """Rows by name, for the loop's messages."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def __len__(self) -> int:
        return len(self._names)

    def id(self, row: int) -> str:
        return self._names[row]


class _Feed:
    """The stage's losses as outputs of a model."""

    def __init__(self, stage: Stage, device: torch.device) -> None:
        self.examples: Any = _Clips(stage.rows)
        self.epoch = 0
        self._stage, self._device = stage, device

    def groups(self, rows: Sequence[int]) -> list[Sequence[int]]:
        return [rows]

    def batch(self, rows: Sequence[int]) -> Batch:
        return Batch({"rows": torch.tensor(list(rows), device=self._device)}, {"rows": torch.ones(len(rows))}, tuple(rows))

    def forward(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        return self._stage.losses(batch.inputs["rows"])


@dataclass(frozen=True)
class Course:
    """How a stage is trained.

    Attributes:
        limits: when it ends.
        directory: of checkpoints and of the number of steps that the minutes allow.
        seed: of the batches and of every draw.
        precision: of the forward passes: no (the voice's own), bf16 or fp16.
        resume: go on from the newest checkpoint.
        decides: further values that decide the result.
        report_steps: steps between two `step` events.
    """

    limits: Limits
    directory: Path
    seed: int = 0
    precision: str = "no"
    resume: bool = False
    decides: Mapping[str, Any] = field(default_factory=dict)
    report_steps: int = 10


def run_stage(stage: Stage, course: Course, processes: Processes, emit: Emit) -> dict[str, Any]:
    """Train a stage to its end.

    Args:
        stage: on the device already.
        course: how.
        processes: the device; a stage runs in one process.
        emit: hears every event.

    Returns:
        Facts for the provenance: steps, seconds a step, the losses of the last batch.

    Raises:
        UserError: a checkpoint of other settings or limits.
        TrainingError: not a number, memory, or Ctrl-C.
    """
    if processes.count > 1:
        raise UserError("a voice's stages run in one process; start the command without a launcher")
    seed = course.seed
    with randomness.isolated(seed, processes.device):
        steps = _planned(stage, course, processes)
        sizes = {"steps": steps, "seed": seed, "batch_size": stage.batch_size, "learning_rate": stage.learning_rate, "precision": course.precision}
        work = _work(stage, _settings(stage, steps, processes.device, course), processes.device, seed, {**course.decides, "stage": stage.name, **sizes})
        loop = Loop(work, processes, emit, course.directory)
        if course.resume and (checkpoint := load_checkpoint(course.directory, work.fingerprint)) is not None:
            loop.resume(checkpoint)
        elif not course.resume:
            clear_checkpoints(course.directory)
        loop.emit("started", method=stage.name, step=loop.progress.step, steps=steps, epochs=work.settings.epochs, examples=len(stage.rows), device=str(processes.device))
        began, first = time.monotonic(), loop.progress.step
        loop.run()
        taken = (time.monotonic() - began) / max(1, loop.progress.step - first)
        with torch.no_grad():
            last = stage.losses(torch.tensor(work.batches(seed, 0)[0], device=processes.device))
    losses = {name: round(float(value), 4) for name, value in last.items()}
    return {"steps": steps, "seconds_a_step": round(taken, 4), "batch_size": stage.batch_size, "precision": course.precision, "losses": losses}


def _settings(stage: Stage, steps: int, device: torch.device, course: Course) -> TrainSettings:
    every = CPU_CHECKPOINT_STEPS if device.type == "cpu" else 0
    ends = {"epochs": math.ceil(steps / EPOCH_STEPS), "max_steps": steps, "checkpoint_every_steps": every}
    return TrainSettings(**ends, batch_size=stage.batch_size, gradient_clip=stage.gradient_clip, log_every_steps=course.report_steps, precision=course.precision)


def _work(stage: Stage, settings: TrainSettings, device: torch.device, seed: int, fingerprint: dict[str, Any]) -> Work:
    """A stage as the loop takes it."""
    steps = settings.max_steps
    return Work(
        state=lambda: dict(stage.module.state_dict()),
        load=lambda tensors: _load(stage.module, tensors),
        set_training=lambda on: None,
        parameters=[parameter for parameter in stage.module.parameters() if parameter.requires_grad],
        train=_Feed(stage, device),
        validation=None,
        objective=Objective(_total, lambda targets: len(targets["rows"])),
        settings=settings,
        learning_rate=stage.learning_rate,
        weight_decay=WEIGHT_DECAY,
        seed=seed,
        fingerprint=fingerprint,
        batches=batches_of(stage),
        resting=lambda step: stage.resting(step, steps),
        betas=BETAS,
    )


def balanced(groups: Sequence[Sequence[int]], batch_size: int) -> Batches:
    """Batches of `EPOCH_STEPS` an epoch, in which every group is as likely as any other."""

    def batches(seed: int, epoch: int) -> list[list[int]]:
        draws = np.random.default_rng([seed, epoch])
        chosen = draws.integers(0, len(groups), (EPOCH_STEPS, batch_size))
        return [[int(groups[group][int(draws.integers(len(groups[group])))]) for group in row] for row in chosen]

    return batches


def batches_of(stage: Stage) -> Batches:
    """Balanced, and of like length where batches are filled up."""
    batches = balanced(stage.groups, stage.batch_size)
    return batches if stage.lengths is None else grouped_by_length(batches, stage.lengths)


def _total(outputs: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Losses are means over a batch; the loop divides a sum by its rows."""
    return torch.stack([value.float() for value in outputs.values()]).sum() * len(targets["rows"])


def _load(module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    module.load_state_dict(dict(tensors))


def _planned(stage: Stage, course: Course, processes: Processes) -> int:
    """Steps of a stage: on resume as many as before, so that the learning rate falls as it began to."""
    path, limits = course.directory / PLAN, course.limits
    asked = [limits.steps, limits.minutes]
    if course.resume and path.is_file():
        plan = read_json(path, "plan of a stage")
        if (then := plan.get("asked", asked)) != asked:
            raise UserError(f"stage {stage.name} was begun with at most {then[0]} steps and {then[1]:g} minutes (0: any), now it is {asked[0]} and {asked[1]:g}; ask as before")
        return int(plan["steps"])
    steps = min(limits.steps, max(1, int(60 * limits.minutes / _seconds_a_step(stage, processes, course.precision)))) if limits.minutes else limits.steps
    course.directory.mkdir(parents=True, exist_ok=True)
    write_json(path, {"steps": steps, "asked": asked})
    return steps


def _seconds_a_step(stage: Stage, processes: Processes, precision: str) -> float:
    """Measured forward and backward, nothing moved; draws are put back."""
    seconds, device = list[float](), processes.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for rows in batches_of(stage)(0, 0)[: SPAN + WARM_UP_STEPS]:
            began = time.monotonic()
            with processes.autocast(precision):
                losses = stage.losses(torch.tensor(rows, device=device))
            torch.autograd.backward(torch.stack([value.float() for value in losses.values()]).sum())
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.monotonic() - began)
    for parameter in stage.module.parameters():
        parameter.grad = None
    return float(np.mean(seconds[WARM_UP_STEPS:])) * 1.1  # ours: the optimiser's share
