"""A prepared corpus: everything that the stages of a voice's training read, in one folder that needs no other program.

`corpus.json` (rate, speakers with source and licence, clips with their texts), `index.safetensors` (where clips begin, ids
of phonemes, ids of sentences that the start voice will say itself) and `samples.flac`, all clips behind each other. Held-out
speakers are in folders of their own below `held-out`, as recordings with manifests for `jsonl:`; no stage reads them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from polyadapt.data.media import library
from polyadapt.errors import UserError
from polyadapt.files import read_json, sha256_file, write_json
from polyadapt.tensors import load_tensors, save_tensors

FORMAT = 1
HEAD, INDEX, SAMPLES, HELD_OUT = "corpus.json", "index.safetensors", "samples.flac", "held-out"
FULL_SCALE = 32767

Item = TypeVar("Item")


@dataclass(frozen=True)
class Speaker:
    """One voice, with where its recordings come from."""

    name: str
    language: str
    source: str
    licence: str


@dataclass(frozen=True)
class Spoken:
    """A clip. The text is empty where it is not known; ids are also where it has phonemes that the start voice lacks."""

    id: str
    speaker: str
    text: str
    samples: NDArray[np.float32]
    ids: Sequence[int] = ()


@dataclass(frozen=True)
class Corpus:
    """What was prepared.

    Attributes:
        speakers: in the order that `speaker` counts.
        names: of clips.
        speaker: of each clip, int64 [clips].
        samples: all clips, int16 [samples]; clip i is `offsets[i]` to `offsets[i + 1]`.
        ids: of each clip, empty where there are none.
        sentences: ids of sentences without a recording.
        digest: sha256 over everything.
        recordings: sha256 over everything but the texts of clips.
    """

    sample_rate_hz: int
    speakers: tuple[Speaker, ...]
    names: tuple[str, ...]
    speaker: torch.Tensor
    samples: torch.Tensor
    offsets: torch.Tensor
    ids: tuple[torch.Tensor, ...]
    sentences: tuple[torch.Tensor, ...]
    digest: str
    recordings: str

    def clip(self, row: int) -> torch.Tensor:
        """One clip, float32 [samples]."""
        return self.samples[int(self.offsets[row]) : int(self.offsets[row + 1])].float() / FULL_SCALE

    @property
    def licences(self) -> dict[str, str]:
        """By source."""
        return {speaker.source: speaker.licence for speaker in self.speakers}


def write_corpus(folder: Path, rate_hz: int, speakers: Sequence[Speaker], clips: Sequence[Spoken], sentences: Iterable[Sequence[int]]) -> None:
    """Write a corpus into an empty folder.

    Raises:
        UserError: the place cannot be written.
        MissingExtraError: soundfile is not installed.
    """
    names = [speaker.name for speaker in speakers]
    offsets = np.cumsum([0, *(len(clip.samples) for clip in clips)])
    rows = {"ids": [clip.ids for clip in clips], "sentences": list(sentences)}
    tensors = {"offsets": torch.from_numpy(offsets), "speaker": torch.tensor([names.index(clip.speaker) for clip in clips])}
    for name, values in rows.items():
        tensors[f"{name}.values"] = torch.tensor([number for row in values for number in row], dtype=torch.int16)
        tensors[f"{name}.ends"] = torch.from_numpy(np.cumsum([len(row) for row in values]).astype(np.int64))
    save_tensors(folder / INDEX, tensors)
    write_sound(folder / SAMPLES, np.concatenate([clip.samples for clip in clips]), rate_hz)
    files = {name: sha256_file(folder / name) for name in (INDEX, SAMPLES)}
    said = [{"id": clip.id, "speaker": clip.speaker, "text": clip.text} for clip in clips]
    write_json(folder / HEAD, {"format": FORMAT, "sample_rate_hz": rate_hz, "files": files, "speakers": [asdict(speaker) for speaker in speakers], "clips": said})


def read_corpus(folder: Path) -> Corpus:
    """Read what `write_corpus` wrote.

    Raises:
        UserError: a file is missing, damaged or of another version.
        MissingExtraError: soundfile is not installed.
    """
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; make one with: polyadapt speech usat-corpus --out {folder}")
    head = read_json(folder / HEAD, "corpus")
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise UserError(f"{folder / HEAD} is no corpus of format {FORMAT}; prepare it again with: polyadapt speech usat-corpus --out {folder}")
    try:
        for name, recorded in head["files"].items():
            if name not in (INDEX, SAMPLES) or sha256_file(folder / name) != recorded:
                raise UserError(f"{folder / name} is not the file that {HEAD} describes; prepare the corpus again")
        tensors = load_tensors(folder / INDEX, "corpus")
        speakers = tuple(Speaker(**speaker) for speaker in head["speakers"])
        samples, rate_hz = library("soundfile", "soundfile", "audio", "reading a corpus").read(str(folder / SAMPLES), dtype="int16")
        return Corpus(
            sample_rate_hz=int(rate_hz),
            speakers=speakers,
            names=tuple(str(clip["id"]) for clip in head["clips"]),
            speaker=tensors["speaker"],
            samples=torch.from_numpy(samples),
            offsets=tensors["offsets"],
            ids=_pieces(tensors, "ids"),
            sentences=_pieces(tensors, "sentences"),
            digest=sha256_file(folder / HEAD),
            recordings=_digest(head["files"][SAMPLES], tensors),
        )
    except (FileNotFoundError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is no whole corpus ({type(error).__name__}: {error}); prepare it again") from error


def evenly(found: Sequence[Item], count: int) -> list[Item]:
    """At most so many of them, from the whole of the row."""
    count = min(count, len(found))
    return [found[place * len(found) // count] for place in range(count)]


def write_sound(path: Path, samples: NDArray[np.float32], rate_hz: int) -> None:
    """Samples in -1..1 as FLAC of 16 bits."""
    whole: Any = (samples * FULL_SCALE).round().clip(-FULL_SCALE, FULL_SCALE).astype(np.int16)
    library("soundfile", "soundfile", "audio", "writing FLAC").write(str(path), whole, rate_hz, format="FLAC", subtype="PCM_16")


def _pieces(tensors: dict[str, torch.Tensor], name: str) -> tuple[torch.Tensor, ...]:
    values, ends = tensors[f"{name}.values"].long(), tensors[f"{name}.ends"].tolist()
    return tuple(values[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)) if ends else ()


def _digest(samples: str, tensors: dict[str, torch.Tensor]) -> str:
    """Of the samples' own digest, and of what says whose they are and what the start voice will say."""
    made = hashlib.sha256(samples.encode())
    for name in ("offsets", "speaker", "sentences.values", "sentences.ends"):
        made.update(tensors[name].numpy().tobytes())
    return made.hexdigest()
