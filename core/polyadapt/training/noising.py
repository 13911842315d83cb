"""Denoising: clean samples become noisy ones at a step of the schedule, anew in every epoch.

Paper: Denoising Diffusion Probabilistic Models (arXiv 2006.11239), equation 4; velocity: Progressive Distillation
(arXiv 2202.00512), appendix D. Defaults are Stable Diffusion's schedule (arXiv 2112.10752).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from polyadapt.errors import UserError, unknown
from polyadapt.signature import Task
from polyadapt.training.batches import Batch

SCHEDULES = ("scaled_linear", "linear")
PREDICTIONS = ("epsilon", "velocity")


class Noising:
    """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, with a_t the product of 1 - beta up to step t.

    Draws follow from (seed, epoch, row) alone, so that a resumed run and any number of processes see the same noise.

    Args:
        task: `details` may give `noise_steps`, `beta_start`, `beta_end`, `beta_schedule` (linear in beta, or in its root)
            and `prediction` (`epsilon` or `velocity`).
        seed: of the run.

    Raises:
        UserError: an unknown schedule or prediction.
    """

    def __init__(self, task: Task, seed: int) -> None:
        details: dict[str, Any] = task.details
        schedule, self._prediction = str(details.get("beta_schedule", "scaled_linear")), str(details.get("prediction", "epsilon"))
        if schedule not in SCHEDULES:
            raise unknown("noise schedule", schedule, SCHEDULES)
        if self._prediction not in PREDICTIONS:
            raise unknown("prediction", self._prediction, PREDICTIONS)
        steps, start, end = int(details.get("noise_steps", 1000)), float(details.get("beta_start", 0.00085)), float(details.get("beta_end", 0.012))
        betas = np.linspace(start, end, steps) if schedule == "linear" else np.linspace(start**0.5, end**0.5, steps) ** 2
        self._kept = np.cumprod(1.0 - betas)  # (steps,)
        self._seed = seed

    def __call__(self, batch: Batch, epoch: int) -> Batch:
        """A batch with clean `sample` [batch, …] -> noisy `sample`, `timestep` [batch], and `target` of the sample's shape."""
        if "timestep" in batch.inputs:
            return batch  # the rows are noisy already and bring their own target
        if "sample" not in batch.inputs:
            raise UserError(f"denoising needs the input 'sample', these examples have {', '.join(batch.inputs) or 'none'}; give arrays of clean samples")
        clean = batch.inputs["sample"].float()
        draws = [np.random.default_rng([self._seed, epoch, row]) for row in batch.rows]
        steps = np.array([draw.integers(len(self._kept)) for draw in draws])
        noise = torch.from_numpy(np.stack([draw.standard_normal(clean.shape[1:], dtype=np.float32) for draw in draws]))
        kept = torch.from_numpy(self._kept[steps].astype(np.float32)).reshape(-1, *[1] * (clean.dim() - 1))  # (batch, 1, …)
        noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        target = noise if self._prediction == "epsilon" else kept.sqrt() * noise - (1 - kept).sqrt() * clean
        return Batch({**batch.inputs, "sample": noisy, "timestep": torch.from_numpy(steps)}, {**batch.targets, "target": target}, batch.rows)
