"""The corpus of a voice that listens, as the experiment needs it: who was trained on, and who was held out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import polyadapt as pa
from polyadapt.api import open_dataset
from polyadapt.files import read_json
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.model import Model
from polyadapt.training import TrainingData, TrainSettings, fit
from polyadapt_speech.usat.training.corpus import HEAD, HELD_OUT
from polyadapt_speech.usat.training.corpus import read_corpus as read_prepared

ADAPT, TEST, JOE = "adapt.jsonl", "test.jsonl", "joe"
STEP_S, MOST_CLIPS = 12.0, 8


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
    """All voices of a folder.

    Attributes:
        ids: of everything whose phonemes training saw, as tuples.
        digest: what a voice's provenance calls its corpus.
    """

    training: Sequence[Person]
    held_out: Sequence[Person]
    ids: frozenset[tuple[int, ...]]
    digest: str

    @property
    def texts(self) -> set[str]:
        """Everything that is said in it."""
        return {clip.text for person in (*self.training, *self.held_out) for clip in (*person.adaptation, *person.references)}


def read_corpus(folder: Path) -> Corpus:
    """Read what `polyadapt speech usat-corpus` wrote."""
    found = read_prepared(folder)
    texts = [str(clip["text"]) for clip in read_json(folder / HEAD, "corpus")["clips"]]
    clips: dict[int, list[Clip]] = {}
    for row, speaker in enumerate(found.speaker.tolist()):
        samples = found.clip(row).numpy()
        clips.setdefault(speaker, []).append(Clip(samples, texts[row], len(samples) / found.sample_rate_hz))
    training = [Person(speaker.name, is_real(speaker.source), speaker.language, clips[number]) for number, speaker in enumerate(found.speakers) if number in clips]
    held_out = [_held_out(place) for place in sorted((folder / HELD_OUT).iterdir()) if place.is_dir()]
    return Corpus(training, held_out, frozenset(tuple(ids.tolist()) for ids in (*found.ids, *found.sentences)), found.digest)


def is_real(source: str) -> bool:
    """Whether a human was recorded."""
    return source != "espeak-ng"


def joe(sentences: Sequence[str]) -> Person:
    """The voice that every stage started from, as it speaks itself: it has no recordings in the corpus."""
    voice = pa.load("polyadapt:joe")
    answers = pa.infer(voice, list(sentences))
    rate_hz = int(str(voice.task.details["sample_rate_hz"]))
    sounds = [np.asarray(answer["waveform"], np.float32)[: int(answer["lengths"])] for answer in answers]
    return Person(JOE, False, "en", [Clip(samples, text, len(samples) / rate_hz) for samples, text in zip(sounds, sentences, strict=True)])


def adapted(model: Model, method: str, options: Mapping[str, Any], corpus: Path, person: Person, place: Path, steps: int, device: str, precision: str = "no") -> None:
    """Adapt to a held-out voice's minute by the common loop, and save the artifact."""
    card = Host().registry.methods.get(method).card
    data = open_dataset(f"jsonl:{corpus / HELD_OUT / person.name / ADAPT}")
    # As many epochs as steps: how many clips of the minute will be left out is not known here, and the steps are what ends it.
    settings = TrainSettings(max_steps=steps, epochs=steps, batch_size=clips_of_a_step(person), device=device, precision=precision)
    fit(model, load_method(card), card.options(**options), TrainingData(data), settings).save(place)


def clips_of_a_step(person: Person) -> int:
    """As many clips as hold about twelve seconds, so that a step costs the same whether someone says words or sentences (ours: the paper does not tell)."""
    mean_s = sum(clip.seconds for clip in person.adaptation) / len(person.adaptation)
    return min(MOST_CLIPS, max(1, round(STEP_S / mean_s)))


def _held_out(folder: Path) -> Person:
    speaker = read_json(folder / "speaker.json", "held-out speaker")
    return Person(folder.name, is_real(speaker["source"]), speaker["language"], _clips(folder / ADAPT), _clips(folder / TEST))


def _clips(manifest: Path) -> list[Clip]:
    found = []
    for line in manifest.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        samples, rate_hz = soundfile.read(str(manifest.parent / row["path"]), dtype="float32")
        found.append(Clip(samples, row["text"], len(samples) / rate_hz))
    return found
