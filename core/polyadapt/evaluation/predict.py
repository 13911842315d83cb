"""Run a model over a data set: the processor and the module that training uses, in eval mode, without gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from polyadapt.data.dataset import Dataset, Example
from polyadapt.errors import UserError
from polyadapt.evaluation.pairs import prompt_and_target
from polyadapt.evaluation.prediction import Prediction, Predictor
from polyadapt.model import Model

TOP = 5


def model_predictor(model: Model, batch_size: int = 32) -> Predictor:
    """A predictor for `evaluate` that runs a model."""

    def run(dataset: Dataset) -> Sequence[Prediction]:
        return predict(model, dataset, batch_size)

    return run


def predict(model: Model, dataset: Dataset, batch_size: int = 32) -> list[Prediction]:
    """Predictions in the data set's order.

    Args:
        model: with whatever is attached to it at this moment.
        dataset: examples with labels (`classification`), a target text (`causal-lm`, `ctc`) or target numbers (`control`).
        batch_size: examples that are run at once; 1 for `ctc`, whose frames carry no mask.

    Raises:
        UserError: the task has no predictions of its own, or the data does not fit it.
    """
    ways = {"classification": _classify, "causal-lm": _score_targets, "ctc": _transcribe, "control": _regress}
    kind = model.task.kind
    if kind not in ways:
        raise UserError(f"task {kind!r} has no plain prediction (known: {', '.join(ways)}); its domain's plugin brings a predictor")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; expected at least 1")
    modes = {module: module.training for module in model.module.modules()}
    model.module.eval()
    try:
        with torch.inference_mode():
            return ways[kind](model, dataset, batch_size)
    finally:
        for module, was_training in modes.items():
            module.training = was_training


def _batches(dataset: Dataset, batch_size: int) -> Iterator[Sequence[Example]]:
    for start in range(0, len(dataset), batch_size):
        yield [dataset[row] for row in range(start, min(start + batch_size, len(dataset)))]


def _run(model: Model, rows: list[dict[str, np.ndarray]]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Inputs and outputs of one batch."""
    inputs = {name: torch.from_numpy(np.ascontiguousarray(value)).to(model.device) for name, value in model.processor.collate(rows).items()}
    return inputs, model.module(**inputs)


def _classify(model: Model, dataset: Dataset, batch_size: int) -> list[Prediction]:
    labels = model.task.labels
    if not labels:
        raise UserError("this model has no classes; attach an artifact with a class head before evaluating it")
    held = {example.label for example in dataset if example.label is not None}
    if strange := sorted(held - set(labels)):
        raise UserError(f"the data has the class {strange[0]!r}, which the model does not know; its classes: {', '.join(labels[:10])}{', …' if len(labels) > 10 else ''}")
    index = {label: number for number, label in enumerate(labels)}
    predictions = []
    for examples in _batches(dataset, batch_size):
        _, outputs = _run(model, [model.processor(example.raw) for example in examples])
        scores = torch.log_softmax(outputs["logits"].double(), dim=-1).cpu().numpy()  # (B, C)
        for example, row in zip(examples, scores, strict=True):
            best = np.argsort(-row, kind="stable")[:TOP]
            numbers = {} if example.label is None else {"nll": float(-row[index[example.label]])}
            likely = {labels[place]: float(np.exp(row[place])) for place in best}
            predictions.append(Prediction(example.id, example.label, labels[best[0]], likely, numbers))
    return predictions


def _score_targets(model: Model, dataset: Dataset, batch_size: int) -> list[Prediction]:
    """Negative log likelihood of every target given its prompt, in nats."""
    predictions = []
    for examples in _batches(dataset, batch_size):
        pairs = [prompt_and_target(model.processor, example) for example in examples]
        inputs, outputs = _run(model, [tensors for tensors, _ in pairs])
        for row, (example, (_, start)) in enumerate(zip(examples, pairs, strict=True)):
            is_real = inputs["attention_mask"][row].bool()  # (T,), padding may be on either side
            ids = inputs["input_ids"][row][is_real]  # (t,)
            scores = torch.log_softmax(outputs["logits"][row][is_real].double(), dim=-1)  # (t, V)
            likelihood = scores[start - 1 : -1].gather(1, ids[start:, None])  # (targets, 1): position i foretells token i + 1
            numbers = {"nll": float(-likelihood.sum()), "tokens": float(len(ids) - start)}
            predictions.append(Prediction(example.id, example.text, None, {}, numbers))
    return predictions


def _transcribe(model: Model, dataset: Dataset, batch_size: int) -> list[Prediction]:
    """Best path of connectionist temporal classification: repeats merge, blanks go."""
    vocabulary = model.task.labels
    details: Mapping[str, Any] = model.task.details
    blank, separator = int(details.get("blank", 0)), str(details.get("separator", "|"))
    predictions = []
    for example in dataset:
        if example.text is None:
            raise UserError(f"{example.source or example.id}: no transcript; add a column text")
        _, outputs = _run(model, [model.processor(example.raw)])
        path = torch.unique_consecutive(outputs["logits"][0].argmax(-1)).tolist()  # (frames,) without repeats
        if len(vocabulary) != outputs["logits"].shape[-1]:
            raise UserError(f"the model scores {outputs['logits'].shape[-1]} symbols, and its task names {len(vocabulary)}; name the whole vocabulary as the task's labels")
        text = "".join(vocabulary[symbol] for symbol in path if symbol != blank).replace(separator, " ").strip()
        predictions.append(Prediction(example.id, example.text, text))
    return predictions


def _regress(model: Model, dataset: Dataset, batch_size: int) -> list[Prediction]:
    predictions = []
    name = model.signature.outputs[0].name
    for examples in _batches(dataset, batch_size):
        _, outputs = _run(model, [model.processor(example.raw) for example in examples])
        answers = outputs[name].double().cpu().numpy().reshape(len(examples), -1)  # (B, numbers)
        for example, answer in zip(examples, answers, strict=True):
            truth = tuple(float(value) for value in example.target.reshape(-1))
            predictions.append(Prediction(example.id, truth, tuple(float(value) for value in answer)))
    return predictions
