"""Measure a model, or a model with an artifact, on data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from polyadapt.api.artifacts import ArtifactLike, as_artifact
from polyadapt.api.work import installed_host, open_dataset
from polyadapt.artifact import Artifact
from polyadapt.data.dataset import Dataset, Example
from polyadapt.errors import UserError
from polyadapt.evaluation.evaluation import Evaluation
from polyadapt.evaluation.evaluation import evaluate as run_evaluation
from polyadapt.evaluation.metrics import default_metric
from polyadapt.evaluation.predict import model_predictor
from polyadapt.evaluation.prediction import Answer, Prediction, Predictor
from polyadapt.host import Host
from polyadapt.host.inference import adapted
from polyadapt.methods.separated import Separated
from polyadapt.model import Model
from polyadapt.training import TrainingData, randomness
from polyadapt.training.batches import Examples
from polyadapt.training.losses import IGNORED
from polyadapt.training.reading import read_by_one
from polyadapt.training.targets import prepare_for
from polyadapt.training.texts import heard_whole
from polyadapt_runtime.generate import WINDOW_TOKENS

PREDICTED = ("classification", "causal-lm", "ctc", "control", "image-text", "denoising")
"""Tasks whose predictions are read from one forward pass; for others the model is asked as a user would ask it."""

DECODED = ("seq2seq-lm", "transcription")
"""Tasks with a decoder: scored on the tokens that training learns where perplexity was asked for, else on what they generate."""


def evaluate(
    model: Model,
    data: str | Dataset,
    artifact: ArtifactLike | None = None,
    *,
    metrics: str | Sequence[str] = (),
    seed: int | Sequence[int] = 0,
    batch_size: int = 32,
    beams: int = 1,
    host: Host | None = None,
) -> Evaluation:
    """Measure a model, or a model with an artifact, on data.

    Args:
        model: a loaded model.
        data: a URI or a data set.
        artifact: an artifact or the folder of one, attached for the time of the evaluation.
        metrics: a name, or several of which the first one decides; the task's own when empty.
        seed: of the resampling that gives intervals.
        batch_size: examples at once.
        beams: texts that a search over the frames of task `ctc` follows; 1 takes the best path.
        host: where the reader is looked up.

    Raises:
        UserError: this is no artifact or one of another base, the data does not fit the task, or the task has no use for beams.
    """
    if beams > 1 and model.task.kind != "ctc":
        raise UserError(f"task {model.task.kind!r} has no use for beams in an evaluation; leave them out")
    used = host or installed_host()
    artifact = None if artifact is None else as_artifact(artifact, used)
    dataset = open_dataset(data, host=used)
    chosen = ((metrics,) if isinstance(metrics, str) else tuple(metrics)) or (model.task.metric or default_metric(model.task.kind),)
    generator = np.random.default_rng(seed)
    if apart := used.separated(model, artifact):
        base = apart.base

        def predicted(part: Dataset, one: Artifact) -> Sequence[Prediction]:
            return evaluate(base, part, one, metrics=chosen[0], batch_size=batch_size, beams=beams, host=used).predictions

        return run_evaluation(_each(apart, predicted), dataset, chosen, generator=generator)
    model = heard_whole(model)
    if model.task.kind == "synthesis" and not used.answers_itself(model, artifact):
        return run_evaluation(_listening(model, artifact), dataset, chosen, generator=generator)
    if not used.answers_itself(model, artifact):
        with adapted(model, artifact) as active:
            if model.task.kind in PREDICTED:
                return run_evaluation(model_predictor(active, batch_size, beams), dataset, chosen, generator=generator)
            if model.task.kind in DECODED and chosen[0] == "perplexity":
                return run_evaluation(_scoring(active), dataset, chosen, generator=generator)
    options: dict[str, Any] = {"batch_size": batch_size}
    if beams > 1:
        options["beams"] = beams
    if model.task.kind in DECODED and not used.answers_itself(model, artifact):
        # A text that is cut would count as words that were not heard.
        options["maximum_new_tokens"] = model.family.positions(model.backbone) or WINDOW_TOKENS
    return run_evaluation(_asking(used, model, artifact, options), dataset, chosen, generator=generator)


def _each(apart: Separated, predicted: Callable[[Dataset, Artifact], Sequence[Prediction]]) -> Predictor:
    """A predictor that asks for every row the one of several artifacts that its column names.

    Raises:
        UserError: a row names none.
    """

    def predict(dataset: Dataset) -> list[Prediction]:
        rows: dict[str, list[int]] = {}
        for row, example in enumerate(dataset):
            value = str(example.extra.get(apart.column) or "")
            if value not in apart.artifacts:
                held = ", ".join(apart.artifacts)
                raise UserError(f"{example.source or example.id}: {apart.column} {value!r} is none of those that the artifact holds ({held}); name one in that column")
            rows.setdefault(value, []).append(row)
        found: dict[int, Prediction] = {}
        for value, places in rows.items():
            found |= zip(places, predicted(dataset.subset(places, dataset.name), apart.artifacts[value]), strict=True)
        return [found[row] for row in range(len(dataset))]

    return predict


def _asking(host: Host, model: Model, artifact: Artifact | None, options: Mapping[str, Any]) -> Predictor:
    """A predictor that infers: for tasks that generate, and for plugins that answer themselves."""

    def predict(dataset: Dataset) -> list[Prediction]:
        answers = host.infer(model, [example.raw for example in dataset], artifact, options)
        return [Prediction(example.id, truth_of(example, model.task.kind), _said(answer)) for example, answer in zip(dataset, answers, strict=True)]

    return predict


def _scoring(model: Model) -> Predictor:
    """Negative log likelihood of every target text and its end, in nats; one example at a time."""
    prepare = prepare_for(model)

    def predict(dataset: Dataset) -> list[Prediction]:
        return [Prediction(example.id, example.text, None, {}, likelihood(example)) for example in dataset]

    def likelihood(example: Example) -> dict[str, float]:
        arrays, targets = prepare(example)
        inputs = {name: torch.from_numpy(value)[None].to(model.device) for name, value in arrays.items()}
        tokens = torch.from_numpy(targets["tokens"])  # (T,)
        with torch.inference_mode():
            scores = torch.log_softmax(model.module(**inputs)["logits"][0].double().cpu(), dim=-1)  # (T, V)
        is_scored = tokens != IGNORED
        chosen = scores[is_scored].gather(1, tokens[is_scored, None])  # (scored, 1)
        return {"nll": float(-chosen.sum()), "tokens": float(len(chosen))}

    return predict


def _listening(model: Model, artifact: Artifact | None) -> Predictor:
    """The losses by which a voice learns, of recordings with texts, one at a time, at seeded noise.

    Whose voice it is, the artifact says, else the model's conditions; without any, the recordings themselves. Texts are laid
    along recordings by the bare model, so artifacts that move other weights are measured on the same alignments.
    """

    def predict(dataset: Dataset) -> list[Prediction]:
        own = model.conditions if artifact is None else {name: value.numpy() for name, value in artifact.conditions.items()}
        heard = replace(model, conditions=own) if own else read_by_one(model, TrainingData(dataset), is_checked=False)[0]
        examples = Examples(dataset, heard, 0)
        with adapted(heard, artifact), randomness.isolated(0, model.device), torch.no_grad():
            return [Prediction(example.id, example.text, None, {}, figures(heard, examples, row)) for row, example in enumerate(dataset)]

    def figures(heard: Model, examples: Examples, row: int) -> dict[str, float]:
        losses = heard.module(**examples.batch([row]).to(heard.device).inputs)
        return {**{name: float(value[0]) for name, value in losses.items()}, "rows": 1.0}

    return predict


def truth_of(example: Example, kind: str) -> Answer:
    """What is right for an example of a task of this kind: its class, its text, or its numbers. Pictures and sounds of classes may have captions besides."""
    if example.label is not None and (example.text is None or kind == "classification"):
        return example.label
    return example.text if example.text is not None else tuple(float(value) for value in example.target.reshape(-1))


def _said(answer: Mapping[str, Any]) -> Answer:
    """What an inference said: its label, its text, or its first array of numbers."""
    for name in ("label", "text"):
        if isinstance(answer.get(name), str):
            return str(answer[name])
    numbers = next((value for value in answer.values() if isinstance(value, np.ndarray)), None)
    return None if numbers is None else tuple(float(value) for value in numbers.reshape(-1))
