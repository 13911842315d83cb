"""Makes a corpus: reads recordings, brings them to one rate and loudness, turns texts into the start voice's phonemes."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from polyadapt.data.dataset import Dataset
from polyadapt.errors import UserError
from polyadapt.files import read_json, replacing_directory, write_json
from polyadapt.model import Model
from polyadapt_runtime.errors import InputError
from polyadapt_runtime.phonemes import PhonemeReader
from polyadapt_speech.usat.network.voice import Voice
from polyadapt_speech.usat.training.corpus import HEAD, Speaker, Spoken, evenly, write_corpus, write_sound
from polyadapt_speech.usat.training.corpus import HELD_OUT as HELD_OUT_FOLDER
from polyadapt_speech.usat.training.sentences import SENTENCES
from polyadapt_speech.usat.training.sources import COLLECTIONS, Source, speakers_of, synthetic, synthetic_names

ADAPT_S = 60.0  # of a held-out speaker (the paper's)
REFERENCES = 20  # further clips of it
SAID = 600  # sentences for the start voice to say itself
LEAST_LETTERS, MOST_LETTERS = 12, 110  # of such a sentence

_log = logging.getLogger(__name__)

OpenData = Callable[[str, dict[str, Any]], Dataset]


@dataclass
class Summary:
    """What was made, and what could not be used.

    Attributes:
        strange: phonemes that the start voice lacks, by language, with counts.
        unsaid: texts that espeak-ng cannot speak, or whose language it does not know.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    held_out: dict[str, float] = field(default_factory=dict)
    strange: dict[str, Counter[str]] = field(default_factory=dict)
    unsaid: int = 0


class Phonemes:
    """Texts of any language as ids of one voice.

    Args:
        model: the voice; its processor has the table.
        summary: counts what cannot be said.

    Raises:
        UserError: the voice does not read phonemes.
    """

    def __init__(self, model: Model, summary: Summary) -> None:
        spec: Any = model.processor.spec
        if spec.get("kind") != "phonemes" or not isinstance(model.backbone, Voice):
            raise UserError(f"{model.reference} does not read phonemes of espeak-ng; start from a Piper voice, such as polyadapt:joe")
        self.hop = model.backbone.config.decoder.hop
        self._spec, self._path, self._summary = spec, model.processor.assets["phonemes"], summary
        self._table = set(read_json(self._path, "phonemes")["phoneme_id_map"])
        self._readers: dict[str, PhonemeReader] = {}

    def ids(self, text: str, language: str) -> tuple[int, ...]:
        """Ids of a text; none where there is no text, or it has phonemes that the voice lacks."""
        if not text:
            return ()
        reader = self._readers.setdefault(language, PhonemeReader({**self._spec, "language": language}, self._path))
        try:
            said = reader.phonemes(text)
        except InputError as error:
            if "not installed" in str(error):
                raise UserError(str(error)) from error
            self._summary.unsaid += 1
            return ()
        if strange := Counter(symbol for symbol in unicodedata.normalize("NFD", said) if symbol not in self._table):
            self._summary.strange.setdefault(language, Counter()).update(strange)
            return ()
        return tuple(reader.ids(said))


def prepare(folder: Path, model: Model, sources: Iterable[Source], texts: Iterable[str], held_out: Sequence[str], share: float = 1.0) -> Summary:
    """Make a corpus.

    Args:
        folder: is replaced where it exists.
        model: the start voice, which fixes the rate and the phonemes.
        sources: the speakers.
        texts: English sentences without a recording.
        held_out: speakers that no stage hears.
        share: of every speaker's seconds.

    Raises:
        UserError: a package or program is missing, or a held-out speaker is not there.
    """
    summary, rate_hz = Summary(), rate_of(model)
    phonemes = Phonemes(model, summary)
    known: dict[str, Speaker] = {}
    clips: list[Spoken] = []
    with replacing_directory(folder, HEAD) as staging:
        for source in sources:
            speaker = source.speaker
            if speaker.name in held_out:
                summary.held_out[speaker.name] = _hold_out(staging / HELD_OUT_FOLDER / speaker.name, source, phonemes, rate_hz)
                if not summary.held_out[speaker.name]:
                    raise UserError(f"speaker {speaker.name!r} has no recording with a text that {model.reference} can say, so nothing could be adapted to; hold out another")
            else:
                taken = [replace(clip, ids=phonemes.ids(clip.text, speaker.language)) for clip in _until(source.clips, share * source.seconds, rate_hz)]
                summary.seconds[speaker.name] = sum(len(clip.samples) for clip in taken) / rate_hz
                if taken:  # else nothing could be read, and no stage could draw a clip
                    known[speaker.name] = speaker
                clips += taken
                _log.info("%s: %d clips, %.0f s", speaker.name, len(taken), summary.seconds[speaker.name])
        if lacking := [name for name in held_out if name not in summary.held_out]:
            raise UserError(f"no speaker {lacking[0]!r} to hold out; speakers: {', '.join(known)}")
        if not clips:
            raise UserError("no speaker has a recording that can be read; install the packages that the collections need")
        said = [phonemes.ids(text, "en-us") for text in texts]
        sentences = [ids for ids in said if ids]
        if said and not sentences:
            raise UserError(f"{model.reference} has phonemes for none of the English sentences that it would say; start from a voice that has them")
        write_corpus(staging, rate_hz, tuple(known.values()), clips, sentences)
    return summary


