"""Arms and baselines: each is adapted, measured and kept, or taken from where an earlier run left it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from polyadapt import api
from polyadapt.artifact import Artifact
from polyadapt.data.dataset import Dataset
from polyadapt.data.split import Parts
from polyadapt.errors import UserError, nearest
from polyadapt.evaluation.baselines import majority, mean
from polyadapt.evaluation.evaluation import Evaluation, evaluate
from polyadapt.evaluation.prediction import Prediction, Predictor
from polyadapt.files import read_json, write_json
from polyadapt.hookspecs import Event
from polyadapt.host import Host
from polyadapt.job.directory import EventLog, RunDirectory, clear
from polyadapt.model import Model
from polyadapt.recipe import Recipe
from polyadapt.report.result import ArmResult
from polyadapt.training import TrainingData
from polyadapt.training.processes import Processes
from polyadapt.training.reading import read_by_one

PLAIN = ("frozen", "majority", "mean")
"""Baselines that are no methods."""


@dataclass(frozen=True)
class Arm:
    """One thing to measure. `method` is a method's id, or one of `PLAIN`."""

    name: str
    method: str
    role: str
    options: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Whether nothing is trained."""
        return self.role == "baseline" and self.method in PLAIN


@dataclass
class Bench:
    """What all arms of a run share: the model, the split, the metrics and the directory."""

    host: Host
    recipe: Recipe
    model: Model
    parts: Parts
    metrics: tuple[str, ...]
    arms: tuple[Arm, ...]
    directory: RunDirectory
    resume: bool
    emit: Callable[[Event], None]
    model_options: Mapping[str, Any] = field(default_factory=dict)

    def follow(self, processes: Processes) -> None:
        """What every process but the main one does: train along, and write, measure and say nothing.

        At each arm all processes meet before the main one writes anything, so that all see alike whether it trains.
        """
        for arm in self.arms:
            processes.wait()
            has_work = self._trains(arm)
            processes.wait()
            if has_work:
                train = {"seed": self.recipe.seed, **self.recipe.train, **arm.train}
                folder = self.directory.training(arm.name)
                api.adapt_parts(self.model_of(arm), arm.method, self.parts, arm.options, train, directory=folder, resume=self.resume, host=self.host)
            processes.wait()

    def lead(self, processes: Processes) -> list[ArmResult]:
        """What the main process does: every arm in turn, from an earlier run where that finished it."""
        results = []
        for arm in self.arms:
            processes.wait()
            processes.wait()  # the others look in between whether this arm trains
            results.append(self.measure(arm))
            processes.wait()
        return results

    def _trains(self, arm: Arm) -> bool:
        """Whether an arm has to be trained, from what lies in the run's directory."""
        if arm.is_plain or (self.resume and self.directory.result(arm.name).is_file()):
            return False
        return not (self.resume and (self.directory.artifact(arm.name, arm.role) / "artifact.json").is_file())

    def measure(self, arm: Arm) -> ArmResult:
        """The result of an arm, from an earlier run where that finished it."""
        stored = self.directory.result(arm.name)
        if self.resume and stored.is_file():
            self.announce({"kind": "arm", "name": arm.name, "state": "kept"})
            return self._stored(arm)
        self.announce({"kind": "arm", "name": arm.name, "state": "started"})
        result = self._plain(arm) if arm.is_plain else self._trained(arm)
        assert isinstance(result.evaluation, Evaluation)
        row = {**result.to_dict(predictions=False), "evaluation": None, "predictions": [prediction.to_dict() for prediction in result.evaluation.predictions]}
        write_json(stored, row)
        clear(self.directory.training(arm.name))
        self.announce({"kind": "arm", "name": arm.name, "state": "finished", "metric": result.evaluation.metric, "value": result.evaluation.value})
        return result

    def announce(self, event: Event) -> None:
        """Tell the listener and every plugin; events of training reach the plugins by the host's `adapt`."""
        self.emit(event)
        self.host.event(event)

    def artifact(self, arm: Arm) -> Artifact:
        """The saved artifact of a finished arm."""
        return Artifact.load(self.directory.artifact(arm.name, arm.role))

    def model_of(self, arm: Arm) -> Model:
        """The run's model, or the one that a baseline asks for by options of its own."""
        if not arm.model:
            return self.model
        return self.host.load(self.recipe.model.reference, {**self.model_options, **arm.model})

    def _trained(self, arm: Arm) -> ArmResult:
        model = self.model_of(arm)
        folder = self.directory.artifact(arm.name, arm.role)
        log = EventLog(self.directory.events(arm.name), self.resume)
        if not (self.resume and (folder / "artifact.json").is_file()):
            self._adapt(arm, model, log).save(folder)
        artifact = Artifact.load(folder)
        found = api.evaluate(model, self.parts.test, artifact, metrics=self.metrics, seed=self._seed, host=self.host)
        started, finished = log.last("started"), log.last("finished")
        return ArmResult(
            name=arm.name,
            method=arm.method,
            role=arm.role,
            options=dict(artifact.options),
            train={**self.recipe.train, **arm.train},
            trainable_parameters=int(started.get("parameters", 0)),
            artifact_bytes=artifact.size_bytes,
            seconds=float(finished.get("seconds", 0.0)),
            curves=log.curves(),
            evaluation=found,
        )

    def _adapt(self, arm: Arm, model: Model, log: EventLog) -> Artifact:
        def hear(event: Event) -> None:
            log(event)
            self.emit({**event, "arm": arm.name})

        train = {"seed": self.recipe.seed, **self.recipe.train, **arm.train}
        folder = self.directory.training(arm.name)
        return api.adapt_parts(model, arm.method, self.parts, arm.options, train, directory=folder, resume=self.resume, emit=hear, host=self.host)

    def _plain(self, arm: Arm) -> ArmResult:
        began = time.perf_counter()
        if arm.method == "frozen":
            model = self.model
            if model.task.kind == "synthesis":  # the voice of those who train the arms, and not of what is measured
                model = read_by_one(model, TrainingData(self.parts.train), is_checked=False)[0]
            found = api.evaluate(model, self.parts.test, metrics=self.metrics, seed=self._seed, host=self.host)
        else:
            predictor = majority(self.parts.train) if arm.method == "majority" else mean(self.parts.train)
            found = evaluate(predictor, self.parts.test, self.metrics, generator=np.random.default_rng(self._seed))
        return ArmResult(arm.name, "frozen base" if arm.method == "frozen" else arm.method, "baseline", seconds=time.perf_counter() - began, evaluation=found)

    def _stored(self, arm: Arm) -> ArmResult:
        """Measure stored predictions again: the same numbers, without running a model."""
        row = read_json(self.directory.result(arm.name), "result of an arm")
        predictions = [Prediction.from_dict(prediction) for prediction in row.pop("predictions")]
        known = {key: value for key, value in row.items() if key != "evaluation"}
        return replace(ArmResult(**known), evaluation=evaluate(_recited(predictions), self.parts.test, self.metrics, generator=np.random.default_rng(self._seed)))

    @property
    def _seed(self) -> list[int]:
        """Of the resampling behind intervals; not that of training."""
        return [self.recipe.seed, 1]


