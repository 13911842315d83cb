"""Metrics as functions of sums over examples.

Every metric first turns each example into a few numbers (its statistics, [k]) and then computes its value from
their sum. Resampling examples therefore costs one matrix product, and a ratio such as the word error rate is
resampled as what it is: a ratio of sums, not a mean of ratios.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyadapt.errors import MissingExtraError, UserError, unknown
from polyadapt.evaluation.prediction import Prediction
from polyadapt.signature import DEFAULT_METRICS

Statistics = Callable[[Sequence[Prediction], Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        statistics: predictions and labels to float64 [n, k].
        value: sums [..., k] to values [...].
        is_better_higher: the direction in which a model improves.
        is_share: whether values are read as per cent.
    """

    name: str
    title: str
    statistics: Statistics
    value: Callable[[np.ndarray], np.ndarray]
    is_better_higher: bool = True
    is_share: bool = False


def metric(name: str) -> Metric:
    """A metric by name.

    Raises:
        UserError: there is none of this name; the nearest is named.
    """
    if name not in METRICS:
        raise unknown("metric", name, METRICS)
    return METRICS[name]


def default_metric(task: str) -> str:
    """The metric that suits a task.

    Raises:
        UserError: the task has none of its own.
    """
    if task not in DEFAULT_METRICS:
        raise UserError(f"task {task!r} has no metric of its own; name one of {', '.join(METRICS)}")
    return DEFAULT_METRICS[task]


def confusion(predictions: Sequence[Prediction], labels: Sequence[str]) -> np.ndarray:
    """Counts int64 [classes, classes]: row = true class, column = predicted class.

    Raises:
        UserError: a truth or an answer is not among the labels.
    """
    index = {label: number for number, label in enumerate(labels)}
    table = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for prediction in predictions:
        table[_position(index, prediction, prediction.truth), _position(index, prediction, prediction.answer)] += 1
    return table


def _position(index: dict[str, int], prediction: Prediction, label: Any) -> int:
    if label not in index:
        raise UserError(f"example {prediction.id!r}: {label!r} is not one of the labels {', '.join(list(index)[:10])}")
    return index[label]


def _ratio(sums: np.ndarray) -> np.ndarray:
    """First statistic over the second; 0 of 0 is 0."""
    return np.asarray(np.divide(sums[..., 0], sums[..., 1], out=np.zeros(sums.shape[:-1]), where=sums[..., 1] != 0))


def _accuracy(predictions: Sequence[Prediction], labels: Sequence[str]) -> np.ndarray:
    return np.array([[float(prediction.is_correct), 1.0] for prediction in predictions])  # (n, 2)


def _confusions(predictions: Sequence[Prediction], labels: Sequence[str]) -> np.ndarray:
    """True positives, wrongly claimed and missed per class: [n, 3 classes]."""
    index = {label: number for number, label in enumerate(labels)}
    table = np.zeros((len(predictions), 3, len(labels)))
    for row, prediction in enumerate(predictions):
        truth, answer = _position(index, prediction, prediction.truth), _position(index, prediction, prediction.answer)
        if truth == answer:
            table[row, 0, truth] = 1
        else:
            table[row, 1, answer] = 1
            table[row, 2, truth] = 1
    return table.reshape(len(predictions), -1)  # (n, 3 C)


def _macro_f1(sums: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes that occur as truth or answer; a class never met says nothing about the model."""
    hits, claimed, missed = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)  # each (..., C)
    total = 2 * hits + claimed + missed
    scores = np.divide(2 * hits, total, out=np.zeros_like(total), where=total > 0)
    return np.asarray(scores.sum(-1) / np.maximum((total > 0).sum(-1), 1))


def _squared_error(predictions: Sequence[Prediction], labels: Sequence[str]) -> np.ndarray:
    rows = []
    for prediction in predictions:
        if "squared_error" in prediction.numbers:
            rows.append([prediction.numbers["squared_error"], prediction.numbers["values"]])
            continue
        if not isinstance(prediction.truth, tuple) or not isinstance(prediction.answer, tuple) or len(prediction.truth) != len(prediction.answer):
            raise UserError(f"example {prediction.id!r}: mean squared error needs as many numbers as the target has, found {prediction.answer!r} for {prediction.truth!r}")
        difference = np.subtract(prediction.answer, prediction.truth, dtype=np.float64)
        rows.append([float(difference @ difference), float(difference.size)])
    return np.array(rows)


def _edits(function: str) -> Statistics:
    """Edit distance and length of the truth, counted by jiwer."""

    def statistics(predictions: Sequence[Prediction], labels: Sequence[str]) -> np.ndarray:
        try:
            process = getattr(importlib.import_module("jiwer"), function)
        except ImportError as error:
            raise MissingExtraError("jiwer", "text", "error rates of transcripts") from error
        rows = []
        for prediction in predictions:
            truth, answer = _texts(prediction)
            found = process([truth], [answer])
            rows.append([float(found.substitutions + found.deletions + found.insertions), float(found.hits + found.substitutions + found.deletions)])
        return np.array(rows)

    return statistics


def _texts(prediction: Prediction) -> tuple[str, str]:
    if not isinstance(prediction.truth, str) or not isinstance(prediction.answer, str):
        raise UserError(f"example {prediction.id!r}: an error rate compares two texts, found {prediction.answer!r} for {prediction.truth!r}")
    return prediction.truth, prediction.answer


def _numbers(*names: str) -> Statistics:
    """Figures that the predictor measured."""

    def statistics(predictions: Sequence[Prediction], labels: Sequence[str]) -> np.ndarray:
        for prediction in predictions:
            lacking = [name for name in names if name not in prediction.numbers]
            if lacking:
                raise UserError(f"example {prediction.id!r} comes without {lacking[0]!r}; this metric is for a predictor that measures it")
        return np.array([[prediction.numbers[name] for name in names] for prediction in predictions], dtype=np.float64)

    return statistics


def _log_loss(predictions: Sequence[Prediction], labels: Sequence[str]) -> np.ndarray:
    return np.concatenate([_numbers("nll")(predictions, labels), np.ones((len(predictions), 1))], axis=1)  # (n, 2)


def _exponential(sums: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinite is the right word for what float64 cannot hold
        return np.asarray(np.exp(_ratio(sums)))


METRICS: dict[str, Metric] = {
    row.name: row
    for row in (
        Metric("accuracy", "accuracy", _accuracy, _ratio, is_share=True),
        Metric("macro-f1", "macro F1", _confusions, _macro_f1, is_share=True),
        Metric("log-loss", "log loss (nats)", _log_loss, _ratio, is_better_higher=False),
        Metric("mse", "mean squared error", _squared_error, _ratio, is_better_higher=False),
        Metric("wer", "word error rate", _edits("process_words"), _ratio, is_better_higher=False, is_share=True),
        Metric("cer", "character error rate", _edits("process_characters"), _ratio, is_better_higher=False, is_share=True),
        Metric("perplexity", "perplexity per token", _numbers("nll", "tokens"), _exponential, is_better_higher=False),
        Metric("divergence", "divergence of recordings from their texts (nats a frame)", _numbers("divergence", "rows"), _ratio, is_better_higher=False),
    )
}
