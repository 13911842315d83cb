"""Run a model over a data set: the processor and the module that training uses, in eval mode, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from polyadapt.data.dataset import Dataset, Example
from polyadapt.errors import UserError
from polyadapt.evaluation.pairs import denoise, match
from polyadapt.evaluation.prediction import Prediction, Predictor
from polyadapt.model import Model
from polyadapt.training.texts import join, spelled, vocabulary_of
from polyadapt_runtime.ctc import read_frames
from polyadapt_runtime.errors import InputError

TOP = 5
Row = dict[str, np.ndarray]
Tensors = dict[str, torch.Tensor]


def model_predictor(model: Model, batch_size: int = 32, beams: int = 1) -> Predictor:
    """A predictor for `evaluate` that runs a model."""

    def run(dataset: Dataset) -> Sequence[Prediction]:
        return predict(model, dataset, batch_size, beams)

    return run


def predict(model: Model, dataset: Dataset, batch_size: int = 32, beams: int = 1) -> list[Prediction]:
    """Predictions in the data set's order. They do not depend on `batch_size`, but for rounding.

    Args:
        model: with whatever is attached to it at this moment.
        dataset: examples with labels (`classification`), a target text (`causal-lm`, `ctc`), target numbers (`control`), captions
            (`image-text`) or the inputs beside a clean sample (`denoising`).
        batch_size: examples that are run at once. Inputs of different lengths only share a batch where a mask hides
            what was filled up.
        beams: texts that a search over the frames of task `ctc` follows; 1 takes the best path.

    Raises:
        UserError: the task has no predictions of its own, or the data does not fit it.
    """

    def transcribe(model: Model, dataset: Dataset, batch_size: int) -> list[Prediction]:
        return _transcribe(model, dataset, beams)

    ways: dict[str, Callable[[Model, Dataset, int], list[Prediction]]] = {
        "classification": _classify,
        "causal-lm": _score_targets,
        "ctc": transcribe,
        "control": _regress,
        "image-text": match,
        "denoising": denoise,
    }
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


def run_rows(model: Model, rows: Sequence[Row]) -> Iterator[tuple[list[int], Tensors, Tensors]]:
    """Run some examples at once, as far as their lengths allow.

    Yields:
        Positions among `rows`, inputs and outputs of each batch.
    """
    batches: dict[Any, list[int]] = {}
    for position, row in enumerate(rows):
        shapes = None if model.processor.pads_exactly else tuple(value.shape for value in row.values())
        batches.setdefault(shapes, []).append(position)
    for positions in batches.values():
        collated = model.processor.collate([rows[position] for position in positions])
        inputs = {name: torch.from_numpy(np.ascontiguousarray(value)).to(model.device) for name, value in collated.items()}
        yield positions, inputs, model.module(**inputs)


def _batches(dataset: Dataset, batch_size: int) -> Iterator[list[Example]]:
    for start in range(0, len(dataset), batch_size):
        yield [dataset[row] for row in range(start, min(start + batch_size, len(dataset)))]


def _tensors(model: Model, example: Example) -> Row:
    try:
        return model.processor(example.raw)
    except InputError as error:
        raise UserError(f"{example.source or example.id}: {error}") from error


def _output(model: Model, examples: Sequence[Example], name: str) -> np.ndarray:
    """One output for some examples, float64 [examples, …]."""
    rows = [_tensors(model, example) for example in examples]
    found: list[np.ndarray | None] = [None] * len(rows)
    for positions, _, outputs in run_rows(model, rows):
        for position, value in zip(positions, outputs[name].double().cpu().numpy(), strict=True):
            found[position] = value
    return np.stack([value for value in found if value is not None])


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
        logits = torch.from_numpy(_output(model, examples, "logits"))  # (B, C)
        if logits.shape[1] != len(labels):
            raise UserError(f"the model has {len(labels)} labels and scores {logits.shape[1]} classes; attach the artifact whose labels these are")
        scores = torch.log_softmax(logits, dim=-1).numpy()  # (B, C)
        for example, row in zip(examples, scores, strict=True):
            best = np.argsort(-row, kind="stable")[:TOP]
            numbers = {} if example.label is None else {"nll": float(-row[index[example.label]])}
            likely = {labels[place]: float(np.exp(row[place])) for place in best}
            predictions.append(Prediction(example.id, example.label, labels[best[0]], likely, numbers))
    return predictions


def _score_targets(model: Model, dataset: Dataset, batch_size: int) -> list[Prediction]:
    """Negative log likelihood of every target given its prompt, in nats: the tokens that training learns, the end token included."""
    names = model.processor.spec["inputs"]
    predictions: dict[str, Prediction] = {}
    for examples in _batches(dataset, batch_size):
        pairs = [_joined(model, example) for example in examples]
        for positions, inputs, outputs in run_rows(model, [row for row, _ in pairs]):
            for place, position in enumerate(positions):
                ids = inputs[names["ids"]][place]  # (T,)
                is_real = inputs[names["mask"]][place].bool() if names.get("mask") else torch.ones_like(ids, dtype=torch.bool)  # (T,)
                numbers = _likelihood(outputs["logits"][place][is_real], ids[is_real], pairs[position][1])
                example = examples[position]
                predictions[example.id] = Prediction(example.id, example.text, None, {}, numbers)
    return [predictions[example.id] for example in dataset]


def _joined(model: Model, example: Example) -> tuple[Row, int]:
    """One row of tokens and where its target starts; the first token has nothing before it and is never foretold."""
    try:
        row, start = join(model, example)
    except InputError as error:
        raise UserError(f"{example.source or example.id}: {error}") from error
    length = len(row[model.processor.spec["inputs"]["ids"]])
    if length < 2:
        raise UserError(f"{example.source or example.id}: {length} tokens, and the first is never foretold; give a longer text")
    return row, max(start, 1)


def _likelihood(logits: torch.Tensor, ids: torch.Tensor, start: int) -> dict[str, float]:
    """Of the tokens from `start` on. Scores at position i foretell token i + 1.

    Shape:
        logits [tokens, vocabulary], ids [tokens], padding left out.
    """
    scores = torch.log_softmax(logits[start - 1 : -1].double(), dim=-1)  # (targets, V)
    chosen = scores.gather(1, ids[start:, None])  # (targets, 1)
    return {"nll": float(-chosen.sum()), "tokens": float(len(chosen))}


def _transcribe(model: Model, dataset: Dataset, beams: int) -> list[Prediction]:
    """Texts by connectionist temporal classification, one clip at a time: no mask hides what would fill a batch up."""
    vocabulary = vocabulary_of(model)
    details: Mapping[str, Any] = model.task.details
    blank = int(details.get("blank_id", 0))
    predictions = []
    for example in dataset:
        if example.text is None:
            raise UserError(f"{example.source or example.id}: no transcript; add a column text")
        logits = _output(model, [example], "logits")[0]  # (frames, V)
        if len(vocabulary) != logits.shape[-1]:
            raise UserError(f"the model scores {logits.shape[-1]} symbols, and its task names {len(vocabulary)}; name the whole vocabulary as the task's labels")
        truth = spelled(example.text, vocabulary, model.task.separator)
        predictions.append(Prediction(example.id, truth, read_frames(logits, vocabulary, blank, model.task.separator, beams)))
    return predictions


def _regress(model: Model, dataset: Dataset, batch_size: int) -> list[Prediction]:
    predictions = []
    name = model.signature.outputs[0].name
    for examples in _batches(dataset, batch_size):
        for example, answer in zip(examples, _output(model, examples, name), strict=True):
            truth = tuple(float(value) for value in example.target.reshape(-1))
            predictions.append(Prediction(example.id, truth, tuple(float(value) for value in answer.reshape(-1))))
    return predictions
