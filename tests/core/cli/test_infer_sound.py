"""`polyadapt infer` on sound: windows, transcripts, a stream on standard input, speech, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import wave
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyadapt as pa
from polyadapt.cli import main
from polyadapt_runtime import Beams, Bundle, Sampling, text_of, transcribe

pytest.importorskip("transformers", reason="the host alone brings no models of sound")

RATE = 16000


def sound(seconds: float) -> np.ndarray:
    """Louder and softer noise by turns, int16."""
    generator = np.random.default_rng(0)
    loudness = np.repeat(generator.uniform(0.02, 0.5, round(seconds * 4) + 1), RATE // 4)[: round(seconds * RATE)]
    found: np.ndarray = np.rint(32767 * loudness * generator.uniform(-1, 1, len(loudness))).astype("<i2")
    return found


def write(path: Path, samples: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as stream:
        stream.setparams((1, 2, RATE, 0, "NONE", ""))
        stream.writeframes(samples.tobytes())
    return path


@pytest.fixture(scope="module")
def ears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of sounds with random weights; its classes are numbers."""
    folder = tmp_path_factory.mktemp("ears")
    assert main(["export", "polyadapt:tiny-wav2vec2?task=classification", "--out", str(folder / "ears.bundle"), "--json"]) == 0
    return folder / "ears.bundle"


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("writer")
    assert main(["export", "polyadapt:tiny-wav2vec2", "--out", str(folder / "writer.bundle"), "--json"]) == 0
    return folder / "writer.bundle"


@pytest.fixture(scope="module")
def dictation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dictation")
    assert main(["export", "polyadapt:tiny-whisper", "--out", str(folder / "dictation.bundle"), "--json"]) == 0
    return folder / "dictation.bundle"


@pytest.fixture(scope="module")
def voice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voice")
    assert main(["export", "polyadapt:tiny-vits", "--out", str(folder / "voice.bundle"), "--json"]) == 0
    return folder / "voice.bundle"


def answered(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Any:
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments)]) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    return line


