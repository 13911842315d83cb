"""The metric of a bundle on the test part, by the runtime alone: what an exporter asks for when it makes variants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyadapt.api.measure import DECODED, truth_of
from polyadapt.data.dataset import Dataset, Example
from polyadapt.evaluation.evaluation import evaluate
from polyadapt.evaluation.prediction import Answer, Prediction, Predictor
from polyadapt.job.likelihood import scoring
from polyadapt.model import Model
from polyadapt.training.texts import spelled
from polyadapt_runtime.generate import WINDOW_TOKENS

if TYPE_CHECKING:
    from polyadapt_runtime import Bundle

TASKS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "macro-f1"),
    "ctc": ("cer", "wer"),
    "causal-lm": ("perplexity",),
    "transcription": ("cer", "wer", "perplexity"),
    "seq2seq-lm": ("perplexity", "cer", "wer"),
    "control": ("mse",),
}
"""Metrics that a bundle can be measured by, by task; the first is taken where a recipe names another."""

Evaluate = Callable[[Path, str], dict[str, dict[str, Any]]]


def bundle_evaluator(model: Model, metrics: Sequence[str], arms: Sequence[str], form: str, dataset: Dataset) -> Evaluate | None:
    """A function of a bundle's folder and a variant.

    Args:
        model: the one that was exported.
        metrics: of the recipe; the first that answers can tell decides.
        arms: names of artifacts to call; a merged bundle is called as it is.
        form: of the bundle.
        dataset: the test part.

    Returns:
        (bundle, variant) to `metric`, `value` and `n` by artifact; None where answers of this task tell no metric.
    """
    known = TASKS.get(model.task.kind, ())
    if not known:
        return None
    chosen = next((name for name in metrics if name in known), known[0])

    def run(bundle: Path, variant: str) -> dict[str, dict[str, Any]]:
        from polyadapt_runtime import Bundle

        opened = Bundle(bundle, device="cpu", variant=variant)
        rows = {}
        for arm in arms:
            artifact = arm if form != "merged" else None
            predictor = scoring(opened, model, artifact) if chosen == "perplexity" else _predictor(opened, artifact)
            found = evaluate(predictor, dataset, (chosen,), generator=np.random.default_rng(0), draws=1)
            rows[arm] = {"metric": found.metric, "value": found.value, "n": found.n}
        return rows

    return run


def _predictor(bundle: Bundle, artifact: str | None) -> Predictor:
    kind, spec = bundle.manifest.task, {**bundle.manifest.details, **bundle.manifest.postprocess}
    vocabulary = (bundle.artifacts()[artifact].labels if artifact else ()) or bundle.manifest.labels or tuple(spec.get("vocabulary") or ())

    def right(example: Example) -> Answer:
        truth = truth_of(example, kind)
        return spelled(truth, vocabulary, spec.get("separator")) if kind == "ctc" and isinstance(truth, str) else truth

    def answers(raws: list[Any]) -> Sequence[Any]:
        if kind in DECODED:
            return [bundle.generate(raw, WINDOW_TOKENS, artifact) for raw in raws]
        found: Sequence[Any] = bundle(raws, artifact)
        return found

    def predict(dataset: Dataset) -> list[Prediction]:
        said = answers([example.raw for example in dataset])
        return [Prediction(example.id, right(example), _said(answer)) for example, answer in zip(dataset, said, strict=True)]

    return predict


def _said(answer: Any) -> Answer:
    """A label, a text, or the first array of numbers."""
    if isinstance(answer, str):
        return answer
    if hasattr(answer, "label"):
        return str(answer.label)
    numbers = next(iter(answer.values())) if isinstance(answer, Mapping) else answer
    return tuple(float(value) for value in np.reshape(numbers, -1))
