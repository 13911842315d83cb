"""Evaluate a predictor on a data set, and compare two evaluations of the same examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyadapt.data.dataset import Dataset
from polyadapt.errors import PluginError, UserError
from polyadapt.evaluation.interval import DRAWS, LEVEL, Comparison, Interval, bootstrap, paired_bootstrap
from polyadapt.evaluation.metrics import confusion, metric
from polyadapt.evaluation.prediction import Prediction, Predictor


@dataclass(frozen=True)
class Measured:
    """One metric with its interval."""

    value: float
    interval: Interval

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"value": self.value, "interval": self.interval.to_dict()}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        metric: the one that decides; `others` holds the rest by name.
        value: of that metric, with its interval.
        n: number of examples.
        predictions: one per example, in the data set's order.
        labels: classes, in the order of `confusion`; empty when there are none.
        confusion: counts int64 [classes, classes], row = true class; None without classes.
        data_hash: of the examples, so that two evaluations are only compared on the same ones.
    """

    metric: str
    value: float
    interval: Interval
    n: int
    predictions: tuple[Prediction, ...]
    labels: tuple[str, ...] = ()
    confusion: np.ndarray | None = None
    others: dict[str, Measured] = field(default_factory=dict)
    data_hash: str = ""

    @property
    def correct(self) -> np.ndarray:
        """Whether each answer equals the truth: bool [n]."""
        return np.array([prediction.is_correct for prediction in self.predictions], dtype=bool)

    def to_dict(self, predictions: bool = True) -> dict[str, Any]:
        """As JSON.

        Args:
            predictions: with every example's id, truth and answer; without them nothing of the data is left but class names.
        """
        row: dict[str, Any] = {
            "metric": self.metric,
            "value": self.value,
            "interval": self.interval.to_dict(),
            "n": self.n,
            "others": {name: measured.to_dict() for name, measured in self.others.items()},
            "labels": list(self.labels),
            "confusion": None if self.confusion is None else self.confusion.tolist(),
            "data_hash": self.data_hash,
        }
        if self.confusion is not None:
            row["correct"] = [bool(value) for value in self.correct]
        if predictions:
            row["predictions"] = [prediction.to_dict() for prediction in self.predictions]
        return row


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    metrics: Sequence[str] = ("accuracy",),
    *,
    generator: np.random.Generator,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Evaluation:
    """Run a predictor over a data set.

    Args:
        predictor: examples to predictions, for instance `model_predictor(model)`.
        dataset: what to predict.
        metrics: the first one decides; the others are reported beside it.
        generator: draws the resamplings of the intervals.
        draws: how many of them.
        level: of the intervals.

    Raises:
        UserError: an unknown metric, or one that does not fit these predictions.
        PluginError: the predictor returned other examples than it was given.
    """
    if not metrics:
        raise UserError("no metric was named; name at least one, such as accuracy")
    chosen = [metric(name) for name in metrics]
    predictions = tuple(predictor(dataset))
    _check_order(dataset, predictions)
    labels = _labels(dataset, predictions)
    measured = {}
    for row in chosen:
        statistics = row.statistics(predictions, labels)  # (n, k)
        measured[row.name] = Measured(float(row.value(statistics.sum(0))), bootstrap(statistics, row.value, generator, draws, level))
    first, *rest = measured
    table = confusion(predictions, labels) if labels else None
    others = {name: measured[name] for name in rest}
    return Evaluation(first, measured[first].value, measured[first].interval, len(predictions), predictions, labels, table, others, dataset.hash)


def compare(
    first: Evaluation,
    second: Evaluation,
    names: tuple[str, str],
    *,
    generator: np.random.Generator,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Comparison:
    """Difference of two evaluations of the same examples by their first metric.

    Raises:
        UserError: they are of different examples or different metrics.
    """
    if first.metric != second.metric:
        raise UserError(f"{names[0]!r} was measured by {first.metric} and {names[1]!r} by {second.metric}; compare one metric")
    if [row.id for row in first.predictions] != [row.id for row in second.predictions] or first.data_hash != second.data_hash:
        raise UserError(f"{names[0]!r} and {names[1]!r} were evaluated on different examples; evaluate both on the same split")
    measure = metric(first.metric)
    labels = tuple(dict.fromkeys([*first.labels, *second.labels]))  # either side may have answered classes that the other knows nothing of
    one, two = (measure.statistics(side.predictions, labels) for side in (first, second))
    interval, differences = paired_bootstrap(one, two, measure.value, generator, draws, level)
    better = differences > 0 if measure.is_better_higher else differences < 0
    wins = float(np.mean(better) + 0.5 * np.mean(differences == 0))
    return Comparison(names[0], names[1], first.metric, first.value - second.value, interval, wins, first.n)


def _check_order(dataset: Dataset, predictions: Sequence[Prediction]) -> None:
    asked, given = [example.id for example in dataset], [prediction.id for prediction in predictions]
    if asked != given:
        raise PluginError(f"the predictor was given {len(asked)} examples and answered {len(given)}, or in another order; it has to answer each one in order")


def _labels(dataset: Dataset, predictions: Sequence[Prediction]) -> tuple[str, ...]:
    """The data's classes, then other classes that were answered; none when truths are no class names, as in transcripts."""
    pairs = list(zip(dataset, predictions, strict=True))
    if not dataset.is_labelled or any(row.truth != example.label or not isinstance(row.answer, str) for example, row in pairs):
        return ()
    return tuple(dict.fromkeys([*dataset.labels, *(str(row.answer) for row in predictions)]))
