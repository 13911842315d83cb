"""`fit`: from a model, a method and data to an artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel

from polyadapt.artifact import CONDITION, Artifact
from polyadapt.errors import UserError
from polyadapt.model import Model
from polyadapt.preprocessing import preprocessing
from polyadapt.training.alphabet import alphabet_of, refuse_letters_outside
from polyadapt.training.batches import HasParts
from polyadapt.training.events import Emit, ignore
from polyadapt.training.form import TrainPlan, TrainResult, refuse_attached, train_form
from polyadapt.training.processes import find_processes, moved
from polyadapt.training.provenance import described, split_of, versions
from polyadapt.training.reading import read_by_one
from polyadapt.training.run import Run
from polyadapt.training.settings import TrainSettings

if TYPE_CHECKING:
    from polyadapt.methods.base import Method

__all__ = ["Run", "fit", "fit_form", "make_artifact"]


def fit(
    model: Model,
    method: Method,
    options: Any,
    data: HasParts,
    settings: TrainSettings | None = None,
    emit: Emit = ignore,
    directory: Path | None = None,
    resume: bool = False,
    seed: int | None = None,
) -> Artifact:
    """Adapt a model to data by a method: its own `fit(model, options, data, run)` where it has one, else the common loop.

    Args:
        model: left as it was found, bit for bit, also when training fails.
        method: what to train.
        options: the method's, validated.
        data: the parts `train` and, if there is one, `validation`.
        settings: how to train.
        emit: hears every event.
        directory: where checkpoints go; none are written without it.
        resume: go on from the newest checkpoint in `directory`; a run begins where there is none.
        seed: instead of the settings' own.

    Raises:
        UserError: model, method, data and settings do not go together.
        TrainingError: not-a-number, divergence, memory, or Ctrl-C.
    """
    chosen = settings or TrainSettings()
    run = Run(chosen, emit, None if directory is None else Path(directory), resume, chosen.seed if seed is None else seed)
    own = getattr(method, "fit", None)
    if own is not None:
        # Alphabets are left to the method: it may have one for each language.
        artifact: Artifact = own(model if model.task.kind == "ctc" else labelled(model, data), options, data, run)
    else:
        artifact = fit_form(model, method, options, data, run)
    split = split_of(data)
    return replace(artifact, provenance={**artifact.provenance, **split}) if split else artifact


def fit_form(model: Model, method: Method, options: Any, data: HasParts, run: Run) -> Artifact:
    """The common way: build the method's form, train it, lower it.

    Raises:
        UserError: as `fit`.
        TrainingError: as `fit`.
    """
    refuse_attached(model)
    model = labelled(model, data)
    facts: dict[str, Any] = {}
    if model.task.kind == "synthesis":
        model, data, facts = read_by_one(model, data, run.settings.check_readings)
    processes = find_processes(run.settings.device, run.settings.precision)
    parts = described((("train", data.train), ("validation", data.validation)))
    decides = {"method": method.card.id, "options": plain(options), "base_id": model.base_id, "labels": list(model.task.labels), "data": parts}
    with moved(model.module, processes.device):
        form = method.build(model, options, torch.Generator().manual_seed(run.seed))
        plan = TrainPlan(method.card.learning_rate, method.card.weight_decay, decides=decides, method=method.card.id)
        result = train_form(model, form, data, run, plan)
    made = make_artifact(model, method, options, run, result, parts)
    own = {f"{CONDITION}{name}": torch.from_numpy(value) for name, value in model.conditions.items()}
    return replace(made, own={**made.own, **own}, provenance={**made.provenance, **facts})


def make_artifact(model: Model, method: Method, options: Any, run: Run, result: TrainResult, parts: Mapping[str, Any]) -> Artifact:
    """Put a result into an envelope with its provenance.

    Args:
        model: the base, with the labels that were trained.
        method: which method.
        options: its options.
        run: seed and settings.
        result: what was trained.
        parts: sizes and hashes of the data, as `described` gives them.
    """
    return Artifact(
        method=method.card.id,
        base_id=model.base_id,
        family=model.family.card.id,
        task=model.task.kind,
        edits=result.edits,
        options=plain(options),
        labels=model.task.labels if model.ports.head is not None else (),
        dtype=str(next(model.module.parameters()).dtype).removeprefix("torch."),
        provenance={
            "seed": run.seed,
            "settings": run.settings.model_dump(mode="json"),
            "data": dict(parts),
            "inputs": preprocessing(model),
            "metrics": result.metrics,
            "parameters": result.parameters,
            "steps": result.steps,
            "epochs": result.epochs,
            "versions": versions(model),
        },
    )


def labelled(model: Model, data: HasParts) -> Model:
    """The model with the data's classes, in the data's order unless it has the same ones already, or with the letters of its transcripts.

    Raises:
        UserError: a task with classes and data without, a validation class that is not trained, or letters that are not.
    """
    if model.task.kind == "ctc" and model.ports.head is not None:
        return _lettered(model, data)
    if model.task.kind != "classification":
        return model
    labels = data.train.labels
    if not labels:
        raise UserError(f"task 'classification' needs labels, and {data.train.name!r} has none; add a column label, or folders of classes")
    return model if set(labels) == set(model.task.labels) else model.with_labels(tuple(labels))


def _lettered(model: Model, data: HasParts) -> Model:
    """The model with the alphabet of the training texts, unless it has one already."""
    texts = [example.text for example in data.train if example.text]
    if not texts:
        raise UserError(f"task 'ctc' needs transcripts, and {data.train.name!r} has none; add a column text")
    lettered = model if model.task.labels else model.with_labels(alphabet_of(texts))
    for part in (data.train, data.validation):
        if part is not None:
            refuse_letters_outside(part, lettered.task.labels, "the alphabet that is trained")
    return lettered


def plain(options: Any) -> dict[str, Any]:
    """Options as JSON values."""
    return options.model_dump(mode="json") if isinstance(options, BaseModel) else dict(options or {})
