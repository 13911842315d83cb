"""All stages in a row: from a voice of one speaker and a corpus to a folder that `usat:` reads.

Every finished stage is a voice of its own below the folder (`stage-posterior`, …), and is not done again.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from polyadapt.errors import UserError
from polyadapt.files import sha256_file
from polyadapt.model import Model
from polyadapt.sources.common import seeded
from polyadapt.training.events import Emit, ignore
from polyadapt.training.processes import Processes, find_processes
from polyadapt_speech.usat.network.voice import Voice, extended
from polyadapt_speech.usat.network.wave_discriminators import WaveDiscriminators
from polyadapt_speech.usat.training.autoencoder import Autoencoder, usual_deviation
from polyadapt_speech.usat.training.corpus import Corpus
from polyadapt_speech.usat.training.own_speech import OwnSpeech, own_speech
from polyadapt_speech.usat.training.posterior import DistilPosterior
from polyadapt_speech.usat.training.segments import Segments
from polyadapt_speech.usat.training.stage import Course, Limits, run_stage
from polyadapt_speech.usat.training.timbre import TimbreFlow, average_speaker
from polyadapt_speech.usat.training.utterances import Utterances
from polyadapt_speech.usat.voices.folder import WEIGHTS, is_half, publish, read_voice, save_voice

FRESH = ("posterior encoder", "speaker encoder", "memory", "posterior of durations with the first spline of their flow", "discriminators of all kinds")
ADVERSARIAL_SHARE = 1 / 3  # of stage B
OWN_CLIPS = 60  # of the start voice among the speakers of stage C
STEPS = {"A": 1500, "B": 8000, "C": 1500}
FOLDERS = {"A": ("posterior",), "B": ("autoencoder", "adversarial"), "C": ("timbre",)}


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        stages: letters; those whose result is there already are passed over.
        limits: of each stage.
        batch_size: of each stage.
        said: sentences of the start voice, at most.
        half: the result's weights as float16.
        precision: of the forward passes: no (float32), bf16 or fp16 (GPU only).
        report_steps: steps between two reports of the loss.
    """

    folder: Path
    stages: tuple[str, ...] = ("A", "B", "C")
    limits: Mapping[str, Limits] = field(default_factory=lambda: {letter: Limits(steps) for letter, steps in STEPS.items()})
    batch_size: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(STEPS, 8))
    speaker_size: int = 256
    memory_slots: int = 256
    said: int = 300
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    half: bool = False
    precision: str = "no"
    report_steps: int = 10


