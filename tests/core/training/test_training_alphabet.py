"""Frames of an encoder and a head of the data's own letters: alphabets, what lies outside, and a run from clips to transcripts."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polyadapt as pa
from polyadapt.data.dataset import Dataset, Example
from polyadapt.errors import UserError
from polyadapt.host import Host
from polyadapt.job.run import run_recipe
from polyadapt.methods.base import load_method
from polyadapt.methods.linear_probe.card import CARD as PROBE
from polyadapt.model import Model
from polyadapt.recipe import parse_recipe
from polyadapt.signature import Task
from polyadapt.training.alphabet import alphabet_of, letters_outside
from polyadapt.training.batches import TrainingData
from polyadapt.training.fitting import fit, labelled
from polyadapt.training.losses import edit_distance, objective_for
from polyadapt.training.settings import TrainSettings

PITCHES_HZ = {"a": 300.0, "b": 900.0, "c": 2400.0}
SECONDS = 0.12


def clip(text: str, seed: int = 0) -> np.ndarray:
    """A tone for each letter and a gap behind it, float32 at 16 kHz."""
    time = np.arange(int(16000 * SECONDS)) / 16000
    parts = [part for letter in text for part in (np.sin(2 * np.pi * PITCHES_HZ[letter] * time), np.zeros(len(time) // 2))]
    noise = np.random.default_rng(seed).normal(size=sum(map(len, parts)), scale=0.01)
    return np.asarray(0.3 * np.concatenate(parts) + noise, np.float32)


def spoken(texts: list[str], seed: int = 0) -> Dataset:
    return Dataset("tones", [Example(f"{seed}-{row}", (clip(text, seed + row), 16000), text=text) for row, text in enumerate(texts)], "audio")


def words(count: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return ["".join(generator.choice(list(PITCHES_HZ), size=int(generator.integers(2, 5)))) for _ in range(count)]


@pytest.fixture
def whisper() -> Model:
    return pa.load("polyadapt:tiny-whisper", task="ctc")


def test_letters_with_the_blank_in_front() -> None:
    assert alphabet_of(["ab  b", "c"]) == ("<blank>", " ", "a", "b", "c")
    assert letters_outside(["Ab!", "b!ß"], ("<blank>", "a", "b")) == {"!": 2, "ß": 1}
    assert letters_outside(["a b"], ("<blank>", "a", "b")) == {" ": 1}  # as a target it would be taken for the blank
    assert not letters_outside(["a b"], ("<blank>", " ", "a", "b")) and not letters_outside(["a b"], ("<blank>", "|", "a", "b"))


def test_letters_that_are_not_trained_are_listed_with_counts(whisper: Model) -> None:
    data = TrainingData(spoken(["ab", "ba"]), spoken(["abcc", "cab"], 9))
    with pytest.raises(UserError, match=r"transcripts hold 1 letters that are not in the alphabet that is trained \(ab\): 'c' \(3\)"):
        labelled(whisper, data)
    with pytest.raises(UserError, match="'tones' has none; add a column text"):
        labelled(whisper, TrainingData(Dataset("tones", [Example("0", (clip("a"), 16000))], "audio")))


def test_frames_are_counted_behind_the_front_end(whisper: Model) -> None:
    """Samples -> hops of 160 -> halved by the second convolution."""
    for samples in (1600, 1601, 3333, 16000):
        with torch.no_grad():
            found = whisper.module(audio=torch.zeros(1, samples))["features"].shape[1]
        assert whisper.frames(samples) == found == (samples // 160 + 1) // 2


def test_edits_are_counted() -> None:
    """Distances of Levenshtein's paper kind: three of kitten and sitting, the length beside nothing."""
    assert edit_distance([ord(letter) for letter in "kitten"], [ord(letter) for letter in "sitting"]) == 3
    assert edit_distance([], [1, 2]) == edit_distance([1, 2], []) == 2 and edit_distance([], []) == 0
    objective = objective_for(Task("ctc", ("-", "a", "b")))
    assert objective.metric == "symbol_accuracy"
    logits = torch.eye(3)[torch.tensor([[1, 1, 0, 2, 1], [0, 2, 0, 1, 1]])] * 9  # aab-b.. says a b a; the second says b, its last frames are padding
    targets = {"tokens": torch.tensor([[1, 2, 2], [2, -100, -100]]), "frames": torch.tensor([5, 3])}
    assert int(objective.measures["symbol_accuracy"]({"logits": logits}, targets)) == (3 - 1) + (1 - 0)


