"""Features of a frozen model for a whole data set: where methods in closed form begin."""

from __future__ import annotations

import torch

from polyadapt.data.dataset import Dataset
from polyadapt.errors import UserError
from polyadapt.model import Model
from polyadapt.training.batches import Examples, PlainFeed
from polyadapt.training.drawing import in_batches
from polyadapt.training.keep import kept
from polyadapt.training.processes import find_processes, moved
from polyadapt.training.run import Run


def frozen_features(model: Model, dataset: Dataset, run: Run) -> torch.Tensor:
    """Features in the data set's order, in evaluation mode; no example sees the ones beside it.

    Args:
        model: of task `classification`; left as it was found. What is attached to it takes part.
        dataset: labelled with the model's classes.
        run: its settings give device, precision and batch size.

    Returns:
        float32 [examples, features] on the CPU.

    Raises:
        UserError: the model gives no features, or an example cannot be processed.
    """
    if model.module.head is None or model.task.kind != "classification":
        raise UserError(f"{model.reference} gives no features for task {model.task.kind!r}; load it with task = 'classification'")
    settings = run.settings
    processes = find_processes(settings.device, settings.precision)
    examples = Examples(dataset, model, memory_bytes=0)
    feed = PlainFeed(examples, model.module, processes.device)
    found: dict[int, torch.Tensor] = {}
    with moved(model.module, processes.device), kept(model.module), torch.no_grad(), processes.autocast(settings.precision):
        model.module.eval()
        for rows in in_batches(range(len(examples)), settings.batch_size):
            for group in feed.groups(rows):
                features = feed.forward(feed.batch(group))["features"].float().cpu()  # (group, d)
                found.update(zip(group, features, strict=True))
    return torch.stack([found[row] for row in range(len(examples))])  # (examples, d)
