"""Predictors that need no model: what a result has to beat before it means anything."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from polyadapt.data.dataset import Dataset
from polyadapt.errors import UserError
from polyadapt.evaluation.prediction import Prediction, Predictor


def majority(train: Dataset) -> Predictor:
    """Always the commonest class of the training part; the first in the labels' order on a tie.

    How likely each class is, it takes from the training part too: `nll` by its share, one example more counted for every class.

    Raises:
        UserError: the training part has no labels.
    """
    if not train.is_labelled:
        raise UserError(f"the baseline 'majority' needs labels, and {train.name!r} has none; use 'mean' for numbers")
    counts = Counter(example.label for example in train)
    common = max(train.labels, key=lambda label: counts[label])
    share = counts[common] / len(train)
    every = len(train) + len(train.labels)

    def predict(dataset: Dataset) -> Sequence[Prediction]:
        return [Prediction(example.id, example.label, common, {common: share}, {"nll": -math.log((counts[example.label] + 1) / every)}) for example in dataset]

    return predict


def mean(train: Dataset) -> Predictor:
    """Always the mean target of the training part.

    Raises:
        UserError: a row has no target numbers, or another count of them.
    """
    targets = [example.target.reshape(-1) for example in train]
    for example, target in zip(train, targets, strict=True):
        if target.size != targets[0].size:
            raise UserError(f"{example.source or example.id}: {target.size} target numbers, and the first row has {targets[0].size}; give every row as many")
    centre = tuple(float(value) for value in np.stack(targets).mean(0, dtype=np.float64).tolist())

    def predict(dataset: Dataset) -> Sequence[Prediction]:
        return [Prediction(example.id, tuple(float(value) for value in example.target.reshape(-1)), centre) for example in dataset]

    return predict
