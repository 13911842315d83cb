"""Training: one thin loop for every method, its settings, checkpoints and the cache of frozen prefixes.

Names are resolved at first use, so importing events or settings imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from polyadapt.training.events import Event
from polyadapt.training.settings import TrainSettings

if TYPE_CHECKING:
    from polyadapt.training.batches import Batch, TrainingData
    from polyadapt.training.estimation import Estimate, estimate
    from polyadapt.training.features import frozen_features
    from polyadapt.training.fitting import fit, fit_form
    from polyadapt.training.form import TrainPlan, TrainResult, train_form
    from polyadapt.training.losses import Objective, objective_for
    from polyadapt.training.run import Run

_PLACES = {
    "Batch": "batches",
    "Estimate": "estimation",
    "Objective": "losses",
    "Run": "run",
    "TrainPlan": "form",
    "TrainResult": "form",
    "TrainingData": "batches",
    "estimate": "estimation",
    "fit": "fitting",
    "fit_form": "fitting",
    "frozen_features": "features",
    "objective_for": "losses",
    "train_form": "form",
}

__all__ = [
    "Batch",
    "Estimate",
    "Event",
    "Objective",
    "Run",
    "TrainPlan",
    "TrainResult",
    "TrainSettings",
    "TrainingData",
    "estimate",
    "fit",
    "fit_form",
    "frozen_features",
    "objective_for",
    "train_form",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