def rate_of(model: Model) -> int:
    """Samples a second of a voice.

    Raises:
        UserError: it does not tell.
    """
    if "sample_rate_hz" not in model.task.details:
        raise UserError(f"{model.reference} is no voice that tells its sampling rate; start from a Piper voice, such as polyadapt:joe")
    return int(str(model.task.details["sample_rate_hz"]))


def usual_sources(open_data: OpenData, rate_hz: int) -> Iterator[Source]:
    """All speakers, real ones first."""
    for collection in COLLECTIONS:
        yield from speakers_of(collection, open_data(collection.uri, {**collection.options, "check_files": False}), rate_hz)
    for number, name in enumerate(synthetic_names()):
        yield synthetic(name, number, rate_hz)


def usual_texts(open_data: OpenData, count: int) -> list[str]:
    """English sentences that need no recording, spread over all captions and prompts."""
    captions = [str(example.extra["caption"]) for example in open_data("data:tux-paint-captions", {"language": "fr", "minimum": 1, "check_files": False})]
    prompts = [example.text for example in open_data("data:asterisk-prompts", {"language": "en", "check_files": False}) if example.text]
    found = sorted({text for text in (*captions, *prompts) if LEAST_LETTERS <= len(text) <= MOST_LETTERS})
    return [*SENTENCES, *evenly(found, count - len(SENTENCES))] if count > len(SENTENCES) else evenly(SENTENCES, count)


def _hold_out(folder: Path, source: Source, phonemes: Phonemes, rate_hz: int) -> float:
    """A minute to adapt to and further clips, as recordings with manifests; the seconds of the minute.

    A clip with fewer frames than its text has tokens is left out: there its text is another's.
    """
    folder.mkdir(parents=True)
    spoken = (replace(clip, ids=phonemes.ids(clip.text, source.speaker.language)) for clip in source.clips)
    usable = (clip for clip in spoken if 0 < len(clip.ids) <= len(clip.samples) // phonemes.hop)
    rest = _other_texts(usable)
    seconds = 0.0
    for name, clips in (("adapt", _until(rest, ADAPT_S, rate_hz)), ("test", islice(rest, REFERENCES))):
        rows = []
        for number, clip in enumerate(clips):
            file = f"{name}-{number:02d}.flac"
            write_sound(folder / file, clip.samples, rate_hz)
            rows.append({"path": file, "text": clip.text, "language": source.speaker.language, "ids": " ".join(map(str, clip.ids)), "origin": clip.id})
            seconds += len(clip.samples) / rate_hz if name == "adapt" else 0.0
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    write_json(folder / "speaker.json", asdict(source.speaker))
    return seconds


def _other_texts(clips: Iterator[Spoken]) -> Iterator[Spoken]:
    """Clips whose text has not come before: what is tested on was not adapted to."""
    seen: set[str] = set()
    for clip in clips:
        if clip.text not in seen:
            seen.add(clip.text)
            yield clip


def _until(clips: Iterator[Spoken], seconds: float, rate_hz: int) -> Iterator[Spoken]:
    """Clips from the beginning, until so many seconds are there."""
    left = seconds * rate_hz
    while left > 0 and (clip := next(clips, None)) is not None:
        left -= len(clip.samples)
        yield clip
