"""The metric of a bundle on the test part, by the runtime alone: what an exporter asks for when it makes variants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyadapt.api.measure import truth_of
from polyadapt.data.dataset import Dataset
from polyadapt.evaluation.evaluation import evaluate
from polyadapt.evaluation.prediction import Answer, Prediction, Predictor

TASKS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "macro-f1"),
    "ctc": ("cer", "wer"),
    "transcription": ("cer", "wer"),
    "seq2seq-lm": ("cer", "wer"),
    "control": ("mse",),
}
"""Metrics that are read from a bundle's answers, by task; the first is taken where a recipe names another."""

Evaluate = Callable[[Path, str], dict[str, dict[str, Any]]]


def bundle_evaluator(task: str, metrics: Sequence[str], arms: Sequence[str], form: str, dataset: Dataset) -> Evaluate | None:
    """A function of a bundle's folder and a variant.

    Args:
        task: of the model.
        metrics: of the recipe; the first that answers can tell decides.
        arms: names of artifacts to call; a merged bundle is called as it is.
        form: of the bundle.
        dataset: the test part.

    Returns:
        (bundle, variant) to `metric`, `value` and `n` by artifact; None where answers of this task tell no metric.
    """
    known = TASKS.get(task, ())
    if not known:
        return None
    chosen = next((name for name in metrics if name in known), known[0])

    def run(bundle: Path, variant: str) -> dict[str, dict[str, Any]]:
        from polyadapt_runtime import Bundle

        opened = Bundle(bundle, device="cpu", variant=variant)
        rows = {}
        for arm in arms:
            found = evaluate(_predictor(opened, arm if form != "merged" else None), dataset, (chosen,), generator=np.random.default_rng(0), draws=1)
            rows[arm] = {"metric": found.metric, "value": found.value, "n": found.n}
        return rows

    return run


def _predictor(bundle: Any, artifact: str | None) -> Predictor:
    def predict(dataset: Dataset) -> list[Prediction]:
        answers = bundle([example.raw for example in dataset], artifact)
        return [Prediction(example.id, truth_of(example), _said(answer)) for example, answer in zip(dataset, answers, strict=True)]

    return predict


def _said(answer: Any) -> Answer:
    """A label, a text, or the first array of numbers."""
    if isinstance(answer, str):
        return answer
    if hasattr(answer, "label"):
        return str(answer.label)
    numbers = next(iter(answer.values())) if isinstance(answer, Mapping) else answer
    return tuple(float(value) for value in np.reshape(numbers, -1))