class Trainer:
    """Runs the stages that a request names.

    Args:
        start: the voice to start from, with its settings in its processor.
        corpus: of many speakers.
        request: what is asked for.
        emit: hears every event.
        say: hears what happens between stages.

    Raises:
        UserError: the voice listens already or has no phonemes, or the corpus has another rate.
    """

    def __init__(self, start: Model, corpus: Corpus, request: Request, emit: Emit = ignore, say: Callable[[str], None] = lambda line: None) -> None:
        voice = start.backbone
        if not isinstance(voice, Voice) or voice.config.listens or "phonemes" not in start.processor.assets:
            raise UserError(f"{start.reference} is no voice of one speaker that reads phonemes; start from a Piper voice, such as polyadapt:joe")
        if voice.config.sample_rate_hz != corpus.sample_rate_hz:
            raise UserError(
                f"the corpus is at {corpus.sample_rate_hz} Hz and {start.reference} speaks at {voice.config.sample_rate_hz} Hz; prepare it with --start {start.reference}"
            )
        self._start, self._corpus, self._request, self._emit, self._say = start, corpus, request, emit, say
        self._processes: Processes = find_processes(request.device, request.precision)
        heard = {"base_id": start.base_id, "recordings": corpus.recordings, "speaker_size": request.speaker_size, "memory_slots": request.memory_slots, "said": request.said}
        # Stages A and B hear recordings alone, so other texts leave them as they are.
        self._decides = {"A": heard, "B": heard, "C": {**heard, "corpus": corpus.digest}}
        with seeded(request.seed):
            self.voice = extended(voice, request.speaker_size, request.memory_slots, listens=True)
        self.voice.to(self._processes.device)
        self._facts: dict[str, Any] = {}
        self._before = start.base_id  # of the stage before: what the next one goes on from

    def run(self) -> Path:
        """Train, and publish the last stage's voice as the folder's own where it was stage C.

        Raises:
            UserError: a stage is asked for, and one before it is not there; or what is there was made otherwise.
            TrainingError: as `run_stage`.
        """
        folder, wanted = self._request.folder, self._request.stages
        speech = self._own_speech()  # before anything of the voice moves
        for letter in [letter for letter in FOLDERS if letter <= max(wanted)]:
            for name in FOLDERS[letter]:
                if (folder / f"stage-{name}").is_dir():
                    self._take(letter, name)
                elif letter in wanted:
                    self._do(letter, name, speech[letter])
                else:
                    raise UserError(f"stage {max(wanted)} goes on from stage {letter}, and there is no {folder / f'stage-{name}'}; run stage {letter} first, or all of them")
        last = folder / f"stage-{FOLDERS[max(wanted)][-1]}"
        if max(wanted) == "C" and self._request.half and not is_half(last):  # it was there already, in float32
            save_voice(self.voice, last, self._start.processor.assets["phonemes"], self._provenance("C"), half=True)
        if max(wanted) == "C":
            publish(last, folder)
            return folder
        return last

    def _do(self, letter: str, name: str, speech: OwnSpeech) -> None:
        """Train one stage and keep its voice."""
        request, device = self._request, self._processes.device
        began = time.monotonic()
        with seeded(request.seed):
            stage = self._stage(name, request.batch_size[letter], speech)
        share = {"autoencoder": 1 - ADVERSARIAL_SHARE, "adversarial": ADVERSARIAL_SHARE}.get(name, 1.0)
        work = request.folder / f"work-{name}"
        course = Course(request.limits[letter].part(share), work, request.seed, request.precision, request.resume, self._decides[letter], request.report_steps)
        facts = run_stage(stage, course, self._processes, self._emit)
        with seeded(request.seed):
            if name == "posterior":
                facts["deviation"] = usual_deviation(self.voice, speech).tolist()
            if isinstance(stage, TimbreFlow):
                facts |= {"average_speaker": average_speaker(self.voice, stage.utterances).tolist(), "discriminators_right": stage.right()}
        facts |= {"minutes": round((time.monotonic() - began) / 60, 2), "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()}
        self._facts[name] = facts | {"after": self._before}
        self.voice.requires_grad_(False)
        settings, place = self._start.processor.assets["phonemes"], request.folder / f"stage-{name}"
        save_voice(self.voice, place, settings, self._provenance(letter), half=request.half and name == "timbre")
        self._before = sha256_file(place / WEIGHTS)
        shutil.rmtree(work)
        losses = ", ".join(f"{loss} {value:.3f}" for loss, value in facts["losses"].items())
        self._say(f"stage {name}: {facts['steps']} steps, {facts['seconds_a_step']:.3f} s each, {facts['minutes']} minutes; last losses: {losses}")

    def _stage(self, name: str, batch_size: int, speech: OwnSpeech) -> DistilPosterior | Autoencoder | TimbreFlow:
        voice, corpus, device = self.voice, self._corpus, self._processes.device
        if name == "posterior":
            return DistilPosterior(voice, speech, batch_size)
        assert voice.spectrogram is not None
        clips = Segments([corpus.clip(row) for row in range(len(corpus.names))], voice.spectrogram, device)
        if name == "timbre":
            own = range(len(speech.ids))
            rows = [(clips, row, corpus.ids[row], int(corpus.speaker[row])) for row in range(len(clips))]
            rows += [(speech.segments, row, speech.ids[row], len(corpus.speakers)) for row in own]
            return TimbreFlow(voice, Utterances(voice, rows), [*corpus.names, *(f"sentence {row}" for row in own)], batch_size, len(corpus.speakers))
        deviation = torch.tensor(self._facts["posterior"]["deviation"], device=device)
        listeners = WaveDiscriminators().to(device) if name == "adversarial" else None
        return Autoencoder(voice, corpus, clips, speech, batch_size, deviation, listeners)

    def _take(self, letter: str, name: str) -> None:
        """Go on from a finished stage.

        Raises:
            UserError: it was made from another voice or corpus, under other settings, or on a stage before it that is another one now.
        """
        folder = self._request.folder / f"stage-{name}"
        voice, provenance = read_voice(folder)
        for key, value in self._decides[letter].items():
            if (then := provenance.get("decides", {}).get(key)) != value:
                raise UserError(f"{folder} was made with {key} = {then!r}, now it is {value!r}; use that, or another --out")
        facts = provenance["stages"].get(name, {})
        if facts.get("after", self._before) != self._before:
            raise UserError(f"{folder} goes on from another stage before it than the one that is there now; remove it, and it is done anew")
        self.voice.load_state_dict(voice.state_dict())
        self._facts, self._before = dict(provenance["stages"]), sha256_file(folder / WEIGHTS)
        self._say(f"stage {name}: there already, in {folder} ({facts.get('steps', 'unknown')} steps)")

    def _own_speech(self) -> dict[str, OwnSpeech]:
        """What the start voice says to the stages that are still to be done. Stage C hears the same few sentences whether others ran with it or not."""
        request, found = self._request, dict[str, OwnSpeech]()
        for letters, count in (("AB", request.said), ("C", min(request.said, OWN_CLIPS))):
            pending = [letter for letter in letters if letter in request.stages and not all((request.folder / f"stage-{name}").is_dir() for name in FOLDERS[letter])]
            if not pending:
                continue
            began = time.monotonic()
            speech = own_speech(self._start, self.voice, self._corpus.sentences, count, request.seed, self._processes.device)
            self._say(f"the start voice said {len(speech.ids)} sentences for {' and '.join(pending)} in {time.monotonic() - began:.0f} s")
            found |= dict.fromkeys(pending, speech)
        return found

    def _provenance(self, letter: str) -> dict[str, Any]:
        licences = {**self._start.licences, **self._corpus.licences}
        return {"start": self._start.reference, "licences": licences, "decides": self._decides[letter], "fresh": FRESH, "torch": torch.__version__, "stages": self._facts}


@contextlib.contextmanager
def fast_products() -> Iterator[None]:
    """Matrix products of float32 may round to TF32 on a GPU within the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
