"""Files of every sort, parts of files and streams: what a file is, its content says."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyadapt_runtime import Clip, InputError, MissingLibraryError, pcm_sound
from polyadapt_runtime.sound import open_sound

FORMS = [("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("AIFF", "PCM_16")]


def tone(samples: int, rate: int = 16000) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * 440 * np.arange(samples) / rate)).astype(np.float32)


def read(raw: Any) -> tuple[np.ndarray, int]:
    sound = open_sound(raw)
    return np.concatenate([np.zeros((0, 1), np.float32), *sound.blocks]), sound.rate_hz


def write_wav(path: Path, samples: np.ndarray, rate: int = 16000) -> Path:
    with wave.open(str(path), "wb") as stream:
        stream.setparams((1, 2, rate, 0, "NONE", ""))
        stream.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return path


def test_a_stream_may_arrive_byte_by_byte_and_is_no_file() -> None:
    class Trickle(io.RawIOBase):
        def __init__(self, content: bytes) -> None:
            self._left = content

        def read(self, size: int = -1) -> bytes:
            first, self._left = self._left[:1], self._left[1:]
            return first

    heard = pcm_sound(Trickle(b"\x80\xffRIFF"), 8000, "u8")  # type: ignore[arg-type]
    assert np.concatenate(list(heard.blocks)).shape == (6, 1), "only the beginning is a header"
    for encoding in ("u8", "s16le"):
        with pytest.raises(InputError, match="the stream begins as a WAV file does"):
            list(pcm_sound(Trickle(b"RIFF" + bytes(8)), 8000, encoding).blocks)  # type: ignore[arg-type]


@pytest.mark.parametrize(("start_s", "end_s"), [(5.0, 1.0), (-1.0, 0.1), (0.4, 0.4), (0.0, float("nan"))])
def test_a_part_that_is_none_is_refused(start_s: float, end_s: float) -> None:
    with pytest.raises(InputError, match="a part of a.wav begins at 0 s or later and ends behind that"):
        Clip("a.wav", start_s, end_s)  # type: ignore[arg-type]


@pytest.mark.parametrize(("form", "subtype"), FORMS)
def test_the_content_decides_and_not_the_name(tmp_path: Path, form: str, subtype: str) -> None:
    soundfile = pytest.importorskip("soundfile")
    if subtype not in soundfile.available_subtypes(form):
        pytest.skip(f"this libsndfile writes no {subtype}")
    path = tmp_path / "called.wav"
    soundfile.write(path, tone(48000, 48000), 48000, format=form, subtype=subtype)
    peer, rate = soundfile.read(path, dtype="float32", always_2d=True)
    found, found_rate = read(path)
    assert found_rate == rate == 48000 and np.array_equal(found, peer)
    assert np.corrcoef(found[10000:40000, 0], tone(48000, 48000)[10000:40000])[0, 1] > 0.9 or subtype in ("OPUS", "MPEG_LAYER_III")  # those begin later


def test_wav_under_another_name(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "called.g722", tone(1000))
    assert np.abs(read(path)[0][:, 0] - tone(1000)).max() <= 1 / 32767


@pytest.mark.parametrize(("form", "subtype"), [*FORMS, ("CAF", "PCM_16"), ("AU", "PCM_16"), ("RF64", "PCM_16"), ("W64", "PCM_16")])
def test_a_file_is_neither_taken_for_raw_g722_nor_for_raw_samples(tmp_path: Path, form: str, subtype: str) -> None:
    """Both are formats without a header, in which any byte is sound."""
    soundfile = pytest.importorskip("soundfile")
    if form not in soundfile.available_formats() or subtype not in soundfile.available_subtypes(form):
        pytest.skip(f"libsndfile here does not write {form} with {subtype}")
    rate = 48000 if subtype == "OPUS" else 44100
    path = tmp_path / "called.g722"
    soundfile.write(path, tone(rate, rate), rate, format=form, subtype=subtype)
    found, found_rate = read(path)
    assert found_rate == rate and abs(len(found) - rate) <= 3000
    with pytest.raises(InputError, match="the stream begins as a .* file does"):
        list(pcm_sound(io.BytesIO(path.read_bytes()), rate).blocks)


def test_samples_that_begin_as_a_frame_of_mp3_are_samples() -> None:
    """Its mark has eleven bits, which -1025 has as well; a second frame has to follow where the first ends."""
    samples = np.full(4000, -1025, "<i2")
    assert len(np.concatenate(list(pcm_sound(io.BytesIO(samples.tobytes()), 8000).blocks))) == 4000
    samples[:] = np.random.default_rng(0).integers(-2000, 2000, 4000)
    samples[:2] = -1025, 0x1290
    assert len(np.concatenate(list(pcm_sound(io.BytesIO(samples.tobytes()), 8000).blocks))) == 4000


def test_a_part_of_a_file(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    samples = tone(200_000)
    paths = [write_wav(tmp_path / "s.wav", samples), tmp_path / "s.flac"]
    soundfile.write(paths[1], samples, 16000)
    for path in paths:
        whole = read(path)[0]
        assert np.array_equal(read(Clip(path, 1.5, 9.25))[0], whole[24000:148000])
        assert np.array_equal(read(Clip(path, 12.0))[0], whole[192000:])
        assert len(read(Clip(path, 99.0))[0]) == 0


def test_a_file_that_was_cut_off_gives_what_is_there(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "s.wav", tone(1000))
    path.write_bytes(path.read_bytes()[:-501])
    assert len(read(path)[0]) == 749


def unfinished(path: Path, told: int, has_list: bool) -> np.ndarray:
    """A WAV file whose RIFF size was never filled in, as programs leave it that write to a pipe or are stopped; the samples in it."""
    pcm = np.arange(20000, dtype="<i2")
    tags = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf60.16.100\0"
    head = b"RIFF" + struct.pack("<I", told) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16)
    path.write_bytes(head + (tags if has_list else b"") + b"data" + struct.pack("<I", pcm.nbytes) + pcm.tobytes())
    return pcm[:, None].astype(np.float32) / 32768


@pytest.mark.parametrize("told", [0, 36, 16000, 0xFFFFFFFF])
@pytest.mark.parametrize("has_list", [False, True])
def test_a_header_that_tells_too_short_a_file_cuts_nothing(tmp_path: Path, told: int, has_list: bool, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("soundfile")
    samples = unfinished(tmp_path / "s.wav", told, has_list)
    assert np.array_equal(read(tmp_path / "s.wav")[0], samples)
    assert np.array_equal(read(Clip(tmp_path / "s.wav", 1.0))[0], samples[16000:])
    assert not caplog.records


def test_what_follows_the_sound_harms_nothing_where_no_other_reader_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The plain reader is the last one then, and says so where it stops before the file does."""
    path = write_wav(tmp_path / "s.wav", tone(1000))
    whole, plain = read(path)[0], path.read_bytes()
    for name in ("soundfile", "av"):
        monkeypatch.setitem(sys.modules, name, None)
    path.write_bytes(plain + b"\0")  # as where an odd size was filled up
    assert np.array_equal(read(path)[0], whole) and not caplog.records
    path.write_bytes(plain + b"TAG" + bytes(125))
    assert np.array_equal(read(path)[0], whole)
    assert "goes on behind the end that its header tells" in caplog.text
    samples = unfinished(path, 16000, False)
    assert np.array_equal(read(path)[0], samples[: (8 + 16000 - 44) // 2])
    assert len(read(Clip(path, 1.0))[0]) == 0
    unfinished(path, 36, True)
    with pytest.raises(MissingLibraryError, match="needs soundfile"):
        read(path)


def test_a_codec_that_nothing_knows_is_one_line(tmp_path: Path) -> None:
    """FFmpeg knows the container and has no decoder for the sound in it."""
    pytest.importorskip("soundfile")
    pytest.importorskip("av", reason="pip install 'polyadapt-runtime[codecs]'")
    path = write_wav(tmp_path / "s.wav", tone(1000))
    path.write_bytes(path.read_bytes().replace(b"\x10\0\0\0\x01\0", b"\x10\0\0\0\x01\x80", 1))
    with pytest.raises(InputError, match=r"cannot read sound .*s\.wav: "):
        read(path)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"", "empty.wav"),
        (b"RIFF", "short.wav"),
        (b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\x01\0\0\0\x80\x3e\0\0\0\x7d\0\0\0\0\x10\0data\0\0\0\0", "no-channels.wav"),
        (b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\0\0\0\0\0\0\0\0\x02\0\x10\0data\x04\0\0\0\0\0\0\0", "no-rate.wav"),
        (b"fLaC\0\0\0", "short.flac"),
        (b"OggS" + bytes(40), "broken.ogg"),
        (b"%PDF-1.7 nothing to hear", "paper.mp3"),
        (bytes(range(256)) * 8, "noise.bin"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, content: bytes, name: str) -> None:
    pytest.importorskip("soundfile")
    (tmp_path / name).write_bytes(content)
    with pytest.raises((InputError, MissingLibraryError)) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value) or "sample rate" in str(caught.value)


def test_folders_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read sound .*gone\.wav: No such file"):
        read(tmp_path / "gone.wav")
    with pytest.raises(InputError, match="cannot read sound .*: Is a directory"):
        read(tmp_path)
    with pytest.raises(InputError, match="embedded null byte"):
        read("a\0b.wav")
    with pytest.raises(InputError, match="found int"):
        read(3)
    (tmp_path / "words.flac").write_text("no sound")  # PyAV takes it for a stream that tells no rate
    with pytest.raises(InputError, match=r"cannot read sound .*words\.flac: "):
        read(tmp_path / "words.flac")


def test_samples_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    samples = tone(1000)
    samples[700] = np.nan
    soundfile.write(tmp_path / "s.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(InputError, match=r"s\.wav has samples that are not finite numbers"):
        list(open_sound(tmp_path / "s.wav").mono())


@pytest.mark.skipif(shutil.which("ffmpeg") is None and not Path("/usr/share/asterisk/sounds/en_US_f_Allison/activated.g722").is_file(), reason="nothing in G.722 here")
def test_g722_through_av(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="pip install 'polyadapt-runtime[codecs]'")
    path = Path("/usr/share/asterisk/sounds/en_US_f_Allison/activated.g722")
    if not path.is_file():
        path = tmp_path / "s.g722"
        subprocess.run(["ffmpeg", "-loglevel", "error", "-i", write_wav(tmp_path / "s.wav", tone(16000)), str(path)], check=True)
    found, rate = read(path)
    assert rate == 16000 and len(found) == 2 * path.stat().st_size  # G.722 at 64 kbit/s holds two samples a byte
    assert 0.01 < np.sqrt(np.mean(found**2)) < 0.5
    assert np.array_equal(read(Clip(path, 0.25))[0], found[4000:])


def test_g722_without_av_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "s.g722").write_bytes(bytes(range(256)))
    with pytest.raises(MissingLibraryError, match=r"needs av, which is not installed; run: pip install 'polyadapt-runtime\[codecs\]'"):
        read(tmp_path / "s.g722")


class Drops:
    """A stream that gives a few bytes at a time, as a pipe does."""

    def __init__(self, data: bytes, sizes: tuple[int, ...]) -> None:
        self._data, self._sizes, self._turn = io.BytesIO(data), sizes, 0

    def read1(self, size: int) -> bytes:
        self._turn += 1
        return self._data.read(self._sizes[self._turn % len(self._sizes)])

    read = read1


@pytest.mark.parametrize(("encoding", "dtype", "scale"), [("s16le", "<i2", 32768), ("s32le", "<i4", 2**31), ("f32le", "<f4", 1)])
def test_raw_samples_of_a_stream(encoding: str, dtype: str, scale: int) -> None:
    frames = (np.random.default_rng(0).uniform(-0.9, 0.9, (500, 2)) * scale).astype(dtype)
    sound = pcm_sound(Drops(frames.tobytes() + b"\x01", (3, 16, 1)), 8000, encoding, 2)  # type: ignore[arg-type]
    found = np.concatenate(list(sound.blocks))
    assert sound.rate_hz == 8000 and np.allclose(found, frames / scale, rtol=0, atol=1e-7)  # the byte that is no frame is dropped


def test_a_stream_of_unknown_samples_is_refused() -> None:
    for arguments in ((16000, "s24"), (16000, "s16le", 0), (0, "s16le")):
        with pytest.raises(InputError):
            pcm_sound(io.BytesIO(b""), *arguments)  # type: ignore[arg-type]
