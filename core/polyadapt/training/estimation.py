"""What a run would take, measured on two real steps: for `--dry-run`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from polyadapt.model import Model
from polyadapt.sites import tensor_bytes
from polyadapt.training.batches import HasParts, TrainingData
from polyadapt.training.events import Event
from polyadapt.training.fitting import labelled
from polyadapt.training.form import TrainPlan, refuse_attached, train_form
from polyadapt.training.processes import find_processes, moved
from polyadapt.training.reading import read_by_one
from polyadapt.training.run import Run
from polyadapt.training.settings import TrainSettings

if TYPE_CHECKING:
    from polyadapt.methods.base import Method


@dataclass(frozen=True)
class Estimate:
    """An upper bound: a cached prefix makes a run shorter, early stopping too; validation is not counted.

    Attributes:
        steps: optimiser steps of the whole run.
        seconds: of all steps, at the speed of the second one.
        memory_bytes: weights, gradients, moments and what one step keeps for its backward pass; not the libraries.
        disk_bytes: checkpoints that are kept, and the artifact.
        parameters: values that train.
    """

    steps: int
    seconds: float
    memory_bytes: int
    disk_bytes: int
    parameters: int


def estimate(model: Model, method: Method, options: Any, data: HasParts, settings: TrainSettings | None = None) -> Estimate:
    """Train two steps and throw the result away; the model is left as it was.

    Args:
        model: the base.
        method: what would train.
        options: the method's.
        data: as for `fit`.
        settings: as for `fit`.

    Raises:
        UserError: as `fit`.
        TrainingError: as `fit`.
    """
    wanted = settings or TrainSettings()
    refuse_attached(model)
    model = labelled(model, data)
    if model.task.kind == "synthesis":
        model, data, _ = read_by_one(model, TrainingData(data.train), wanted.check_readings)
    trial = TrainSettings(**{**wanted.model_dump(), "max_steps": 2, "frozen_prefix": "off", "early_stopping": 0, "log_every_steps": 1, "checkpoint_every_steps": 0})
    per_epoch = -(-len(data.train) // wanted.batch_size)
    steps = min(wanted.epochs * per_epoch, wanted.max_steps or wanted.epochs * per_epoch)
    meter = _Meter()
    processes = find_processes(trial.device, trial.precision)
    with moved(model.module, processes.device):
        weights = tensor_bytes([*model.module.parameters(), *model.module.buffers()])
        form = method.build(model, options, torch.Generator().manual_seed(wanted.seed))
        plan = TrainPlan(method.card.learning_rate, method.card.weight_decay)
        # A run of one epoch with one batch has no second step, so it is run for two epochs.
        run = Run(TrainSettings(**{**trial.model_dump(), "epochs": 2}), meter.hear)
        with torch.autograd.graph.saved_tensors_hooks(meter.pack, lambda tensor: tensor):
            result = train_form(model, form, TrainingData(data.train), run, plan)
    trained, lowered = 4 * result.parameters, tensor_bytes(value for edit in result.edits for value in edit.tensors.values())
    states = trained * (4 if wanted.early_stopping else 3)  # weights, two moments, and the best weights
    return Estimate(steps, meter.seconds * steps, weights + 4 * trained + meter.most_bytes, wanted.keep * states + lowered, result.parameters)


class _Meter:
    """Seconds of the last step, and the most that one step kept for its backward pass."""

    def __init__(self) -> None:
        self.seconds, self.most_bytes = 0.0, 0
        self._began = time.monotonic()
        self._held: dict[int, int] = {}

    def hear(self, event: Event) -> None:
        """Note the end of a step."""
        now = time.monotonic()
        if event.kind == "step":
            self.seconds = now - self._began
            self.most_bytes = max(self.most_bytes, sum(self._held.values()))
        self._began = now
        self._held.clear()

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count the memory of a tensor that autograd keeps, once for all its views; weights are counted elsewhere."""
        if not tensor.is_leaf or not tensor.requires_grad:
            storage = tensor.untyped_storage()
            self._held[storage.data_ptr()] = storage.nbytes()
        return tensor
