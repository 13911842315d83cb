"""Real weights write from bundles what they write in transformers: 64 tokens of SmolLM2 with a LoRA, a transcript by Whisper."""

from __future__ import annotations

import subprocess
import wave
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

import polyadapt as pa
from polyadapt.artifact import Artifact, detach
from polyadapt.methods.base import load_method
from polyadapt.methods.lora.card import CARD as LORA
from polyadapt.methods.lora.card import LoraOptions
from polyadapt.model import Model
from polyadapt.testing.conformance import non_degenerate
from polyadapt_runtime import Beams, Bundle

SENTENCE = "The quick brown fox jumps over the lazy dog, and then it goes home."
PROMPT = "A traveller asks: What is a boat? The clerk answers:"


def small_lora(model: Model) -> Artifact:
    """A seeded LoRA in the last two blocks, small enough that what is said stays language."""
    form = load_method(LORA).build(model, LoraOptions(sites=("block.2[89].attn.[qv]", "block.29.ffn.down")), torch.Generator().manual_seed(1))
    non_degenerate(form)
    edits = tuple(replace(edit, tensors={"a": edit.tensors["a"], "b": 0.1 * edit.tensors["b"]}) for edit in form.lower())
    return Artifact("lora", model.base_id, model.family.card.id, model.task.kind, edits)


@pytest.mark.slow
@pytest.mark.weights("polyadapt:smollm2-135m")
def test_64_tokens_of_smollm2_with_a_lora(tmp_path: Path) -> None:
    model = pa.load("polyadapt:smollm2-135m")
    backbone: Any = model.backbone
    artifact = small_lora(model)
    bundle = Bundle(pa.export(model, {"lora": artifact}, tmp_path / "text.bundle").directory, device="cpu", threads=1)
    reader = model.processor.text
    assert reader is not None
    ids = torch.tensor([reader.encode(PROMPT, cut=False)[0]])
    backbone.generation_config = GenerationConfig(pad_token_id=0)  # nothing ends a text before its 64 tokens
    texts = []
    for name in (None, "lora"):
        if name is not None:
            artifact.attach(model)
        with torch.inference_mode():
            said = backbone.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False)
        if name is not None:
            detach(model)
        assert said.shape[1] == ids.shape[1] + 64
        texts.append(bundle.generate(PROMPT, 64, artifact=name, stop_ids=()))
        print(f"{name or 'base'}: {texts[-1]!r}")
        assert texts[-1] == reader.decode(said[0, ids.shape[1] :].tolist())
    assert texts[0] != texts[1] and all(texts)


def spoken(path: Path) -> np.ndarray:
    """A sentence as float32 samples at 16 kHz, spoken by espeak-ng."""
    subprocess.run(["espeak-ng", "-v", "en-us", "-s", "140", "-w", str(path), SENTENCE], check=True, timeout=60)
    with wave.open(str(path)) as file:
        assert file.getsampwidth() == 2 and file.getnchannels() == 1
        return np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768


@pytest.mark.slow
@pytest.mark.program("espeak-ng")
@pytest.mark.weights("polyadapt:whisper-tiny.en")
def test_a_recording_is_transcribed_as_transformers_does(tmp_path: Path) -> None:
    """`generate` of transformers on its own 30 s spectrogram, and the bundle on the samples of the file."""
    from transformers import WhisperFeatureExtractor

    spoken(tmp_path / "fox.wav")
    model = pa.load("polyadapt:whisper-tiny.en", pad_to_seconds=30)
    backbone: Any = model.backbone
    bundle = Bundle(pa.export(model, {}, tmp_path / "ear.bundle").directory, device="cpu", threads=1)
    samples = model.processor(str(tmp_path / "fox.wav"))["audio"]
    mel = WhisperFeatureExtractor()(samples, sampling_rate=16000, return_tensors="pt").input_features  # (1, 80, 3000)
    start, plain = model.generation["start_ids"]
    backbone.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        eos_token_id=model.generation["eos_ids"],
        pad_token_id=model.generation["eos_ids"][0],
        suppress_tokens=model.generation["suppress_ids"],
        begin_suppress_tokens=model.generation["begin_suppress_ids"],
        no_timestamps_token_id=plain,
        is_multilingual=False,
        max_length=448,
        return_timestamps=False,
    )
    reader = bundle._writer.reader
    assert reader is not None
    for beams in (None, Beams(4)):
        with torch.inference_mode():
            said = backbone.generate(mel, max_new_tokens=64, num_beams=beams.count if beams else 1, do_sample=False)
        text = bundle.generate(str(tmp_path / "fox.wav"), 64, beams=beams)
        print(f"{beams}: {text!r}")
        assert text == reader.decode(said[0].tolist())
        assert "quick" in text and text.endswith("home.")  # so much of synthetic speech the smallest Whisper hears
