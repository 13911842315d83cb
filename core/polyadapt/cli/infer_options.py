"""What can be chosen when `polyadapt infer` asks a bundle: flags and `-o` options by the kind of answer. What does not apply is refused, never dropped."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from polyadapt.errors import UserError
from polyadapt.options import DrawingOptions, Options

TEXT_TASKS = ("causal-lm", "seq2seq-lm", "transcription")


class CallOptions(Options):
    """Of every answer."""

    device: str = Field("auto", description="auto, cpu or cuda")
    scale: float = Field(1.0, description="how much of the artifact's effect")


class BatchOptions(CallOptions):
    """Of answers to several inputs at once."""

    batch_size: int = Field(32, ge=1, description="inputs that run at once")


class ClassOptions(BatchOptions):
    """Of classes."""

    top: int = Field(5, ge=1, description="classes that are named")


class WindowOptions(CallOptions):
    """Of classes window by window."""

    top: int = Field(5, ge=1, description="classes of the mean that are named")


class FrameOptions(CallOptions):
    """Of texts that are read frame by frame (ctc)."""

    beams: int = Field(1, ge=1, description="texts that the search follows; 1 takes the best path")


class TextOptions(CallOptions, DrawingOptions):
    """Of texts that are written token by token, transcripts among them."""

    maximum_new_tokens: int | None = Field(None, ge=1, description="most tokens of a text, or of a window of sound; by default 64, or by the window's length")
    beams: int = Field(1, ge=1, description="texts that the search follows; 1 searches for none")
    stop: tuple[str, ...] = Field((), description="texts that end the text")
    stop_ids: tuple[int, ...] = Field((), description="token ids that end the text, in place of the model's own")

    def generation(self) -> dict[str, Any]:
        """As `Bundle.generate` and `transcribe` take them."""
        made: dict[str, Any] = {"sampling": self.sampling()}
        given = {"max_tokens": self.maximum_new_tokens, "stop": self.stop or None, "stop_ids": self.stop_ids or None, "beams": self.beams if self.beams > 1 else None}
        return made | {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Way:
    """A kind of answer.

    Attributes:
        what: for messages.
        flags: names of the command's parameters that it listens to, beside `EVERYWHERE`.
        options: what `-o` takes.
    """

    what: str
    flags: tuple[str, ...]
    options: type[CallOptions]


STREAMED = Way("a stream (INPUT -)", ("window", "hop", "rate", "encoding", "channels"), CallOptions)
SPOKEN = Way("speech (--out)", ("out", "voice", "is_text"), CallOptions)
WINDOWED = Way("windows of a sound (--window)", ("window", "hop", "rate"), WindowOptions)
TRANSCRIBED = Way("a transcript", ("language", "timestamps", "rate"), TextOptions)
READ = Way("a transcript frame by frame", ("language", "timestamps", "rate"), FrameOptions)
WRITTEN = Way("a text", ("is_text", "rate"), TextOptions)
SPELT = Way("a text frame by frame", ("is_text", "rate"), FrameOptions)
CLASSIFIED = Way("classes", ("is_text", "rate"), ClassOptions)
GIVEN_OUT = Way("a model's outputs", ("is_text", "rate"), BatchOptions)

EVERYWHERE = ("model", "inputs", "artifact", "options", "as_json", "allow_download")
_FLAGS = {"is_text": "text", "model_options": "model-option"}
_PURPOSES = {
    "language": "--language and --timestamps are for bundles that transcribe sound",
    "voice": "--voice says who speaks; give --out FILE.wav too, where the speech is written",
    "encoding": "--encoding and --channels are for raw samples on standard input (INPUT -)",
    "model_options": "--model-option is for models that are loaded, and a bundle is what was exported",
}
_PURPOSES |= {"timestamps": _PURPOSES["language"], "channels": _PURPOSES["encoding"]}


def way_of(task: str, is_sound: bool, given: Mapping[str, Any]) -> Way:
    """The kind of answer that a command asks a bundle for."""
    if "-" in given["inputs"]:
        return STREAMED
    if given["out"] is not None:
        return SPOKEN
    if given["window"] is not None:
        return WINDOWED
    if task == "ctc":
        return READ if is_sound else SPELT
    if task in TEXT_TASKS:
        return TRANSCRIBED if is_sound else WRITTEN
    return CLASSIFIED if task == "classification" else GIVEN_OUT


def refuse_flags(way: Way, asked: Collection[str]) -> None:
    """Refuse flags that would change nothing.

    Args:
        way: what the command answers with.
        asked: names of the parameters that the user wrote.

    Raises:
        UserError: one that does not apply.
    """
    for name in asked:
        if name not in (*EVERYWHERE, *way.flags):
            flag = _FLAGS.get(name, name)
            raise UserError(f"{_PURPOSES.get(name, f'--{flag} changes nothing here')}; for {way.what} leave --{flag} out")
