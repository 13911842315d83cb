"""Training one form on one model: the building block that the common `fit` and methods with stages share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from polyadapt.edits import Edit, Form, attachments_of
from polyadapt.edits.attach import HOLDER, Attachments
from polyadapt.errors import UserError
from polyadapt.model import Model
from polyadapt.preprocessing import preprocessing
from polyadapt.training import randomness
from polyadapt.training.batches import Feed, HasParts, Transform
from polyadapt.training.checkpoint import clear_checkpoints, load_checkpoint
from polyadapt.training.drawing import Batches, grouped_by_length, shuffled
from polyadapt.training.feeds import Feeds, make_feeds
from polyadapt.training.keep import kept
from polyadapt.training.loop import Loop
from polyadapt.training.losses import Objective, objective_for
from polyadapt.training.modes import Switch, training_modes
from polyadapt.training.processes import Processes, find_processes, moved
from polyadapt.training.recompute import recomputing
from polyadapt.training.run import Run
from polyadapt.training.settings import TrainSettings
from polyadapt.training.watch import memory_error
from polyadapt.training.work import Resting, Work

NAME = "trained"


@dataclass(frozen=True)
class TrainResult:
    """What came out of a run.

    Attributes:
        edits: the trained form, lowered, on the CPU.
        metrics: of the state that was kept: `train` and, with a validation part, `validation`.
        history: one row an epoch.
        parameters: values that trained.
        prefix: what was computed once: `off`, `features`, or `N blocks`.
    """

    edits: tuple[Edit, ...]
    metrics: dict[str, Any]
    history: tuple[dict[str, Any], ...]
    steps: int
    epochs: int
    seconds: float
    parameters: int
    prefix: str


@dataclass(frozen=True)
class TrainPlan:
    """What a method wants of the loop beyond the settings.

    Attributes:
        learning_rate, weight_decay: where the settings name none.
        objective: the loss; the task's usual one when None.
        transform: what is done to every batch before the model sees it (noise, augmentation); the task's usual when None.
        batches: rows of every batch by seed and epoch, where they are not to be drawn from all rows alike.
        feed: puts a feed of the method's own around those of the loop, training and validation.
        resting: step (from 0) -> parameters that do not move in it.
        decides: further values that decide the result, compared on resume.
        method: id for the events.
    """

    learning_rate: float
    weight_decay: float = 0.0
    objective: Objective | None = None
    transform: Transform | None = None
    batches: Batches | None = None
    feed: Callable[[Feed], Feed] | None = None
    resting: Resting | None = None
    decides: Mapping[str, Any] | None = None
    method: str = ""


def train_form(model: Model, form: Form, data: HasParts, run: Run, plan: TrainPlan) -> TrainResult:
    """Attach a form, train it, lower it, and leave the model as it was, bit for bit.

    The form keeps what it learned, so a method with stages can attach it again. Other forms that are attached
    stay as they are and take part in the forward pass.

    Args:
        model: what the form was built for.
        form: its trainable parameters are what trains.
        data: the parts `train` and, if there is one, `validation`.
        run: settings, listener, directory, seed.
        plan: what the method wants.

    Raises:
        UserError: data or settings do not fit, or a checkpoint of another run is in the way.
        TrainingError: not-a-number, divergence, memory, or Ctrl-C.
    """
    if run.resume and run.directory is None:
        raise UserError("resume was asked for without a directory; name the directory of the run that was interrupted")
    processes = find_processes(run.settings.device, run.settings.precision)
    began = time.monotonic()
    with _memory_named(), moved(model.module, processes.device), kept(model.module), randomness.isolated(run.seed + processes.rank, processes.device):
        with attached(model, form.to(processes.device)) as attachments:
            parameters = trainable(attachments, form)
            processes.copy_from_main(parameters)
            switch = training_modes(model, attachments, form)
            feeds = make_feeds(model, form, attachments, data, run, processes, switch, plan.transform)
            if plan.feed is not None:
                feeds = replace(feeds, train=plan.feed(feeds.train), validation=None if feeds.validation is None else plan.feed(feeds.validation))
            loop = Loop(_work(model, form, switch, parameters, feeds, run, plan), processes, run.emit, run.directory, began)
            _take_up(loop, run, processes)
            _announce(loop, plan.method, feeds.prefix)
            with feeds.active(), recomputing(model, attachments) if run.settings.gradient_checkpointing else contextlib.nullcontext():
                loop.run()
            edits = tuple(_on_cpu(edit) for edit in form.lower())
        form.to("cpu")
    progress, metrics, seconds = loop.progress, _metrics(loop), loop.seconds
    loop.emit("finished", step=progress.step, epochs=progress.epoch, seconds=seconds, metrics=metrics)
    return TrainResult(edits, metrics, tuple(progress.history), progress.step, progress.epoch, seconds, sum(parameter.numel() for parameter in parameters), feeds.prefix)


@contextlib.contextmanager
def attached(model: Model, form: Form, name: str = NAME) -> Iterator[Attachments]:
    """Have a form attached within the block; what else is attached is put back as it was."""
    attachments = attachments_of(model.module, model.ports, model.backbone)
    active = attachments.active
    try:
        attachments.add(name, form, activate=False)
        attachments.activate(*active, name)
        yield attachments
    finally:
        if name in attachments.names:
            attachments.remove(name)
        if attachments.names:
            attachments.activate(*active)


def trainable(attachments: Attachments, form: Form) -> list[nn.Parameter]:
    """Parameters of this form that train, and those of the base that it trains; not those of other forms."""
    own = {id(parameter) for parameter in form.parameters()}
    others = {id(parameter) for held in attachments.forms.values() for parameter in held.parameters()} - own
    return [parameter for parameter in attachments.trainable() if id(parameter) not in others]


def refuse_attached(model: Model) -> None:
    """Refuse a model that carries adapters: an artifact belongs to a bare base.

    Raises:
        UserError: naming them.
    """
    held = getattr(model.module, HOLDER, None)
    if isinstance(held, Attachments):
        raise UserError(f"{model.reference} has adapters attached ({', '.join(held.names)}); detach them, or merge them into the base, before training another")


def _work(model: Model, form: Form, switch: Switch, parameters: list[nn.Parameter], feeds: Feeds, run: Run, plan: TrainPlan) -> Work:
    settings = run.settings
    rate = plan.learning_rate if settings.learning_rate is None else settings.learning_rate
    decay = plan.weight_decay if settings.weight_decay is None else settings.weight_decay
    decides = {**(plan.decides or {}), **preprocessing(model), "train": settings.deciding(), "seed": run.seed, "learning_rate": rate, "weight_decay": decay}
    return Work(
        state=form.trained,
        load=form.load_trained,
        set_training=switch,
        parameters=parameters,
        train=feeds.train,
        validation=feeds.validation,
        objective=plan.objective or objective_for(model.task),
        settings=settings,
        learning_rate=rate,
        weight_decay=decay,
        seed=run.seed,
        fingerprint=decides,
        batches=_batches(plan, feeds.train, settings),
        resting=plan.resting or (lambda step: ()),
    )


def _batches(plan: TrainPlan, feed: Feed, settings: TrainSettings) -> Batches:
    if plan.batches is not None:
        if settings.group_by_length:
            raise UserError(f"{plan.method} draws its batches by a rule of its own, so train.group_by_length has no place; leave it out")
        return plan.batches
    batches = shuffled(len(feed.examples), settings.batch_size)
    return grouped_by_length(batches, feed.examples.lengths()) if settings.group_by_length else batches


def _take_up(loop: Loop, run: Run, processes: Processes) -> None:
    """Go on from a checkpoint, or make sure that none of an earlier run is left."""
    if run.directory is None:
        return
    if run.resume:
        checkpoint = load_checkpoint(run.directory, loop.work.fingerprint, processes)
        if checkpoint is not None:
            loop.resume(checkpoint)
    elif processes.is_main:
        clear_checkpoints(run.directory)
    processes.wait()


def _announce(loop: Loop, method: str, prefix: str) -> None:
    work, processes = loop.work, loop.processes
    loop.emit(
        "started",
        method=method,
        step=loop.progress.step,
        steps=loop.steps,
        epochs=work.settings.epochs,
        examples=loop.size,
        parameters=sum(parameter.numel() for parameter in work.parameters),
        device=str(processes.device),
        processes=processes.count,
        prefix=prefix,
    )


def _metrics(loop: Loop) -> dict[str, Any]:
    """Of the epoch whose state was kept: the best one with early stopping, else the last."""
    progress = loop.progress
    row = progress.history[progress.best_epoch - 1 if loop.work.settings.early_stopping else -1]
    return {"train": {"loss": row["loss"]}, **({"validation": row["validation"]} if "validation" in row else {})}


def _on_cpu(edit: Edit) -> Edit:
    return Edit(edit.site, edit.kind, {name: value.cpu() for name, value in edit.tensors.items()}, edit.variant, structure=edit.structure)


@contextlib.contextmanager
def _memory_named() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        known = memory_error(error)
        if known is None:
            raise
        raise known from error
