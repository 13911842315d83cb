"""Recordings of people who read texts, for task `synthesis`: what is checked before a voice learns from them, and how it hears them.

A text is that of the column `text` in the language of the column `language`, or phoneme ids in the column `ids`.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from polyadapt.data.dataset import Dataset, Example
from polyadapt.edits.attach import without_edits
from polyadapt.errors import UserError
from polyadapt.model import Model
from polyadapt_runtime.audio import read_audio
from polyadapt_runtime.errors import InputError

OTHERS = 4  # texts of other clips that a recording is compared with
# Ours: of captions of a second, a twentieth to a sixth of the right ones lie lower and a tenth of the wrong ones higher; whole
# sentences are told apart without a fault.
DOUBTFUL = -0.01
MOST_LEFT_OUT = 0.5  # share of the clips
LONGEST_S = 30.0
NO_PATH = -1000.0  # alignment score of a text that is longer than its recording

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Readings:
    """The parts of `TrainingData`, without the clips that were left out."""

    train: Dataset
    validation: Dataset | None


def text_inputs(model: Model, example: Example) -> dict[str, np.ndarray]:
    """Ids of an example's text, as the model takes them.

    Raises:
        UserError: no text, or ids that are none.
        InputError: it cannot be spoken, or has phonemes that the voice does not know.
    """
    if (ids := example.extra.get("ids")) is not None:
        return dict(model.processor(_given_ids(model, example, ids.split() if isinstance(ids, str) else ids)))
    if not example.text:
        raise UserError(f"{example.source or example.id}: no text goes with this recording; add a column text")
    processor, language = model.processor, str(example.extra.get("language") or "")
    if language and processor.spec.get("kind") == "phonemes":
        processor = type(processor)({**processor.spec, "language": language}, processor.assets)
    return dict(processor(example.text))


def _given_ids(model: Model, example: Example, ids: Any) -> np.ndarray:
    """Ids of phonemes from a row, int64 [tokens].

    Raises:
        UserError: none, something else than whole numbers, or one that the model does not have.
    """
    where, config = example.source or example.id, model.family.config(model.backbone)
    known = int(config.get("vocab_size") or config.get("vocabulary") or np.iinfo(np.int64).max)
    try:
        found = [int(value) for value in ids if not isinstance(value, float)]
    except (TypeError, ValueError):
        found = []
    if not found or len(found) != len(ids):
        raise UserError(f"{where}: column ids holds whole numbers, one for each phoneme, found {str(ids)[:60]!r}")
    if strange := [value for value in found if not 0 <= value < known]:
        raise UserError(f"{where}: column ids has {strange[0]}, and {model.reference} has ids from 0 to {known - 1}")
    return np.array(found, dtype=np.int64)


def read(model: Model, text: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the model says of a text without the adapters that are learning from it."""
    with torch.no_grad(), without_edits(model.module), torch.autocast(model.device.type, enabled=False):
        found = model.family.read(model.backbone, {name: torch.from_numpy(value).to(model.device) for name, value in text.items()})
    return {name: value.cpu().numpy() for name, value in found.items()}


def hear(model: Model, example: Example) -> dict[str, np.ndarray]:
    """What the model hears in an example's recording.

    Raises:
        UserError: the model learns nothing from recordings, one cannot be read, or one is so long that a part would have to stand for the whole text.
    """
    rate_hz = int(str(model.task.details.get("sample_rate_hz", 0)))
    if not rate_hz:
        raise UserError(f"{model.reference} does not say its sampling rate, so it cannot learn from recordings; load it as usat:FOLDER")
    try:
        samples = read_audio(example.raw, {"sample_rate_hz": rate_hz, "seconds": None, "minimum_seconds": 0.1, "maximum_seconds": LONGEST_S + 1})
    except InputError as error:
        where = example.source or example.id
        raise UserError(str(error) if where in str(error) else f"{where}: {error}") from error
    if len(samples) > LONGEST_S * rate_hz:
        raise UserError(f"{example.source or example.id}: the recording lasts more than {LONGEST_S:g} s; cut it and its text into sentences")
    with torch.autocast(model.device.type, enabled=False):  # heard once, kept for the whole run
        found = model.family.hear(model.backbone, torch.from_numpy(samples).to(model.device))
    return {name: value.cpu().numpy() for name, value in found.items()}


