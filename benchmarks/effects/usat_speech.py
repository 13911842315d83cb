"""What the arms of the experiment with voices say, as WAV files that are kept: by voice, arm and number."""

from __future__ import annotations

import wave
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from polyadapt.artifact import Artifact, detach
from polyadapt.files import replacing_file
from polyadapt.model import Model
from polyadapt_speech.usat.family.model import LEAST_REFERENCE_S
from polyadapt_speech.usat.network.voice import Voice

# Written for this experiment; none is among the texts that voices are trained on (`usat.py` checks it).
SENTENCES = (
    "The green kettle whistled while the children argued about breakfast.",
    "Nobody expected the old bridge to survive such a heavy flood.",
    "Please measure both shelves before you order the timber.",
    "A thin layer of ice covered the pond behind the church.",
    "Her brother plays the trumpet in a small village band.",
    "They joined the queue just as the museum was closing.",
    "Fresh vegetables cost less at the market near the harbour.",
    "The judge listened carefully and asked only one question.",
    "We could hear thunder rolling over the distant mountains.",
    "My neighbour keeps seven chickens and a very loud rooster.",
    "Turn the yellow handle slowly until the water stops.",
    "The author signed every copy with a purple pen.",
    "Three engineers checked the engine twice before the flight.",
    "Without a map we wandered through the narrow streets.",
    "The nurse smiled and offered him a cup of ginger tea.",
    "Dry leaves gathered in the corner of the empty yard.",
    "His watch was five minutes fast, so he arrived too early.",
    "The choir practised the same verse for almost an hour.",
    "Young foxes were playing under the fence last night.",
    "She folded the letter and put it back into the drawer.",
)


@dataclass(frozen=True)
class Take:
    """An arm's way to speak: which artifact is on the model, and whose vector is fed.

    Attributes:
        speaker: None for a model that has no speakers.
        parameters, seconds, steps, device: that it took to adapt.
        left_out: clips that did not fit their texts.
    """

    speaker: np.ndarray | None
    artifact: Artifact | None = None
    parameters: int = 0
    seconds: float = 0.0
    steps: int = 0
    left_out: int = 0
    device: str = ""


@dataclass
class Studio:
    """A model that speaks, and the folder where its speech is kept.

    Attributes:
        model: a voice that listens.
        folder: WAV files by voice, arm and number.
        device: where it computes.
        texts: ids and masks of sentences that were asked for.
    """

    model: Model
    folder: Path
    device: str = "cpu"
    texts: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    @property
    def rate_hz(self) -> int:
        """Of all sounds."""
        return self.voice.config.sample_rate_hz

    @property
    def voice(self) -> Voice:
        """The network."""
        assert isinstance(self.model.backbone, Voice)
        return self.model.backbone

    def path(self, voice: str, arm: str, number: int) -> Path:
        """Where one take lies."""
        return self.folder / voice / arm / f"{number:02}.wav"

    @torch.no_grad()
    def vector(self, sounds: Sequence[np.ndarray]) -> np.ndarray:
        """Mean speaker vector of recordings at the voice's rate: of those that are long enough for one as a reference, where there are some."""
        sounds = [samples for samples in sounds if len(samples) >= LEAST_REFERENCE_S * self.rate_hz] or sounds
        found = [self.voice.speaker_vector(torch.from_numpy(samples)[None].to(self.device), torch.tensor([len(samples)], device=self.device))[0] for samples in sounds]
        return np.asarray(torch.stack(found).mean(0).cpu().numpy(), np.float32)

    def speak(self, voice: str, arm: str, take: Take, sentences: Sequence[str]) -> None:
        """Say what is not on disk yet."""
        lacking = [number for number in range(len(sentences)) if not self.path(voice, arm, number).is_file()]
        if not lacking:
            return
        told = {} if take.speaker is None else {"speaker": torch.from_numpy(take.speaker)[None].to(self.device)}
        with on(self.model, take.artifact), torch.no_grad():
            for number in lacking:
                said = self.model.module(**self._tensors(sentences[number]), **told)
                write(self.path(voice, arm, number), said["waveform"][0, : int(said["lengths"][0])].cpu().numpy(), self.rate_hz)

    @torch.no_grad()
    def resynthesise(self, voice: str, arm: str, sounds: Sequence[np.ndarray]) -> None:
        """What an arm can hardly do better than: real clips through posterior encoder, memory and decoder."""
        parts = self.voice
        assert parts.spectrogram is not None and parts.posterior is not None
        for number, samples in enumerate(sounds):
            if self.path(voice, arm, number).is_file():
                continue
            seen = parts.spectrogram(torch.from_numpy(samples)[None].to(self.device))  # (1, bins, F)
            mask = torch.ones_like(seen[:, :1])
            _, z, _ = parts.posterior(seen, mask, seen.new_zeros(1))
            z = z if parts.memory is None else parts.memory(z)
            write(self.path(voice, arm, number), parts.decoder(z, mask)[0].cpu().numpy(), self.rate_hz)

    def keep(self, voice: str, arm: str, sounds: Sequence[np.ndarray]) -> None:
        """Real clips beside the others."""
        for number, samples in enumerate(sounds):
            if not self.path(voice, arm, number).is_file():
                write(self.path(voice, arm, number), samples, self.rate_hz)

    def ids(self, sentence: str) -> tuple[int, ...]:
        """Of phonemes."""
        return tuple(self._tensors(sentence)["input_ids"][0].tolist())

    def _tensors(self, sentence: str) -> Mapping[str, torch.Tensor]:
        if sentence not in self.texts:
            self.texts[sentence] = {name: torch.from_numpy(value)[None].to(self.device) for name, value in self.model.processor(sentence).items()}
        return self.texts[sentence]


@contextmanager
def on(model: Model, artifact: Artifact | None) -> Iterator[None]:
    """The model with an artifact attached, or as it is."""
    if artifact is None:
        yield
        return
    artifact.attach(model, "measured").eval()
    try:
        yield
    finally:
        detach(model, "measured")


def write(path: Path, samples: np.ndarray, rate_hz: int) -> None:
    """A sound as 16-bit WAV, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing_file(path) as staging, wave.open(str(staging), "wb") as stream:
        stream.setparams((1, 2, rate_hz, 0, "NONE", ""))
        stream.writeframes(np.rint(np.clip(samples, -1.0, 1.0) * 32767).astype("<i2").tobytes())


def read(path: Path) -> np.ndarray:
    """What `write` wrote, float32."""
    with wave.open(str(path), "rb") as stream:
        return np.frombuffer(stream.readframes(stream.getnframes()), "<i2").astype(np.float32) / 32767
