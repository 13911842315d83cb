"""Outputs of a graph to answers, as data says.

Specs by kind: `classification` (output `logits`), `features`, `ctc` (`logits` [frames, vocabulary]; `blank_id`, else 0;
`separator` between words; the labels are the vocabulary, else `vocabulary` is). A task's `details` count as part of the spec. Any other kind hands out all outputs by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyadapt_runtime.ctc import read_frames
from polyadapt_runtime.errors import GraphError


@dataclass(frozen=True)
class Prediction:
    """The answer of a classifier: the best label, its probability, and the best few of both."""

    label: str
    score: float
    top: tuple[tuple[str, float], ...]


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, computed in float64."""
    shifted = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    result: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return result


def interpret(row: Mapping[str, np.ndarray], spec: Mapping[str, Any], labels: Sequence[str], top: int, beams: int = 1) -> Any:
    """The answer for one example.

    Args:
        row: outputs without a batch axis.
        spec: one of the specs above.
        labels: class names; classes beyond them are called by their number.
        top: how many classes `Prediction.top` holds.
        beams: width of the search over texts of `ctc`; 1 takes the best path.

    Raises:
        GraphError: the output that the spec reads is missing, has another rank, or holds what is no number.
        InputError: less than one beam.
    """
    kind = spec.get("kind")
    if kind == "classification":
        return classify(_output(row, "logits", 1), labels, top)
    if kind == "features":
        return _output(row, "features", 1)
    if kind == "ctc":
        return read_frames(_output(row, "logits", 2), labels or spec.get("vocabulary") or (), int(spec.get("blank_id") or 0), spec.get("separator"), beams)
    return dict(row)


def classify(logits: np.ndarray, labels: Sequence[str], top: int = 5) -> Prediction:
    """Class scores [classes] to a prediction; equal scores keep the order of the classes."""
    chances = softmax(logits)
    order = np.argsort(-chances, kind="stable")[: max(1, top)]
    best = tuple((labels[index] if index < len(labels) else str(index), float(chances[index])) for index in order.tolist())
    return Prediction(best[0][0], best[0][1], best)


def _output(row: Mapping[str, np.ndarray], name: str, rank: int) -> np.ndarray:
    if name not in row or row[name].ndim != rank:
        found = ", ".join(f"{key} {list(value.shape)}" for key, value in row.items())
        raise GraphError(f"post-processing reads output {name!r} with {rank} axes an example; the graph gives: {found}")
    value = row[name]
    if value.dtype.kind == "f" and (np.isnan(value).any() or np.isposinf(value).any()):
        raise GraphError(f"output {name!r} holds numbers that are not finite; look at the input and, with an artifact, at its scale")
    return value
