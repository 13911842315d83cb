"""Where sound comes from: files of any format, arrays and streams, all read block by block.

What a file is, its content says, not its name: plain WAV is read by the standard library, what libsndfile knows (FLAC,
Ogg, Opus, MP3, other WAV …) by soundfile, and the rest by PyAV. The one exception is raw G.722, which has no header:
what is called so and begins as no other format does.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from polyadapt_runtime.containers import HEADER_BYTES, container_of
from polyadapt_runtime.errors import InputError, MissingLibraryError
from polyadapt_runtime.resampling import check_rate

ENCODINGS = {"s16le": "<i2", "s32le": "<i4", "f32le": "<f4", "u8": "u1"}
"""Encodings of raw samples by ffmpeg's names, as numpy dtypes."""

_BLOCK_FRAMES = 1 << 16
_WIDTHS = (1, 2, 3, 4)
_HEADERLESS = {".g722": "g722"}  # formats that a name must tell, by their name in FFmpeg
_Opener = Callable[[str, float], tuple[int, Iterator[np.ndarray]]]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sound:
    """A sound at its own rate that is read once, as far as it is needed.

    Attributes:
        rate_hz: frames a second.
        blocks: float32 [frames, channels], one after another; full scale is 1.
        name: for messages.
    """

    rate_hz: int
    blocks: Iterator[np.ndarray]
    name: str = "the sound"

    def mono(self) -> Iterator[np.ndarray]:
        """The blocks with their channels averaged, float32 [frames].

        Raises:
            InputError: samples that are not finite numbers.
        """
        for block in self.blocks:
            if not np.isfinite(block).all():
                raise InputError(f"{self.name} has samples that are not finite numbers")
            yield block.mean(axis=1, dtype=np.float32)  # (frames,)


@dataclass(frozen=True)
class Clip:
    """A part of a file, in seconds; without an end it goes on to the file's.

    Raises:
        InputError: it begins before the file, or does not end behind its beginning.
    """

    path: Path
    start_s: float = 0.0
    end_s: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        if not 0 <= self.start_s < math.inf or (self.end_s is not None and not self.start_s < self.end_s < math.inf):
            raise InputError(f"a part of {self.path} begins at 0 s or later and ends behind that; asked were {self.start_s} to {self.end_s} s")

    @property
    def name(self) -> str:
        """For messages."""
        end = "the end" if self.end_s is None else f"{self.end_s:g} s"
        return str(self.path) if not self.start_s and self.end_s is None else f"{self.path} from {self.start_s:g} s to {end}"


def open_sound(raw: Any) -> Sound:
    """Open whatever a sound may be given as.

    Args:
        raw: path, `Clip`, `Sound`, or (array, rate in Hz). Arrays are [samples] or have a second, shorter axis of
            channels; integers are scaled by their range.

    Raises:
        InputError: it cannot be read, or does not say its rate.
        MissingLibraryError: its format needs a library that is not installed.
    """
    if isinstance(raw, Sound):
        return raw
    if isinstance(raw, str | os.PathLike):
        return _open_file(Clip(Path(raw)))
    if isinstance(raw, Clip):
        return _open_file(raw)
    if isinstance(raw, tuple) and len(raw) == 2 and isinstance(raw[1], int | float | np.integer | np.floating):
        check_rate(float(raw[1]))
        return Sound(int(raw[1]), iter([_frames(scaled(_array(raw[0])))]))
    if isinstance(raw, np.ndarray | list):
        raise InputError("an array of samples does not say its rate; give (array, rate in Hz), or --rate HZ on a command line")
    raise InputError(f"a sound is a path or (array, rate in Hz), found {type(raw).__name__}")


def pcm_sound(stream: BinaryIO, rate_hz: int, encoding: str = "s16le", channels: int = 1) -> Sound:
    """Raw samples that arrive on a stream, such as standard input; each block is what has come so far.

    Args:
        stream: gives bytes until its end.
        rate_hz: frames a second.
        encoding: one of `ENCODINGS`.
        channels: samples of one frame, interleaved.

    Raises:
        InputError: an unknown encoding, or numbers that make no sense.
    """
    check_rate(rate_hz)
    if encoding not in ENCODINGS or channels < 1:
        raise InputError(f"raw samples are one of {', '.join(ENCODINGS)} in at least 1 channel, asked were {encoding!r} and {channels}")
    return Sound(int(rate_hz), _pcm_blocks(stream, np.dtype(ENCODINGS[encoding]), channels), "the stream")


