"""Real weights out of the cache. Each test is skipped, with the command that fetches them, where they are missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from polyadapt.model import Model
from polyadapt.sources.load import open_reference


def answers(model: Model, raws: list[object]) -> dict[str, torch.Tensor]:
    batch = model.processor.collate([model.processor(raw) for raw in raws])
    with torch.no_grad():
        outputs: dict[str, torch.Tensor] = model.module(**{name: torch.from_numpy(value) for name, value in batch.items()})
    return outputs


@pytest.mark.weights("polyadapt:efficientnet-lite0")
def test_lite0_knows_a_palace_and_a_daisy() -> None:
    images = pytest.importorskip("sklearn.datasets").load_sample_images().images  # china.jpg, flower.jpg
    model = open_reference("polyadapt:efficientnet-lite0")
    assert len(model.task.labels) == 1000 and model.licences == {"EfficientNet-Lite0, ImageNet": "Apache-2.0 (Google; packaged by ML Illustrated)"}
    chances = answers(model, list(images))["logits"].softmax(-1)
    assert [model.task.labels[index] for index in chances.argmax(-1)] == ["palace", "daisy"]
    assert chances.max(-1).values.min() > 0.25


@pytest.mark.weights("polyadapt:minilm")
def test_minilm_is_the_mean_over_real_tokens() -> None:
    from transformers import AutoModel

    from polyadapt.sources.fetch import package_directory

    model = open_reference("polyadapt:minilm")
    texts: list[object] = ["A cat sits on the mat.", "A kitten is lying on a rug, half asleep.", "Stock markets fell sharply."]
    features = answers(model, texts)["features"]
    theirs = AutoModel.from_pretrained(package_directory("polyadapt:minilm"), local_files_only=True).eval()
    for row, text in enumerate(texts):
        alone = model.processor(text)  # no padding at all: neither the tokenizer's own 128 tokens nor a batch's
        with torch.no_grad():
            hidden = theirs(**{name: torch.from_numpy(value)[None] for name, value in alone.items()}).last_hidden_state
        torch.testing.assert_close(features[row], hidden[0].mean(0), rtol=1e-5, atol=1e-5)
    near = torch.nn.functional.cosine_similarity(features[0], features[1:])
    assert near[0] > 0.4 > 0.2 > near[1]


@pytest.mark.slow
@pytest.mark.weights("polyadapt:smollm2-135m")
def test_smollm2_knows_the_capital_of_france() -> None:
    model = open_reference("polyadapt:smollm2-135m")
    logits = answers(model, ["The capital of France is"])["logits"]
    assert model.processor.text is not None
    assert model.processor.text.decode([int(logits[0, -1].argmax())]) == " Paris"
    assert model.generation["eos_ids"] == [2]
    assert model.processor.text.decode(model.processor("Déjà vu, naïve — ok?")["input_ids"]) == "Déjà vu, naïve — ok?"


@pytest.mark.weights("polyadapt:whisper-tiny.en")
def test_whisper_tiny_en_loads_strictly() -> None:
    model = open_reference("polyadapt:whisper-tiny.en")
    assert sum(parameter.numel() for parameter in model.backbone.parameters()) == 37_760_256
    assert model.generation["start_ids"] == [50257, 50362] and model.generation["eos_ids"] == [50256]
    assert model.generation["timestamps"] == {"first_id": 50363, "off_id": 50362, "step_s": 0.02} and "languages" not in model.generation
    encoder = open_reference("polyadapt:whisper-tiny.en?task=features&pad_to_seconds=1")
    silence = answers(encoder, [(np.full(3000, 1e-3, np.float32), 16000)])["features"]
    assert silence.shape == (1, 384) and torch.isfinite(silence).all()


@pytest.mark.weights("polyadapt:whisper-tiny.en")
def test_whisper_tiny_en_hears_what_transformers_hears() -> None:
    """The whole way of one clip of 30 s: resampling apart, every step equals the library's."""
    from transformers import WhisperFeatureExtractor

    model = open_reference("polyadapt:whisper-tiny.en?pad_to_seconds=30")
    generator = np.random.default_rng(0)
    audio = (0.1 * generator.standard_normal(40000) * np.sin(np.arange(40000) / 3000)).astype(np.float32)
    tokens = torch.tensor([model.generation["start_ids"]])
    batch = model.processor.collate([model.processor((audio, 16000))])
    with torch.no_grad():
        ours = model.module(audio=torch.from_numpy(batch["audio"]), decoder_input_ids=tokens)["logits"]
        mel = WhisperFeatureExtractor()(audio, sampling_rate=16000, return_tensors="pt")["input_features"]
        theirs = model.backbone(input_features=mel, decoder_input_ids=tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)  # logits of about ±20 from a spectrogram equal to 1e-5


@pytest.mark.weights("polyadapt:whisper-base")
def test_whisper_base_knows_languages() -> None:
    from polyadapt.errors import UserError

    french = open_reference("polyadapt:whisper-base?language=fr")
    assert french.generation["start_ids"] == [50258, 50265, 50359, 50363] and french.task.details["language"] == "fr"
    assert french.generation["languages"]["fr"] == 50265 and len(french.generation["languages"]) == 99
    assert french.generation["timestamps"]["first_id"] == 50364
    with pytest.raises(UserError, match="no language 'xx'"):
        open_reference("polyadapt:whisper-base?language=xx")


STAMPS = Path("/usr/share/tuxpaint/stamps")
"""Debian's tuxpaint-stamps-default: captions that people read aloud."""


@pytest.mark.skipif(not STAMPS.is_dir(), reason="no recorded speech here; apt-get install tuxpaint-stamps-default")
def test_log_mel_of_recorded_speech() -> None:
    from transformers import WhisperFeatureExtractor

    from polyadapt.sources.logmel import LogMel
    from polyadapt_runtime.audio import read_audio

    clips = sorted(STAMPS.rglob("*_desc_*.wav"))[:4]
    assert clips
    for clip in clips:
        audio = read_audio(clip, {"sample_rate_hz": 16000})
        theirs = WhisperFeatureExtractor()(audio, sampling_rate=16000, padding="longest", return_tensors="np")["input_features"]
        ours = LogMel()(torch.from_numpy(audio)[None])["mel"].numpy()
        assert np.abs(ours - theirs).max() < 1e-4
