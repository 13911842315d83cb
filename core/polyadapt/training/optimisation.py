"""AdamW over the trainable parameters, and the learning rate of every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


def make_optimiser(parameters: Sequence[nn.Parameter], learning_rate: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.AdamW:
    """AdamW in its fastest form: fused where torch has that, else one call for all tensors."""
    can_fuse = all(parameter.is_floating_point() and parameter.device.type in ("cpu", "cuda") for parameter in parameters)
    return torch.optim.AdamW(list(parameters), lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=can_fuse or None, foreach=None if can_fuse else True)


def rate_at(step: int, steps: int, peak: float, schedule: str, warmup: float) -> float:
    """Learning rate of step `step` (from 0) of `steps`.

    It rises linearly over the first `warmup` share of the steps and then stays (constant), or falls as half a cosine
    or linearly, so that it would be 0 one step after the last.
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return peak * (step + 1) / (rising + 1)
    if schedule == "constant":
        return peak
    done = (step - rising) / max(1, steps - rising)
    return peak * (0.5 * (1.0 + math.cos(math.pi * done)) if schedule == "cosine" else 1.0 - done)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state by `index.name`, index being the parameter's place."""
    state = optimiser.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items() if isinstance(value, torch.Tensor)}


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `optimiser_tensors`."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
