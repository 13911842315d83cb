"""A voice that listens, exported: recordings become speaker vectors in a graph of their own, and `infer --voice` speaks with them."""

from __future__ import annotations

import json
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from polyadapt.artifact import Artifact
from polyadapt.cli import main
from polyadapt.edits import Edit
from polyadapt.model import Model, build_model
from polyadapt.signature import Task
from polyadapt.testing.conformance import load_family
from polyadapt_onnx import export
from polyadapt_runtime import Bundle, Processor
from polyadapt_speech.usat.family.card import CARD
from polyadapt_speech.usat.family.model import TINY, tiny_voice

SIZE, RATE_HZ = 6, 16000
IDS = np.array([1, 0, 4, 0, 5, 0, 2])

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    voice = tiny_voice(replace(TINY, speaker_size=SIZE, listens=True))
    spec = {"kind": "phonemes", "language": "en-us", "maximum_tokens": 90, "pad_id": 0, "inputs": {"ids": "input_ids", "mask": "attention_mask"}}
    return build_model(load_family(CARD), voice, Task("synthesis"), Processor(spec), reference="x:tiny-listener")


@pytest.fixture(scope="module")
def ann(model: Model) -> Artifact:
    """An adapted speaker: an edit, and the vector that was fed with it."""
    port, generator = model.ports.ops["encoder.out"], torch.Generator().manual_seed(1)
    tensors = {"a": torch.randn(port.in_features, 2, generator=generator), "b": 0.3 * torch.randn(2, port.out_features, generator=generator)}
    own = {"condition.speaker": torch.randn(SIZE, generator=generator)}
    return Artifact("usat", model.base_id, "voice", "synthesis", (Edit("encoder.out", "lowrank", tensors),), own=own)


@pytest.fixture(scope="module")
def bundle(model: Model, ann: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("listener") / "listener.bundle"
    export(model, {"ann": ann}, place, "slots", {"variants": ("float16",), "legacy_fallback": False})
    return place


def recording(path: Path, pitch_hz: float, seconds: float = 1.3, loudness: float = 0.5) -> Path:
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    pcm = np.rint(32767 * loudness * np.sign(np.sin(2 * np.pi * pitch_hz * time))).astype("<i2")
    with wave.open(str(path), "wb") as stream:
        stream.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        stream.writeframes(pcm.tobytes())
    return path


def samples_of(path: Path) -> np.ndarray:
    with wave.open(str(path)) as stream:
        return np.frombuffer(stream.readframes(stream.getnframes()), "<i2") / 32767


def vector(model: Model, path: Path) -> np.ndarray:
    """torch's speaker vector of a recording, at the voice's rate."""
    heard = Processor(model.family.conditioners(model.backbone)["speaker"].preprocess)(path)
    with torch.no_grad():
        return model.backbone.speaker_vector(torch.from_numpy(heard["audio"])[None], torch.from_numpy(heard["lengths"])[None])[0].numpy()  # type: ignore[operator]


def test_the_graph_hears_what_torch_hears(model: Model, bundle: Path, tmp_path: Path) -> None:
    """At a length that the gate has not seen, and at full scale, in float32 and float16."""
    path, opened = recording(tmp_path / "a.wav", 200.0, 1.7, loudness=1.0), Bundle(bundle)
    expected = vector(model, path)
    assert np.abs(opened.condition(path)["speaker"] - expected).max() <= 1e-5 * np.abs(expected).max()
    half = Bundle(bundle, variant="float16").condition(path)["speaker"]
    assert np.abs(half - expected).max() <= 5e-3 * np.abs(expected).max()
    assert np.allclose(np.linalg.norm(opened.condition(path)["speaker"]), 1.0, atol=1e-5)
    assert opened.selftest().ok


def test_speech_takes_the_voice_of_recordings(model: Model, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command line: two recordings give their mean; text becomes ids as if espeak-ng had been there."""
    monkeypatch.setattr("polyadapt_runtime.phonemes.PhonemeReader.phonemes", lambda self, text: text)
    monkeypatch.setattr("polyadapt_runtime.phonemes.PhonemeReader.ids", lambda self, phonemes: IDS.tolist())
    low, high = recording(tmp_path / "low.wav", 120.0), recording(tmp_path / "high.wav", 700.0)
    speaker = (vector(model, low) + vector(model, high)) / 2
    with torch.no_grad():
        expected = model.module(input_ids=torch.from_numpy(IDS)[None], attention_mask=torch.ones(1, len(IDS), dtype=torch.int64), speaker=torch.from_numpy(speaker)[None])
    out = tmp_path / "out.wav"
    assert main(["infer", str(bundle), "--text", "a", "--voice", str(low), "--voice", str(high), "--out", str(out)]) == 0
    assert np.abs(samples_of(out) - expected["waveform"][0].numpy()).max() <= 1e-3
    assert main(["infer", str(bundle), "--text", "a", "--voice", str(low), "--out", str(tmp_path / "low-out.wav")]) == 0
    assert len(samples_of(tmp_path / "low-out.wav")) != len(samples_of(out)) or np.abs(samples_of(tmp_path / "low-out.wav") - samples_of(out)).max() > 1e-2
    assert main(["infer", str(bundle), "--text", "a", "--artifact", "ann", "--out", str(tmp_path / "ann.wav")]) == 0
    spoken = Bundle(bundle)(IDS, "ann")
    assert np.abs(samples_of(tmp_path / "ann.wav") - spoken["waveform"][: spoken["lengths"]]).max() <= 1e-3
    capsys.readouterr()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "give --voice FILE.wav, a second of speech at least, or --artifact with one of ann"),
        (("--voice", "short.wav"), "hears 1 s at least"),
        (("--voice", "silent.wav"), "is silent"),
        (("--voice", "gone.wav"), "cannot read sound"),
    ],
)
def test_who_speaks_must_be_heard(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    recording(Path("short.wav"), 200.0, 0.9)
    recording(Path("silent.wav"), 200.0, loudness=0.0)
    assert main(["infer", str(bundle), "--text", "a", "--out", "out.wav", *more]) == 1
    assert words in capsys.readouterr().err
    assert not Path("out.wav").exists()


def test_the_manifest_says_what_is_heard(bundle: Path) -> None:
    table = json.loads((bundle / "manifest.json").read_text())
    heard = table["conditioners"]["speaker"]["preprocess"]
    assert (heard["sample_rate_hz"], heard["minimum_seconds"], heard["lengths"]) == (TINY.sample_rate_hz, 1.0, "lengths")
    assert [port["name"] for port in table["graphs"]["speaker"]["inputs"]] == ["audio", "lengths"]
    assert table["graphs"]["speaker"]["exporter"] == "dynamo"
    assert len(table["artifacts"]["ann"]["condition"]["speaker"]) == SIZE