def read_by_one(model: Model, data: Any, is_checked: bool = True) -> tuple[Model, Any, dict[str, Any]]:
    """The model with the conditions of the one who reads, the clips whose texts fit, and what was left out.

    Args:
        model: the base.
        data: recordings with texts.
        is_checked: whether texts are compared with each other's recordings.

    Raises:
        UserError: texts with phonemes that the voice lacks, each listed with its count; no recording that is long enough; or
            texts most of which do not fit.
    """
    for part in (data.train, data.validation):
        if part is not None:
            _refuse_unspeakable(model, part)
    kept = [hear(model, example) for example in data.train]
    model = replace(model, conditions=_conditions(model, data.train, kept))
    if not is_checked:
        return model, data, {}
    train, unfit = _fitting(model, data.train, kept)
    if unfit:  # they may be of somebody else, whose voice is not meant either
        model = replace(model, conditions=_conditions(model, data.train, [found for found, example in zip(kept, data.train, strict=True) if example.id not in unfit]))
    if data.validation is None:
        return model, Readings(train, None), {"left_out": unfit} if unfit else {}
    validation, others = _fitting(model, data.validation, [hear(model, example) for example in data.validation])
    return model, Readings(train, validation), {"left_out": unfit | others} if unfit or others else {}


def _conditions(model: Model, dataset: Dataset, kept: Sequence[dict[str, np.ndarray]]) -> dict[str, Any]:
    """The mean of what is heard of the one who reads, by the name of the input that takes it.

    Raises:
        UserError: no recording is long enough.
    """
    taken = {spec.name for spec in model.signature.inputs}
    names = dict.fromkeys(name for heard in kept for name in heard if name in taken)
    found: dict[str, Any] = {name: np.mean([heard[name] for heard in kept if name in heard], axis=0, dtype=np.float32) for name in names}
    if lacking := [name for name in model.family.conditioners(model.backbone) if name not in found]:
        raise UserError(f"{dataset.name}: no recording is long enough to compute {lacking[0]!r} from it; give longer clips")
    return found


def _fitting(model: Model, dataset: Dataset, kept: Sequence[dict[str, np.ndarray]]) -> tuple[Dataset, dict[str, float]]:
    """The recordings whose texts may be theirs, and the alignment scores of those that were left out.

    Raises:
        UserError: most were.
    """
    scores = _margins(model, dataset, kept)
    unfit = {dataset[row].id: round(score, 3) for row, score in enumerate(scores) if score < DOUBTFUL}
    if not unfit:
        return dataset, {}
    listed = ", ".join(f"{name} ({score if score > NO_PATH / 2 else 'too short for its text'})" for name, score in list(unfit.items())[:8])
    if len(unfit) > MOST_LEFT_OUT * len(scores):
        found = f"{len(unfit)} of {len(scores)} recordings fit other texts better than their own (alignment scores: {listed})"
        raise UserError(f"{dataset.name}: {found}; put texts and recordings in order, or set train.check_readings = false")
    _log.warning("%s: left out %d recordings, which fit other texts better than their own (alignment scores: %s)", dataset.name, len(unfit), listed)
    return dataset.subset(row for row, score in enumerate(scores) if score >= DOUBTFUL), unfit


def _refuse_unspeakable(model: Model, dataset: Dataset) -> None:
    """Read every text, and say in one line what cannot be spoken."""
    found: Counter[str] = Counter()
    first = ""
    for example in dataset:
        try:
            text_inputs(model, example)
        except InputError as error:
            first = first or example.source or example.id
            found[str(error)] += 1
    if found:
        listed = "; ".join(f"{what} ({count} rows)" for what, count in found.most_common(3))
        raise UserError(
            f"{dataset.name}, {first}: {sum(found.values())} of {len(dataset)} texts cannot be spoken: {listed}; spell them otherwise, name their language, or remove these rows"
        )


def _margins(model: Model, dataset: Dataset, kept: Sequence[dict[str, np.ndarray]]) -> list[float]:
    """Of each recording: how much better its own text fits than the best of some other texts; 1 where there are none to compare with."""
    texts = [text_inputs(model, example) for example in dataset]
    margins = []
    for row, found in enumerate(kept):
        own = _score(model, texts[row], found)
        fits = [_score(model, text, found) for text in _others(texts, row)]
        alone = NO_PATH if own == NO_PATH else 1.0
        margins.append(own - max(fits) if fits else alone)
    return margins


def _others(texts: Sequence[dict[str, np.ndarray]], row: int) -> list[dict[str, np.ndarray]]:
    """Some texts that follow a row's, none of which says the same."""
    behind = (texts[(row + step) % len(texts)] for step in range(1, len(texts)))
    differing = (text for text in behind if any(not np.array_equal(value, texts[row][name]) for name, value in text.items()))
    return list(itertools.islice(differing, OTHERS))


def _score(model: Model, text: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> float:
    """The alignment of one text with one recording; a text with more tokens than the recording has frames fits nothing."""
    arrays = {**text, **{name: value for name, value in found.items() if name not in model.conditions}, **model.conditions}
    try:
        return float(model.family.alignment(model.backbone, {name: torch.from_numpy(np.asarray(value))[None].to(model.device) for name, value in arrays.items()})[0])
    except UserError:
        return NO_PATH
