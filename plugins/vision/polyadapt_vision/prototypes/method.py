"""Prototypes: score of class c = temperature * cos(f(x), mu_c), mu_c the mean of f over the class; f is frozen.

Papers: Prototypical Networks (arXiv 1703.05175); the baseline `incremental-frozen` of A Bag of Tricks for Few-Shot
Class-Incremental Learning (arXiv 2403.14392), without its stage of training the encoder on the base classes.
Ours: means of directions by default, so that no single bright example decides; metrics on the validation part.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt.artifact import Artifact
from polyadapt.edits import Edit, Form
from polyadapt.errors import UserError
from polyadapt.methods.base import Method
from polyadapt.model import Model
from polyadapt.training import Event, Run, TrainResult, frozen_features
from polyadapt.training.batches import HasParts
from polyadapt.training.fitting import make_artifact
from polyadapt.training.form import refuse_attached
from polyadapt.training.provenance import described
from polyadapt_vision.prototypes.card import PrototypesOptions
from polyadapt_vision.prototypes.sessions import SessionResult, measure, prototype, rows_by_class, session_classes, summary


class PrototypeForm(Form):
    """One direction a class: parameters, so that they may also be trained on from where the means are.

    Shape:
        directions [features, classes], of any length.
    """

    def __init__(self, directions: torch.Tensor, temperature: float) -> None:
        super().__init__()
        self.directions = nn.Parameter(directions)
        self._temperature = temperature

    def edits(self) -> list[Edit]:
        weight = F.normalize(self.directions, dim=0) * self._temperature  # (d, C)
        return [Edit("head", "prototypes", {"weight": weight, "bias": weight.new_zeros(weight.shape[1]), "cosine": weight.new_ones(1)})]


class Prototypes(Method):
    """The method `prototypes`."""

    def build(self, model: Model, options: PrototypesOptions, generator: torch.Generator) -> Form:
        """Random directions, for plans and for people with a training loop of their own; `fit` computes them.

        Raises:
            UserError: the model has no classes.
        """
        self._check(model)
        if model.ports.head is None or not model.task.labels:
            raise UserError(f"prototypes needs class labels, and the task {model.task.kind!r} of {model.reference} has none; use a labelled data set")
        return PrototypeForm(torch.randn(model.ports.head.in_features, len(model.task.labels), generator=generator), options.temperature)

    def fit(self, model: Model, options: PrototypesOptions, data: HasParts, run: Run) -> Artifact:
        """Learn the classes session by session.

        The artifact's labels are in the order of arrival. Its provenance holds, measured on the validation part where
        there is one, accuracy, base, novel and harmonic mean after each session, their average, and the performance drop.

        Args:
            model: with the data's labels.
            options: the method's.
            data: the part `train` and, to measure on, `validation`.
            run: settings and listener.

        Raises:
            UserError: options and data do not go together.
        """
        refuse_attached(model)
        if model.task.kind != "classification":
            raise UserError(f"prototypes learns classes, and {model.reference} is loaded for task {model.task.kind!r}; load it with task = 'classification'")
        self._check(model)
        began = time.monotonic()
        sessions = session_classes(model.task.labels, options)
        rows = rows_by_class(data.train, sessions, options.shots)
        order = tuple(label for session in sessions for label in session)
        model = model.with_labels(order)
        used = [row for label in order for row in rows[label]]
        width = model.ports.head.in_features if model.ports.head is not None else 0
        self._say(run, "started", method=self.card.id, step=0, steps=len(sessions), epochs=len(sessions), examples=len(used), parameters=width * len(order), prefix="features")
        features = frozen_features(model, data.train.subset(used), run)  # (used, d)
        pieces = dict(zip(order, torch.split(features, [len(rows[label]) for label in order]), strict=True))
        directions = torch.stack([prototype(pieces[label], options.average) for label in order], dim=1)  # (d, C)
        results = self._measured(model, directions, sessions, data, run)
        metrics: dict[str, Any] = {"validation": summary(results), "sessions": [result.to_dict() for result in results]} if results else {}
        seconds = time.monotonic() - began
        self._say(run, "finished", step=len(sessions), epochs=len(sessions), seconds=seconds, metrics=metrics.get("validation", {}))
        edits = tuple(PrototypeForm(directions, options.temperature).lower())
        result = TrainResult(edits, metrics, tuple(metrics.get("sessions", ())), len(sessions), len(sessions), seconds, directions.numel(), "features")
        return make_artifact(model, self, options, run, result, described((("train", data.train), ("validation", data.validation))))

    def _measured(self, model: Model, directions: torch.Tensor, sessions: list[tuple[str, ...]], data: HasParts, run: Run) -> list[SessionResult]:
        """What each session comes to on the validation part; nothing without one."""
        if data.validation is None:
            return []
        index = {label: number for number, label in enumerate(model.task.labels)}
        features = frozen_features(model, data.validation, run)  # (n, d)
        targets = torch.tensor([index[str(example.label)] for example in data.validation])  # (n,)
        results: list[SessionResult] = []
        seen = 0
        for number, session in enumerate(sessions):
            seen += len(session)
            results.append(measure(number, directions[:, :seen], len(sessions[0]), features, targets))
            # Called `seen`, so that a report does not draw it over the accuracies of trained epochs.
            figures = {("seen" if name == "accuracy" else name): value for name, value in results[-1].to_dict().items() if name not in ("session", "classes")}
            self._say(run, "epoch", epoch=number + 1, step=number + 1, classes=seen, validation=figures)
        return results

    def _say(self, run: Run, kind: str, **values: Any) -> None:
        run.emit(Event(kind, values))
