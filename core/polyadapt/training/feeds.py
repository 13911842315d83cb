"""The feeds of a run: whole forward passes, or what is left of them above a frozen prefix."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from polyadapt.edits import Form
from polyadapt.edits.attach import Attachments
from polyadapt.errors import UserError
from polyadapt.model import Model
from polyadapt.training.batches import Examples, Feed, HasParts, PlainFeed
from polyadapt.training.processes import Processes
from polyadapt.training.run import Run


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


def make_feeds(model: Model, form: Form, attachments: Attachments, data: HasParts, run: Run, processes: Processes) -> Feeds:
    """Feeds for a form that is attached.

    Raises:
        UserError: an edit is never reached, the data does not fit the task, or `frozen_prefix = "cache"` cannot be kept.
    """
    train = Examples(data.train, model, run.settings.memory_bytes)
    validation = None if data.validation is None else Examples(data.validation, model, run.settings.memory_bytes)
    plain = PlainFeed(train, model.module, processes.device)
    if form.edits():
        attachments.check_seen(plain.batch([0]).inputs)
    return Feeds(plain, None if validation is None else PlainFeed(validation, model.module, processes.device))
