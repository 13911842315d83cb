"""The corpus of a voice that listens, as the experiment needs it: who was trained on, and who was held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polyadapt.model import Model


@dataclass(frozen=True)
class Clip:
    """What was said, float32 at the voice's rate."""

    samples: np.ndarray
    text: str
    seconds: float


@dataclass(frozen=True)
class Person:
    """A voice of the corpus.

    Attributes:
        is_real: recorded from a human, not made by a synthesiser.
        language: code of what is said.
        adaptation: clips to adapt to; of a training voice those of training.
        references: further clips of a held-out voice.
    """

    name: str
    is_real: bool
    language: str
    adaptation: Sequence[Clip]
    references: Sequence[Clip] = ()


@dataclass(frozen=True)
class Corpus:
    """All voices of a folder."""

    training: Sequence[Person]
    held_out: Sequence[Person]

    @property
    def texts(self) -> set[str]:
        """Everything that is said in it."""
        return {clip.text for person in (*self.training, *self.held_out) for clip in (*person.adaptation, *person.references)}


def read_corpus(folder: Path) -> Corpus:
    raise NotImplementedError


def adapted(model: Model, method: str, corpus: Path, person: Person, place: Path, steps: int, device: str) -> None:
    raise NotImplementedError
