"""Tasks whose examples are a pair: pictures with their captions, and samples with the noise that was put on them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from polyadapt.data.dataset import Dataset
from polyadapt.errors import UserError
from polyadapt.evaluation.prediction import Prediction
from polyadapt.model import Model
from polyadapt.training.batches import Batch, Examples
from polyadapt.training.noising import Noising

SEED = 0  # of steps and noise, which are the same whatever is measured


def match(model: Model, dataset: Dataset, batch_size: int) -> list[Prediction]:
    """Each picture's caption, chosen among all distinct captions of the data; equal captions are one.

    Raises:
        UserError: a picture without a caption, or all have the same.
    """
    captions = list(dict.fromkeys(example.text or "" for example in dataset))
    if len(captions) < 2:
        raise UserError(f"{dataset.name!r} has {len(captions)} caption, and pictures are matched with one of several; add rows")
    pictures, texts = [], dict[str, torch.Tensor]()
    for rows, batch in _batches(model, dataset, batch_size):
        outputs = model.module(**batch.to(model.device).inputs)
        pictures.append(outputs["image_features"].double().cpu())  # (B, width)
        texts |= dict(zip((dataset[row].text or "" for row in rows), outputs["text_features"].double().cpu(), strict=True))
    scores = torch.cat(pictures) @ torch.stack([texts[caption] for caption in captions]).T  # (examples, captions), cosines
    return [Prediction(example.id, example.text, captions[int(row.argmax())]) for example, row in zip(dataset, scores, strict=True)]


def denoise(model: Model, dataset: Dataset, batch_size: int) -> list[Prediction]:
    """The squared error of what a model takes for the noise in each sample, at a step and with noise drawn by its row."""
    noising, output = Noising(model.task, SEED), model.signature.outputs[0].name
    made = []
    for rows, clean in _batches(model, dataset, batch_size):
        batch = noising(clean, 0)
        off = model.module(**batch.to(model.device).inputs)[output].double().cpu() - batch.targets["target"].double()
        for row, error in zip(rows, off.flatten(1), strict=True):
            made.append(Prediction(dataset[row].id, None, None, {}, {"squared_error": float(error @ error), "values": float(error.numel())}))
    return made


def _batches(model: Model, dataset: Dataset, batch_size: int) -> Iterator[tuple[list[int], Batch]]:
    examples = Examples(dataset, model, memory_bytes=0)
    for start in range(0, len(dataset), batch_size):
        rows = list(range(start, min(start + batch_size, len(dataset))))
        yield rows, examples.batch(rows)