def test_windows_with_their_times_and_the_mean(ears: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write(tmp_path / "s.wav", sound(2.5))
    (row,) = answered(capsys, "infer", ears, clip, "--window", "1", "--hop", "0.5")
    windows = row["answer"]["windows"]
    assert [(window["start_s"], window["end_s"]) for window in windows] == [(0.0, 1.0), (0.5, 1.5), (1.0, 2.0), (1.5, 2.5)]
    bundle = Bundle(ears)
    samples = sound(2.5)
    alone = [bundle((samples[round(start * RATE) :][:RATE], RATE), top=1000) for start in (0.0, 0.5, 1.0, 1.5)]
    assert [(window["label"], pytest.approx(window["score"], abs=1e-5)) for window in windows] == [(found.label, found.score) for found in alone]
    means = {label: np.mean([dict(found.top)[label] for found in alone]) for label, _ in alone[0].top}
    assert row["answer"]["label"] == max(means, key=lambda label: means[label])
    assert row["answer"]["score"] == pytest.approx(max(means.values()), abs=1e-5)
    assert main(["infer", str(ears), str(clip), "--window", "1", "--hop", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and "1.50–2.50 s" in lines[3] and lines[4].startswith(f"{clip}: {row['answer']['label']} (")


def stream(*arguments: str | Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", "import sys; from polyadapt.cli import main; sys.exit(main(sys.argv[1:]))", "infer", *map(str, arguments)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    )


def test_a_stream_is_answered_window_by_window_while_it_runs(ears: Path, tmp_path: Path) -> None:
    samples = sound(2.2)
    process = stream(ears, "-", "--rate", RATE, "--window", "1")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(samples[: RATE + 5].tobytes())
    process.stdin.flush()
    first = json.loads(process.stdout.readline())  # comes although the stream goes on
    rest, errors = process.communicate(samples[RATE + 5 :].tobytes(), timeout=60)
    rows = [first, *map(json.loads, rest.splitlines())]
    assert process.returncode == 0 and errors == b""
    assert [(row["start_s"], row["end_s"]) for row in rows] == [(0.0, 1.0), (1.0, 2.0), (1.2, 2.2)]
    found = Bundle(ears)((samples[RATE : 2 * RATE], RATE))
    assert rows[1]["label"] == found.label and rows[1]["score"] == pytest.approx(found.score, abs=1e-5)


def test_ctrl_c_ends_a_stream_with_one_line(ears: Path) -> None:
    process = stream(ears, "-", "--rate", RATE, "--encoding", "f32le", "--window", "0.5")
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write((sound(1.0) / 32768).astype("<f4").tobytes())
    process.stdin.flush()
    assert [json.loads(process.stdout.readline())["end_s"] for _ in range(2)] == [0.5, 1.0]
    time.sleep(0.2)  # it waits for more by now
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and rest == b"" and errors.startswith(b"stopped by Ctrl-C") and errors.count(b"\n") == 1


def test_streams_say_their_rate(ears: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "raw samples do not say their rate; give it with --rate" in refused(capsys, "infer", ears, "-")
    assert "give - as the only INPUT" in refused(capsys, "infer", ears, "-", "x.wav", "--rate", "8000")
    assert "read by exported bundles only" in refused(capsys, "infer", "polyadapt:tiny-whisper", "-", "--rate", "8000")
    np.save(tmp_path / "s.npy", sound(0.5))
    assert "does not say its rate" in refused(capsys, "infer", ears, tmp_path / "s.npy")
    (slow,) = answered(capsys, "infer", ears, tmp_path / "s.npy", "--rate", str(RATE))
    (fast,) = answered(capsys, "infer", ears, tmp_path / "s.npy", "--rate", str(RATE // 2))
    assert slow["answer"]["score"] != fast["answer"]["score"]


def test_a_long_recording_is_transcribed_whole(writer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write(tmp_path / "s.wav", sound(31.0))
    (row,) = answered(capsys, "infer", writer, clip)
    bundle, samples = Bundle(writer), sound(31.0)
    expected = " ".join(bundle((part, RATE)) for part in (samples[: 30 * RATE], samples[30 * RATE :]))
    assert row["answer"] == expected.strip()
    assert "has no option 'language'" in refused(capsys, "infer", writer, clip, "--language", "fr")


def test_speech_is_written(voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.wav"
    assert main(["infer", str(voice), "--text", "good morning", "--out", str(out)]) == 0
    found = Bundle(voice)("good morning")
    with wave.open(str(out)) as written:
        samples = np.frombuffer(written.readframes(written.getnframes()), "<i2")
        assert (written.getframerate(), written.getnchannels(), written.getsampwidth()) == (16000, 1, 2)
    assert len(samples) == found["lengths"] and np.abs(samples / 32767 - found["waveform"][: len(samples)]).max() <= 1e-3
    assert "exists already" in refused(capsys, "infer", voice, "--text", "good morning", "--out", out)
    assert "takes one text" in refused(capsys, "infer", voice, "--text", "a", "b", "--out", tmp_path / "b.wav")
    assert not (tmp_path / "b.wav").exists()


def test_options_reach_the_answer_they_belong_to(ears: Path, writer: Path, dictation: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, samples = write(tmp_path / "s.wav", sound(1.0)), sound(1.0)
    (row,) = answered(capsys, "infer", dictation, clip, "-o", "beams=3", "-o", "maximum_new_tokens=7", "-o", "device=cpu")
    assert row["answer"] == Bundle(dictation).generate((samples, RATE), 7, beams=Beams(3)).strip()
    (row,) = answered(capsys, "infer", dictation, clip, "-o", "temperature=2.0", "-o", "seed=3", "-o", "maximum_new_tokens=7")
    assert row["answer"] == Bundle(dictation).generate((samples, RATE), 7, sampling=Sampling(2.0, seed=3)).strip()
    (row,) = answered(capsys, "infer", writer, clip, "-o", "beams=8")
    assert row["answer"] == Bundle(writer)((samples, RATE), beams=8) != Bundle(writer)((samples, RATE))
    (row,) = answered(capsys, "infer", ears, clip, "-o", "top=2", "-o", "batch_size=1")
    assert len(row["answer"]["top"]) == 2
    (row,) = answered(capsys, "infer", ears, clip, "--window", "0.5", "-o", "top=1")
    assert len(row["answer"]["top"]) == 1 and len(row["answer"]["windows"]) == 2
    (row,) = answered(capsys, "infer", voice, "--text", "a", "--out", tmp_path / "a.wav", "-o", "device=cpu")
    assert row["answer"]["file"] == str(tmp_path / "a.wav") and row["answer"]["sample_rate_hz"] == RATE


def test_options_of_another_answer_are_refused(ears: Path, writer: Path, dictation: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write(tmp_path / "s.wav", sound(0.5))
    assert "has no option 'topp'; did you mean 'top'?" in refused(capsys, "infer", ears, clip, "-o", "topp=2")
    assert "has no option 'beamz'; did you mean 'beams'?" in refused(capsys, "infer", writer, clip, "-o", "beamz=2")
    assert "for a transcript has no option 'temprature'; did you mean 'temperature'?" in refused(capsys, "infer", dictation, clip, "-o", "temprature=1.0")
    assert "for windows of a sound (--window) has no option 'batch_size'" in refused(capsys, "infer", ears, clip, "--window", "0.5", "-o", "batch_size=2")
    assert "for a stream (INPUT -) has no option 'top'" in refused(capsys, "infer", ears, "-", "--rate", "8000", "-o", "top=2")
    assert "for speech (--out) has no option 'scal'; did you mean 'scale'?" in refused(capsys, "infer", voice, "--text", "a", "--out", tmp_path / "o.wav", "-o", "scal=1")
    assert "option 'beams': Input should be a valid integer" in refused(capsys, "infer", dictation, clip, "-o", "beams=many")
    assert "a beam search draws nothing" in refused(capsys, "infer", dictation, clip, "-o", "beams=2", "-o", "temperature=1.0")
    assert "scale=0.5 without an artifact" in refused(capsys, "infer", ears, clip, "--window", "0.5", "-o", "scale=0.5")
    assert "device 'tpu'; known" in refused(capsys, "infer", ears, clip, "-o", "device=tpu")


def test_flags_of_another_answer_are_refused(ears: Path, writer: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, out = write(tmp_path / "s.wav", sound(0.5)), tmp_path / "o.wav"
    cases: list[tuple[list[str | Path], str]] = [
        ([ears, clip, "--window", "0.5", "--timestamps"], "for windows of a sound (--window) leave --timestamps out"),
        ([ears, clip, "--window", "0.5", "--language", "fr"], "for windows of a sound (--window) leave --language out"),
        ([ears, "-", "--rate", "8000", "--out", out], "for a stream (INPUT -) leave --out out"),
        ([ears, "-", "--rate", "8000", "--language", "fr"], "for a stream (INPUT -) leave --language out"),
        ([voice, "--text", "a", "--out", out, "--window", "1"], "for speech (--out) leave --window out"),
        ([writer, clip, "--text"], "for a transcript frame by frame leave --text out"),
        ([ears, clip, "--encoding", "s16le"], "for classes leave --encoding out"),
        ([ears, clip, "--rate", "8000"], "a sound file says its own; leave --rate out"),
        ([ears, clip, "-m", "seed=1"], "leave --model-option out"),
        (["polyadapt:tiny-whisper", clip, "--channels", "2"], "--channels is for exported bundles"),
    ]
    for arguments, message in cases:
        assert message in refused(capsys, "infer", *arguments)
    assert not out.exists()


def test_texts_are_written_as_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "clerk.bundle"
    assert main(["export", "polyadapt:tiny-llama?task=causal-lm", "--out", str(folder), "--json"]) == 0
    (row,) = answered(capsys, "infer", folder, "abc", "-o", "beams=3", "-o", "maximum_new_tokens=5", "-o", "repetition_penalty=1.5")
    assert row["answer"] == Bundle(folder).generate("abc", 5, beams=Beams(3), sampling=Sampling(repetition_penalty=1.5))
    long = "a" * 300  # no name of a file is as long
    (row,) = answered(capsys, "infer", folder, long, "-o", "maximum_new_tokens=3", "-o", 'stop=["zz"]')
    assert row["answer"] == Bundle(folder).generate(long, 3)
    assert "for a text has no option 'top'; did you mean" in refused(capsys, "infer", folder, "abc", "-o", "top=3")


def test_files_that_are_not_what_their_name_says_are_one_line(ears: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "whole.npy", sound(0.1))
    whole = (tmp_path / "whole.npy").read_bytes()
    np.savez(tmp_path / "several.npz", x=sound(0.1))
    for name, content in (
        ("empty", b""),
        ("cut", whole[:-7]),
        ("header", whole[:40]),
        ("huge", whole.replace(b"(1600,), }", b"(9" + b"0" * 12 + b",), }")[: len(whole)]),
        ("odd", whole.replace(b"'descr'", b"'descr(")),
        ("torn", whole.replace(b", }  ", b", } {", 1)),
        ("noise", bytes(range(256))),
        ("zip", (tmp_path / "several.npz").read_bytes()),
    ):
        (tmp_path / f"{name}.npy").write_bytes(content)
        assert f"{name}.npy is not a whole .npy file (" in refused(capsys, "infer", ears, tmp_path / f"{name}.npy", "--rate", "8000")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    assert "save one array of numbers" in refused(capsys, "infer", ears, tmp_path / "objects.npy", "--rate", "8000")
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    assert "latin.txt is not UTF-8 text (byte 2)" in refused(capsys, "infer", ears, tmp_path / "latin.txt")


def test_a_window_longer_than_the_frames_of_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A spectrogram of 32 frames reaches to 0.335 s; what is longer is cut with a warning where no windows are asked for."""
    folder, clip = tmp_path / "frames.bundle", write(tmp_path / "s.wav", sound(1.0))
    assert main(["export", "polyadapt:tiny-ast?task=classification", "--out", str(folder), "--json"]) == 0
    assert "hears 0.335 s at most, asked were windows of 0.5 s" in refused(capsys, "infer", folder, clip, "--window", "0.5")
    (row,) = answered(capsys, "infer", folder, clip, "--window", "0.3")
    assert len(row["answer"]["windows"]) == 4
    capsys.readouterr()
    assert main(["infer", str(folder), str(clip)]) == 0
    assert "was cut to maximum_seconds = 0.335" in capsys.readouterr().err


def test_one_input_that_is_bad_takes_no_other_s_answer_away(ears: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, gone = write(tmp_path / "s.wav", sound(0.5)), tmp_path / "bad.wav", tmp_path / "bad.npy"
    bad.write_bytes(b"RIFF no sound")
    gone.write_bytes(b"no array")
    (alone,) = answered(capsys, "infer", ears, good)
    assert main(["infer", str(ears), str(good), str(bad), str(gone), str(good), "--rate", "8000", "--json"]) == 1
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    assert [row["input"] for row in rows] == [str(path) for path in (good, bad, gone, good)]
    assert rows[0]["answer"] == rows[3]["answer"] == alone["answer"] and "cannot read sound" in rows[1]["error"]
    assert "error: cannot read sound" in printed.err and "bad.npy is not a whole .npy file" in printed.err
    assert main(["infer", str(ears), str(good), str(bad)]) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{good}: ") and printed.out.count("\n") == 1


def test_a_stream_that_is_a_file_or_empty_is_no_noise(ears: Path, tmp_path: Path) -> None:
    clip = write(tmp_path / "s.wav", sound(0.5))
    for content, words in ((clip.read_bytes(), "the stream begins as a WAV file does"), (b"fLaC" + bytes(64), "as a FLAC file does"), (b"", "the stream is empty")):
        process = stream(ears, "-", "--rate", RATE)
        printed, errors = process.communicate(content, timeout=60)
        assert process.returncode == 1 and words in errors.decode() and not printed


def test_what_does_not_go_together_is_refused(ears: Path, writer: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = write(tmp_path / "s.wav", sound(0.5))
    assert "--hop needs --window" in refused(capsys, "infer", ears, clip, "--hop", "1")
    assert "would leave sound out" in refused(capsys, "infer", ears, clip, "--window", "1", "--hop", "2")
    assert "needs a model of sound for classification" in refused(capsys, "infer", writer, clip, "--window", "1")
    assert "--language and --timestamps are for bundles that transcribe" in refused(capsys, "infer", ears, clip, "--timestamps")
    assert "--out is for bundles that speak" in refused(capsys, "infer", ears, clip, "--out", tmp_path / "o.wav")
    assert "the text is empty" in refused(capsys, "infer", voice, "--text", " ", "--out", tmp_path / "o.wav")
    assert "speech is written as WAV, and o.mp3 is called otherwise; give --out o.wav" in refused(capsys, "infer", voice, "--text", "a", "--out", tmp_path / "o.mp3")
    assert "--out takes one text" in refused(capsys, "infer", voice, clip, "--out", tmp_path / "o.wav")
    assert main(["infer", str(voice), "a b", "--out", str(tmp_path / "said.wav")]) == 0  # no file is called so
    assert "speaks with a voice of its own" in refused(capsys, "infer", voice, "--text", "a", "--voice", clip, "--out", tmp_path / "o.wav")
    assert "--voice says who speaks; give --out" in refused(capsys, "infer", voice, "--text", "a", "--voice", clip)
    assert "--voice is for exported bundles" in refused(capsys, "infer", "polyadapt:tiny-vits", "--text", "a", "--voice", clip)
    assert "--window is for exported bundles" in refused(capsys, "infer", "polyadapt:tiny-whisper", clip, "--window", "1")
    (tmp_path / "broken.wav").write_bytes(b"RIFF no sound")
    assert "cannot read sound" in refused(capsys, "infer", ears, tmp_path / "broken.wav")
    assert "No such file" in refused(capsys, "infer", ears, tmp_path / "gone.wav")


@pytest.mark.wide
def test_a_transcript_has_its_language_and_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tiny model with a vocabulary in Whisper's order: twenty words, the start, two languages, the task, `no times`, and times."""
    start, french, english, task, off, first = range(20, 26)
    model = pa.load("polyadapt:tiny-whisper")
    model.generation.update({"start_ids": [start, french, task, off], "languages": {"fr": french, "en": english}, "suppress_ids": [start, french, english, task, off]})
    model.generation["timestamps"] = {"first_id": first, "off_id": off, "step_s": 0.1}
    folder, clip = tmp_path / "dictation.bundle", write(tmp_path / "s.wav", sound(1.0))
    pa.export(model, {}, folder)
    bundle, heard = Bundle(folder), (sound(1.0), RATE)
    said = {}
    for language in ("fr", "en"):
        (row,) = answered(capsys, "infer", folder, clip, "--language", language, "-o", "maximum_new_tokens=9")
        said[language] = row["answer"]
        assert row["answer"] == bundle.generate(heard, 9, language=language).strip()
    assert said["fr"] != said["en"]
    (row,) = answered(capsys, "infer", folder, clip, "--language", "en", "--timestamps", "-o", "maximum_new_tokens=9")
    segments = list(transcribe(bundle, heard, language="en", timestamps=True, max_tokens=9))
    assert row["answer"]["segments"] == [asdict(segment) for segment in segments] and segments
    assert row["answer"]["text"] == text_of(segments)
    capsys.readouterr()
    assert main(["infer", str(folder), str(clip), "--language", "en", "--timestamps", "-o", "maximum_new_tokens=9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= len(segments)
    assert "knows no language 'de'; known: en, fr" in refused(capsys, "infer", folder, clip, "--language", "de")
