"""The feeds of a run: whole forward passes, or what is left of them above a frozen prefix."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from polyadapt.edits import Form
from polyadapt.edits.attach import Attachments
from polyadapt.edits.statistics import keeping_statistics
from polyadapt.errors import UserError
from polyadapt.model import Model
from polyadapt.training import randomness
from polyadapt.training.batches import Batch, Examples, Feed, HasParts, PlainFeed, Transform
from polyadapt.training.bypass import replaced
from polyadapt.training.depth import find_depth
from polyadapt.training.events import Event
from polyadapt.training.masking import find_masking
from polyadapt.training.modes import Switch
from polyadapt.training.noising import Noising
from polyadapt.training.prefix import Cache, Part, UnfitError
from polyadapt.training.processes import Processes
from polyadapt.training.run import Run
from polyadapt.training.upper import head_alone, upper_blocks

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Feeds:
    """Training and validation feeds.

    Attributes:
        prefix: what they leave out: `off`, `features`, or `N blocks`.
        active: the context within which they work.
    """

    train: Feed
    validation: Feed | None
    prefix: str = "off"
    active: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


def make_feeds(model: Model, form: Form, attachments: Attachments, data: HasParts, run: Run, processes: Processes, switch: Switch, transform: Transform | None = None) -> Feeds:
    """Feeds for a form that is attached.

    Raises:
        UserError: an edit is never reached, the data does not fit the task, or `frozen_prefix = "cache"` cannot be kept.
    """
    settings = run.settings
    train = Examples(data.train, model, settings.memory_bytes)
    validation = None if data.validation is None else Examples(data.validation, model, settings.memory_bytes)
    if transform is None and model.task.kind == "denoising":
        transform = Noising(model.task, run.seed)
    validated = None if validation is None else PlainFeed(validation, model.module, processes.device, transform)
    masking = find_masking(model, settings, run.seed)
    plain = Feeds(PlainFeed(train, model.module, processes.device, transform, masking), validated)
    if form.edits():
        attachments.check_seen(plain.train.batch([0]).inputs)
    if settings.frozen_prefix == "off" or (settings.frozen_prefix == "auto" and _passes(run, len(train)) < 2):
        return plain
    try:
        if transform is not None or masking is not None:
            raise UnfitError("its inputs are drawn anew in every epoch")
        return _prefixed(model, attachments, train, validation, run, processes, switch)
    except UnfitError as error:
        if settings.frozen_prefix == "cache":
            raise UserError(f"train.frozen_prefix is 'cache', and {model.reference} cannot be cached here: {error}; set it to 'auto' or 'off'") from error
        _log.info("frozen prefix is not cached: %s", error)
        return plain


def _prefixed(model: Model, attachments: Attachments, train: Examples, validation: Examples | None, run: Run, processes: Processes, switch: Switch) -> Feeds:
    began = time.monotonic()
    switch(False)
    with processes.autocast(run.settings.precision):
        depth = find_depth(model, attachments, PlainFeed(train, model.module, processes.device).batch([0]).inputs)
    if depth.reason:
        raise UnfitError(depth.reason)
    examples = [train] if validation is None else [train, validation]
    active: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    # One vector an example has one size; frames, transcripts and whatever enters a block are filled up to the longest.
    further = [prepared for part in examples for prepared in part.longest()] if model.task.kind == "ctc" or not depth.is_whole else []
    parts = [Part(name, part, further) for name, part in zip(("train", "validation"), examples, strict=False)]
    if depth.is_whole:
        lower = head_alone(model, parts[0], processes.device)
    else:
        if further and _is_random(model, attachments, parts[0].batch([0]).to(processes.device), switch, processes):
            raise UnfitError("its examples differ in length and dropout is on, so its draws would be others than in whole passes")
        with processes.autocast(run.settings.precision):
            lower, answers = upper_blocks(model, depth, parts[0], processes.device)

        def active() -> contextlib.AbstractContextManager[None]:
            return replaced(model.module, answers)

    cache = Cache(run.settings.batch_size, run.settings.memory_bytes, run.directory, run.settings.precision, processes)
    feeds = cache.feeds(lower, parts)
    prefix = "features" if depth.is_whole else f"{len(depth.blocks)} blocks"
    if processes.is_main:
        run.emit(Event("cached", {"prefix": prefix, "examples": sum(len(part) for part in examples), "seconds": time.monotonic() - began}))
    return Feeds(feeds[0], feeds[1] if validation is not None else None, prefix, active)


def _is_random(model: Model, attachments: Attachments, batch: Batch, switch: Switch, processes: Processes) -> bool:
    """Whether a training pass draws random numbers."""
    before = randomness.states(processes.device)
    switch(True)
    with torch.no_grad(), keeping_statistics(attachments):
        model.module(**batch.inputs)
    switch(False)
    after = randomness.states(processes.device)
    randomness.restore(before, processes.device)
    return any(not torch.equal(before[name], after[name]) for name in before)


def _passes(run: Run, size: int) -> float:
    """How often every example will be seen."""
    settings = run.settings
    return min(settings.epochs, settings.max_steps * settings.batch_size / size if settings.max_steps else settings.epochs)
