"""Ctrl-C: the step that runs is finished, then a checkpoint is written and the run stops, also when that step was the last."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from polyadapt.errors import TrainingError


class TrainingInterrupted(TrainingError):
    """The user stopped a run; the message says how it goes on."""


class Interrupt:
    """Notes the first Ctrl-C within `listening`; the second one stops at once."""

    def __init__(self) -> None:
        self.was_pressed = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take over the signal, in the main thread and where nobody else has; it is given back at the end."""
        is_ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if is_ours:
            signal.signal(signal.SIGINT, self._note)
        try:
            yield
        finally:
            if is_ours:
                signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.was_pressed:
            raise KeyboardInterrupt
        self.was_pressed = True


def stopped(step: int, directory: Path | None, name: str | None) -> TrainingInterrupted:
    """What a stopped run says."""
    if directory is None:
        return TrainingInterrupted(f"training was interrupted after step {step}; nothing was kept, since the run has no directory for checkpoints")
    if name is None:
        return TrainingInterrupted(f"training was interrupted within step {step + 1}; go on from the last checkpoint in {directory} with resume (--resume)")
    return TrainingInterrupted(f"training was interrupted after step {step}; go on from {directory / 'checkpoints' / name} with resume (--resume)")