def scaled(samples: np.ndarray) -> np.ndarray:
    """Integers to -1..1 by their range, floats as they are."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype in (np.int16, np.int32):
        return samples.astype(np.float32) / np.float32(-float(np.iinfo(samples.dtype).min))
    raise InputError(f"samples are floats, int16, int32 or uint8, found {samples.dtype}")


def _array(samples: Any) -> np.ndarray:
    try:
        return np.asarray(samples)
    except ValueError as error:
        raise InputError("samples are an array, and the parts of this list differ in length; give [samples] or [samples, channels]") from error


def _frames(samples: np.ndarray) -> np.ndarray:
    """An array as [frames, channels]: of two axes the longer one is time."""
    if samples.ndim not in (1, 2):
        raise InputError(f"a sound has shape [samples], or [samples, channels] either way round, found {list(samples.shape)}")
    if samples.ndim == 1 or not samples.size:  # an axis of length 0 is time, whichever of the two it is
        return samples.reshape(-1, 1)
    return samples if samples.shape[1] <= samples.shape[0] else samples.T


def _pcm_blocks(stream: BinaryIO, dtype: np.dtype[Any], channels: int) -> Iterator[np.ndarray]:
    read = getattr(stream, "read1", stream.read)  # what is there now, where the stream can tell
    frame_bytes, held = dtype.itemsize * channels, b""
    beginning = b""
    while data := read(_BLOCK_FRAMES):
        held += data
        if len(beginning) < HEADER_BYTES:
            beginning += data[:HEADER_BYTES]
            if kind := container_of(beginning):
                raise InputError(f"the stream begins as a {kind} file does, and raw samples were asked for; give the file itself, or let ffmpeg write raw samples (-f s16le)")
        whole = len(held) // frame_bytes * frame_bytes
        if whole:
            yield scaled(np.frombuffer(held[:whole], dtype)).reshape(-1, channels)
        held = held[whole:]


def _open_file(clip: Clip) -> Sound:
    """The first reader that knows the file takes it; where none does, the first reason is told."""
    path = str(clip.path)
    try:
        with open(path, "rb") as file:
            is_headerless = clip.path.suffix.lower() in _HEADERLESS and not container_of(file.read(HEADER_BYTES))
            is_longer = _is_longer_than_told(file)
    except OSError as error:
        raise InputError(f"cannot read sound {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"cannot read sound {path!r}: {error}; give a path without it") from error
    openers: tuple[_Opener, ...] = (_open_wav, _open_soundfile, _open_av) if not is_longer else (_open_soundfile, _open_av, _open_wav)
    reasons: list[Exception] = []
    for opener in (partial(_open_av, form=_HEADERLESS[clip.path.suffix.lower()]),) if is_headerless else openers:
        try:
            rate, blocks = opener(path, clip.start_s)
        except (_UnknownFormatError, MissingLibraryError) as error:
            reasons += [error] if str(error) else []
        else:
            check_rate(rate)
            if is_longer and opener is _open_wav:
                _log.warning("%s goes on behind the end that its header tells, and is read up to there; install soundfile (extra audio), which hears the rest", path)
            return Sound(rate, blocks if clip.end_s is None else _until(blocks, round(clip.end_s * rate) - round(clip.start_s * rate)), clip.name)
    if isinstance(reasons[0], MissingLibraryError):
        raise reasons[0]
    hint = "".join(f"; {reason}" for reason in reasons if isinstance(reason, MissingLibraryError))
    raise InputError(f"cannot read sound {path}: {reasons[0]}{hint}")


class _UnknownFormatError(Exception):
    """Another reader may know this file."""


def _is_longer_than_told(file: BinaryIO) -> bool:
    """Whether the file goes on behind the end that a RIFF header tells: its writer never came back to fill the size in, or something follows the sound."""
    file.seek(0)
    head = file.read(8)
    told = 8 + int.from_bytes(head[4:], "little")
    return head[:4] == b"RIFF" and file.seek(0, os.SEEK_END) > told + 1  # a byte may fill an odd size up


def _open_wav(path: str, start_s: float) -> tuple[int, Iterator[np.ndarray]]:
    broken = (wave.Error, EOFError, RuntimeError)  # RuntimeError: a part that ends behind the whole
    try:
        stream = wave.open(path, "rb")  # noqa: SIM115 - closed by the generator
    except broken as error:
        raise _UnknownFormatError from error
    rate, width = stream.getframerate(), stream.getsampwidth()
    if width not in _WIDTHS:
        stream.close()
        raise _UnknownFormatError(f"samples of {width} bytes")

    def blocks() -> Iterator[np.ndarray]:
        with stream:
            channels = stream.getnchannels()
            with contextlib.suppress(RuntimeError):  # begins behind the end that the header tells
                stream.setpos(min(round(start_s * rate), stream.getnframes()))
                while data := stream.readframes(_BLOCK_FRAMES):
                    whole = len(data) // (width * channels) * width * channels  # a file that was cut off may end within a frame
                    yield _pcm(data[:whole], width).reshape(-1, channels)

    return rate, blocks()


def _open_soundfile(path: str, start_s: float) -> tuple[int, Iterator[np.ndarray]]:
    try:
        import soundfile
    except ImportError as error:
        raise MissingLibraryError("soundfile", "audio", f"{path} is no plain WAV file, and reading it") from error
    broken = (soundfile.LibsndfileError, RuntimeError, TypeError)  # TypeError: a file called .raw, which has no header
    try:
        stream = soundfile.SoundFile(path)
    except broken as error:
        raise _UnknownFormatError(str(error)) from error

    def blocks() -> Iterator[np.ndarray]:
        try:
            with stream:
                if start_s:
                    stream.seek(min(round(start_s * stream.samplerate), stream.frames))
                while len(block := stream.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
                    yield block
        except broken as error:
            raise InputError(f"cannot read sound {path}: {error}") from error

    return int(stream.samplerate), blocks()


def _open_av(path: str, start_s: float, form: str | None = None) -> tuple[int, Iterator[np.ndarray]]:
    try:
        import av
    except ImportError as error:
        raise MissingLibraryError("av", "codecs", f"soundfile does not know the format of {path}; reading it") from error
    try:
        container = av.open(path, format=form)
        stream = next(iter(container.streams.audio), None)
    except av.error.FFmpegError as error:
        raise _UnknownFormatError(str(error)) from error
    codec = None if stream is None else stream.codec_context  # none where FFmpeg knows the container only
    if stream is None or codec is None:
        container.close()
        raise _UnknownFormatError("it holds no sound" if stream is None else "its codec is not known")
    rate = int(codec.sample_rate or 0)
    if not rate:
        container.close()
        raise _UnknownFormatError("it tells no sample rate")

    def blocks() -> Iterator[np.ndarray]:
        try:
            with container:
                for frame in container.decode(stream):
                    values = frame.to_ndarray()  # (channels, n) where planar, else (1, n * channels)
                    yield scaled(values.T if frame.format.is_planar else values.reshape(-1, len(frame.layout.channels)))
        except av.error.FFmpegError as error:
            raise InputError(f"cannot read sound {path}: {error}") from error

    return rate, _without(blocks(), round(start_s * rate))


def _pcm(data: bytes, width: int) -> np.ndarray:
    if width == 3:
        packed = np.frombuffer(data, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(packed), 4), np.uint8)
        wide[:, 1:] = packed  # the low byte stays 0
        return scaled(wide.view("<i4")[:, 0])
    return scaled(np.frombuffer(data, {1: "u1", 2: "<i2", 4: "<i4"}[width]))


def _until(blocks: Iterator[np.ndarray], frames: int) -> Iterator[np.ndarray]:
    """The first frames only; no further block is read."""
    while frames > 0 and (block := next(blocks, None)) is not None:
        yield block[:frames]
        frames -= len(block)


def _without(blocks: Iterator[np.ndarray], frames: int) -> Iterator[np.ndarray]:
    """All but the first frames."""
    for block in blocks:
        if len(block) > frames:
            yield block[frames:]
            break
        frames -= len(block)
    yield from blocks
