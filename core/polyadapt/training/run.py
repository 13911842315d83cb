"""What a run is given besides model, form and data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from polyadapt.training.events import Emit, ignore
from polyadapt.training.settings import TrainSettings


@dataclass(frozen=True)
class Run:
    """Settings, listener and place of one run. A method's own `fit` hands it on to the building blocks.

    Attributes:
        settings: how to train.
        emit: hears every event.
        directory: where checkpoints and cached activations go; None for none.
        resume: go on from the newest checkpoint in `directory`.
        seed: of starting values, order and dropout.
    """

    settings: TrainSettings = field(default_factory=TrainSettings)
    emit: Emit = ignore
    directory: Path | None = None
    resume: bool = False
    seed: int = 0

    def stage(self, name: str, **settings: Any) -> Run:
        """The run of one stage of several: its own folder below this one's, and other settings where they are given."""
        chosen = TrainSettings(**{**self.settings.model_dump(), **settings}) if settings else self.settings
        return replace(self, settings=chosen, directory=None if self.directory is None else self.directory / name)
