"""What a loop trains, and with what."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from polyadapt.errors import UserError
from polyadapt.training.batches import Feed
from polyadapt.training.drawing import Batches
from polyadapt.training.losses import Objective
from polyadapt.training.processes import Processes
from polyadapt.training.settings import TrainSettings

Resting = Callable[[int], Collection[nn.Parameter]]


@dataclass
class Work:
    """Everything about a run but its course.

    Attributes:
        state: the tensors that training changes, for checkpoints and for the best state; `load` is its inverse.
        set_training: True before training steps, False before validation.
        parameters: what the optimiser moves.
        fingerprint: what decides the result.
        batches: rows of every batch by seed and epoch.
        resting: step (from 0) -> parameters that stay as they are in it, their moments included.
        betas: of AdamW.
    """

    state: Callable[[], dict[str, torch.Tensor]]
    load: Callable[[Mapping[str, torch.Tensor]], None]
    set_training: Callable[[bool], None]
    parameters: list[nn.Parameter]
    train: Feed
    validation: Feed | None
    objective: Objective
    settings: TrainSettings
    learning_rate: float
    weight_decay: float
    seed: int
    fingerprint: dict[str, Any]
    batches: Batches
    resting: Resting = lambda step: ()
    betas: tuple[float, float] = (0.9, 0.999)


def check_work(work: Work, processes: Processes) -> None:
    """Refuse settings that cannot be kept.

    Raises:
        UserError: says which and why.
    """
    if not work.parameters:
        raise UserError("nothing would train: the form has no trainable parameter on this model; choose sites or options under which it has")
    if work.settings.early_stopping and work.validation is None:
        raise UserError("train.early_stopping looks at a validation metric, and there is no validation part; give it a share of the split, or set it to 0")
    if not work.objective.is_separable and (work.settings.accumulation > 1 or processes.count > 1):
        raise UserError("this loss compares the examples of a batch with each other: it takes one process and train.accumulation = 1; lower train.batch_size to save memory")
