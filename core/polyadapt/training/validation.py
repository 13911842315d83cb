"""Mean loss and measures of a model over a data set."""

from __future__ import annotations

import torch

from polyadapt.training.batches import Feed
from polyadapt.training.drawing import in_batches
from polyadapt.training.processes import Processes
from polyadapt.training.work import Work


def measure(work: Work, feed: Feed, processes: Processes) -> dict[str, float]:
    """Validation metrics in evaluation mode, over all processes.

    Returns:
        `loss`, and the measures of the objective, each a mean over its items.
    """
    objective = work.objective
    names = ["loss", *objective.measures]
    total = torch.zeros(len(names), dtype=torch.float64, device=processes.device)
    count = 0
    work.set_training(False)
    with torch.no_grad():
        for rows in in_batches(range(len(feed.examples)), work.settings.batch_size):
            for group in feed.groups(processes.share(rows)):
                batch = feed.batch(group)
                with processes.autocast(work.settings.precision):
                    outputs = feed.forward(batch)
                sums = [objective.total(outputs, batch.targets), *(found(outputs, batch.targets) for found in objective.measures.values())]
                total += torch.stack([value.double() for value in sums])
                count += objective.count(batch.targets)
    work.set_training(True)
    whole = processes.sum(torch.cat([total, total.new_tensor([float(count)])])).tolist()
    return {name: value / max(1.0, whole[-1]) for name, value in zip(names, whole, strict=False)}
