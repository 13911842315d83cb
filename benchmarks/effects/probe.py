"""The linear probe, the floor of every experiment: logistic regression on frozen features, solved to its optimum.

Its penalty is the one whose log loss on the validation part is lowest, for each seed anew. Accuracy would not do: on a few
dozen clips it ties over most of the grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class Solved:
    """The probe that was kept: accuracies in percent, and which test rows were right."""

    penalty: float
    validation: float
    test: float
    parameters: int
    right: tuple[bool, ...]


def solve(features: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> Solved:
    """Solve at every penalty and keep the best.

    Args:
        features: of train, validation and test, scaled here by the training part's mean and deviation.
        targets: numbers of classes, the same in all parts.

    Shape:
        [rows, size] and [rows] each.
    """
    scaler = StandardScaler().fit(features["train"])
    x = {name: scaler.transform(value) for name, value in features.items()}
    made = {penalty: LogisticRegression(C=penalty, max_iter=20_000, tol=1e-6).fit(x["train"], targets["train"]) for penalty in PENALTIES}
    losses = {penalty: log_loss(targets["validation"], one.predict_proba(x["validation"]), labels=one.classes_) for penalty, one in made.items()}
    best = min(PENALTIES, key=lambda penalty: losses[penalty])
    right = {name: made[best].predict(x[name]) == targets[name] for name in ("validation", "test")}
    size = (features["train"].shape[1] + 1) * len(np.unique(targets["train"]))
    return Solved(best, 100 * float(right["validation"].mean()), 100 * float(right["test"].mean()), size, tuple(right["test"].tolist()))
