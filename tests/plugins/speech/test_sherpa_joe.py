"""Piper's joe, through this network, in sherpa-onnx itself: the same samples as the voice in torch, and heard by Whisper."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import polyadapt as pa
from polyadapt.model import Model
from polyadapt_runtime.phonemes import PhonemeReader
from polyadapt_speech.sherpa.export import export

sherpa_onnx = pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not installed; run: pip install sherpa-onnx")

TEXT = "She sells fresh bread, butter and cheese every morning."

pytestmark = [
    pytest.mark.slow,
    pytest.mark.weights("polyadapt:joe"),
    pytest.mark.program("espeak-ng"),
]


@pytest.fixture(scope="module")
def joe() -> Model:
    return pa.load("polyadapt:joe")


@pytest.fixture(scope="module")
def heard(joe: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, int]:
    """What sherpa-onnx says at noise 0, and its rate."""
    folder = export(joe, {}, tmp_path_factory.mktemp("joe") / "joe", {}).directory
    settings = sherpa_onnx.OfflineTtsVitsModelConfig(model=str(folder / "model.onnx"), tokens=str(folder / "tokens.txt"), noise_scale=0.0, noise_scale_w=0.0)
    voice = sherpa_onnx.OfflineTts(sherpa_onnx.OfflineTtsConfig(model=sherpa_onnx.OfflineTtsModelConfig(vits=settings, num_threads=1)))
    call = sherpa_onnx.GenerationConfig()
    call.phoneme_codepoints = [[ord(symbol) for symbol in phonemes(joe)]]
    call.silence_scale = 1.0  # pauses as the voice makes them; by default they are shortened to a fifth
    said = voice.generate("", call)
    return np.array(said.samples, np.float32), said.sample_rate


def phonemes(joe: Model) -> str:
    spec = joe.processor.spec
    return PhonemeReader(spec, Path(joe.processor.assets["phonemes"])).phonemes(TEXT)


def test_it_says_what_the_voice_says(joe: Model, heard: tuple[np.ndarray, int]) -> None:
    samples, rate_hz = heard
    tensors = {name: torch.from_numpy(value)[None] for name, value in joe.processor(TEXT).items()}
    with torch.no_grad():
        expected = joe.module(**tensors)["waveform"][0].numpy()
    assert rate_hz == 22050 and samples.shape == expected.shape
    assert np.abs(samples - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.weights("polyadapt:whisper-tiny.en")
def test_whisper_hears_every_word(heard: tuple[np.ndarray, int]) -> None:
    whisper = pa.load("polyadapt:whisper-tiny.en", pad_to_seconds=30.0)
    (answer,) = pa.infer(whisper, [heard])
    assert re.findall(r"[a-z]+", answer["text"].lower()) == re.findall(r"[a-z]+", TEXT.lower())