def arms_of(recipe: Recipe, model: Model, dataset: Dataset, host: Host) -> list[Arm]:
    """Baselines, then arms, as the recipe names them.

    Raises:
        UserError: an unknown method or baseline, or a baseline that cannot answer for these data.
    """
    arms = [Arm(arm.name, arm.method, arm.role, arm.method_options(), arm.train, arm.model) for arm in recipe.arm]
    for arm in arms:
        host.registry.methods.get(arm.method)
        if arm.model and arm.role != "baseline":
            raise UserError(f'arm {arm.name!r} asks for another model, and arms of one recipe share the base; give it role = "baseline", or write a recipe of its own')
    names = recipe.evaluate.baselines if recipe.evaluate.baselines is not None else default_baselines(model, dataset)
    baselines = [_baseline(name, model, dataset, host, {arm.name for arm in arms}) for name in names]
    return [*baselines, *arms]


def default_baselines(model: Model, dataset: Dataset) -> tuple[str, ...]:
    """What a result has to beat when the recipe does not say: the frozen base where it can answer, and the cheapest learner."""
    if model.task.kind == "classification":
        return ("frozen",) * _knows_classes(model, dataset) + ("majority", "linear-probe")
    if model.task.kind == "control":
        return ("mean", "frozen")
    return ("frozen",) if _knows_classes(model, dataset) else ("linear-probe",)


def _baseline(name: str, model: Model, dataset: Dataset, host: Host, taken: set[str]) -> Arm:
    if name == "frozen" and not _knows_classes(model, dataset):
        lacking = "symbols" if model.task.kind == "ctc" else f"class {next(label for label in dataset.labels if label not in model.task.labels)!r}"
        others = "linear-probe" if model.task.kind == "ctc" else "linear-probe or majority"
        raise UserError(f"baseline 'frozen': {model.reference} has no {lacking}, so the base cannot answer; use {others}")
    if name not in PLAIN and name not in host.registry.methods:
        raise UserError(f"unknown baseline {name!r}{nearest(name, [*PLAIN, *host.registry.methods.ids()])}")
    title = name if name not in taken else f"baseline-{name}"
    return Arm(title, name, "baseline")


def _knows_classes(model: Model, dataset: Dataset) -> bool:
    if model.task.kind == "ctc":
        return model.ports.head is None or bool(model.task.labels)
    return model.task.kind != "classification" or (bool(dataset.labels) and set(dataset.labels) <= set(model.task.labels))


def _recited(predictions: Sequence[Prediction]) -> Predictor:
    def predict(dataset: Dataset) -> Sequence[Prediction]:
        return predictions

    return predict