def test_a_head_over_frames_learns_to_spell(whisper: Model) -> None:
    """Clips of different lengths, cached once as features; the head reads new words of the same tones, and the base is unchanged."""
    events: list[str] = []

    def hear(event: dict[str, object]) -> None:
        if event["kind"] == "cached":
            events.append(str(event["prefix"]))

    before = {name: value.clone() for name, value in whisper.module.state_dict().items()}
    train = {"epochs": 50, "batch_size": 8, "learning_rate": 0.1, "early_stopping": 30}
    artifact = pa.adapt(whisper, "linear-probe", spoken(words(60, 1)), split={"by": "random"}, train=train, emit=hear)
    assert events == ["features"] and artifact.labels == ("<blank>", "a", "b", "c")
    test = spoken(words(20, 2), 500)
    assert pa.evaluate(whisper, test, artifact, metrics=["cer"]).value < 0.5  # 1.0 for a head that says nothing
    assert pa.evaluate(whisper, test, artifact, metrics=["cer"], beams=8).value < 0.5
    said = pa.infer(whisper, [test[0].raw], artifact, beams=8)[0]["text"]
    assert set(said) <= set("abc")
    assert all(torch.equal(value, before[name]) for name, value in whisper.module.state_dict().items())


def test_a_recipe_measures_against_the_head_alone(tmp_path: Path) -> None:
    """A base that knows no symbols cannot be a baseline; the head on its frames is."""
    rows = []
    for row, word in enumerate(words(24, 1)):
        samples = (clip(word, row) * 32767).astype("<i2")
        with wave.open(str(tmp_path / f"{row}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, len(samples), "NONE", ""))
            file.writeframes(samples.tobytes())
        rows.append(json.dumps({"path": f"{row}.wav", "text": word}))
    (tmp_path / "clips.jsonl").write_text("\n".join(rows), encoding="utf-8")
    recipe: dict[str, Any] = {
        "format": 1,
        "model": {"reference": "polyadapt:tiny-whisper", "task": "ctc"},
        "data": {"uri": f"jsonl:{tmp_path / 'clips.jsonl'}", "split": {"by": "random"}},
        "arm": [{"name": "lora", "method": "lora"}],
        "train": {"epochs": 1, "batch_size": 8},
    }
    result = run_recipe(parse_recipe(recipe), tmp_path / "run", Host())
    assert result is not None
    assert [(arm.name, arm.role) for arm in result.arms] == [("linear-probe", "baseline"), ("lora", "arm")]
    assert all(arm.evaluation is not None and arm.evaluation.metric in ("cer", "wer") for arm in result.arms)
    with pytest.raises(UserError, match="has no symbols, so the base cannot answer; use linear-probe"):
        run_recipe(parse_recipe({**recipe, "evaluate": {"baselines": ["frozen"]}}), tmp_path / "other", Host())


def test_empty_transcripts_do_not_stop_a_run_whose_loss_falls(whisper: Model) -> None:
    """At first a head says nothing but blanks: among epochs of equal error rate the one with the lower loss is better."""
    data = TrainingData(spoken(words(16, 1)), spoken(words(8, 2), 90))
    artifact = fit(whisper, load_method(PROBE), PROBE.options(), data, TrainSettings(epochs=8, batch_size=8, learning_rate=1e-3, early_stopping=2))
    assert artifact.provenance["metrics"]["validation"]["symbol_accuracy"] <= 0.0 and artifact.provenance["epochs"] == 8
