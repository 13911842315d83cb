"""A real voice: Piper's joe on this plugin's network, against its own graph, and heard by Whisper."""

from __future__ import annotations

import re

import numpy as np
import onnxruntime
import pytest
import torch

import polyadapt as pa
from polyadapt.model import Model
from polyadapt.sources.fetch import fetched_directory
from polyadapt_speech.usat.voices.card import JOE, JOE_FILE

SENTENCES = ("The boat sails across the bay.", "Is this the way to the station, or did we miss it?", "She sells fresh bread, butter and cheese every morning.")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.weights("polyadapt:joe"),
    pytest.mark.program("espeak-ng"),
]


@pytest.fixture(scope="module")
def joe() -> Model:
    return pa.load("polyadapt:joe", noise_inputs=True)


def inputs_of(model: Model, text: str, length_scale: float = 1.0) -> dict[str, torch.Tensor]:
    """A text at noise 0."""
    tensors = {name: torch.from_numpy(value)[None] for name, value in model.processor(text).items()}
    tokens = tensors["input_ids"].shape[1]
    return {**tensors, "noise": torch.zeros(1, 192, 1), "duration_noise": torch.zeros(1, 2, tokens), "length_scale": torch.tensor([length_scale])}


def test_joe_is_the_size_that_its_card_says(joe: Model) -> None:
    """Text encoder 6 341 760, flow 7 090 560, decoder 1 662 976, durations 555 163."""
    parts = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in joe.backbone.named_children()}
    assert parts == {"text_encoder": 6341760, "durations": 555163, "flow": 7090560, "decoder": 1662976}


@pytest.mark.parametrize("text", SENTENCES)
@pytest.mark.parametrize("length_scale", [1.0, 0.8, 1.3])
def test_joe_speaks_as_his_own_graph(joe: Model, text: str, length_scale: float) -> None:
    path = fetched_directory("polyadapt:joe", JOE, [JOE_FILE]) / JOE_FILE
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = inputs_of(joe, text, length_scale)
    ids = inputs["input_ids"].numpy()
    (expected,) = session.run(None, {"input": ids, "input_lengths": np.array([ids.shape[1]]), "scales": np.array([0, length_scale, 0], np.float32)})
    with torch.no_grad():
        found = joe.module(**inputs)["waveform"].numpy()
    assert found.shape == expected.reshape(1, -1).shape
    assert np.abs(found - expected.reshape(1, -1)).max() <= 1e-4


@pytest.mark.weights("polyadapt:whisper-tiny.en")
def test_whisper_hears_every_word(joe: Model) -> None:
    whisper = pa.load("polyadapt:whisper-tiny.en", pad_to_seconds=30.0)  # what it was trained with; shorter sounds make it repeat itself
    with torch.no_grad():
        waves = [joe.module(**inputs_of(joe, text))["waveform"][0].numpy() for text in SENTENCES]
    answers = pa.infer(whisper, [(wave, 22050) for wave in waves])
    for text, answer in zip(SENTENCES, answers, strict=True):
        assert words(answer["text"]) == words(text)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())
