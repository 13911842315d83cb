"""How Master-ASR trains: rates of rows and heads, its highest layers alone, and what a second stage leaves as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polyadapt as pa
from polyadapt.artifact import Artifact
from polyadapt.data.dataset import Dataset, Example
from polyadapt.methods.base import load_method
from polyadapt.model import Model
from polyadapt.testing.conformance import state_of
from polyadapt.training import TrainingData, TrainSettings, fit
from polyadapt.training.events import ignore
from polyadapt_speech.master_asr.card import CARD, MasterAsrOptions

LETTERS = {"x": "abcd", "z": "efgh"}
RATE = 1e-3


def encoder() -> Model:
    return pa.load("polyadapt:tiny-whisper", task="ctc")


def spoken(count: int, *languages: str, seed: int = 1) -> Dataset:
    """Noise of one length that stands for words of four letters."""
    rows = []
    for language in languages:
        for number in range(count):
            draws = np.random.default_rng([seed, number, ord(language)])
            sound = (draws.uniform(0.05, 0.3) * draws.standard_normal(6400)).astype(np.float32)
            text = "".join(draws.choice(list(LETTERS[language]), size=4))
            rows.append(Example(f"{language}-{number}", (sound, 16000), text=text, extra={"language": language}))
    return Dataset("spoken", rows, "audio")


def learned(model: Model, data: Dataset, options: MasterAsrOptions, listener: Any = ignore, **settings: Any) -> Artifact:
    given = {"epochs": 1, "batch_size": 8, "learning_rate": RATE, "schedule": "constant", "warmup": 0.0, "device": "cpu", **settings}
    return fit(model, load_method(CARD), options, TrainingData(data), TrainSettings(**given), listener)


def first_stage(steps: int, **options: Any) -> Artifact:
    chosen = MasterAsrOptions(**{"turn_steps": 2, "row_every_steps": 1, "head": "cosine", **options})
    return learned(encoder(), spoken(8, "x", "z"), chosen, epochs=steps, max_steps=steps)


def steps_of(before: Artifact, after: Artifact, part: str) -> torch.Tensor:
    """By how much each value moved, of those that did."""
    moved = [(after.own[name] - before.own[name]).abs().flatten() for name in after.own if name.startswith(part)]
    values = torch.cat(moved)
    return values[values > 0]


@pytest.mark.parametrize("alpha", [1.0, 10.0])
def test_a_row_moves_alpha_times_as_fast(alpha: float) -> None:
    """The first step of Adam is as large as the learning rate, whatever the gradient; the second batch is the first one of its language."""
    taken = steps_of(first_stage(1, row_rate=alpha), first_stage(2, row_rate=alpha), "rows/")
    assert len(taken) and torch.allclose(taken, torch.full_like(taken, alpha * RATE), rtol=0.02)


@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_a_head_moves_by_its_own_rate(factor: float) -> None:
    taken = steps_of(first_stage(1, head="linear", head_rate=factor), first_stage(2, head="linear", head_rate=factor), "head/")
    assert len(taken) and torch.allclose(taken, torch.full_like(taken, factor * RATE), rtol=0.02)


def test_the_highest_layers_alone_are_adapted_and_what_is_below_is_computed_once() -> None:
    """With and without the cache the same is learned: the row and the head in force are those of the batch, of cached activations too."""
    found, said = {}, []
    for prefix in ("off", "cache"):
        options = MasterAsrOptions(adapt_layers=1, turn_steps=2, row_every_steps=2, head="cosine")
        found[prefix] = learned(encoder(), spoken(8, "x", "z"), options, said.append, epochs=4, frozen_prefix=prefix)
    assert [event["prefix"] for event in said if event.kind == "started"] == ["off", "1 blocks"]
    whole, cached = found["off"], found["cache"]
    assert {site.rpartition("/")[2].partition(".attn")[0] for site in whole.own if site.startswith("rows/")} == {"encoder.block.1"}
    assert whole.edits and {".".join(edit.site.split(".")[:3]) for edit in whole.edits} == {"encoder.block.1"}
    assert set(whole.own) == set(cached.own)
    for name, value in whole.own.items():
        torch.testing.assert_close(cached.own[name], value, rtol=0, atol=1e-5 * float(value.abs().max()), msg=name)
    plain, merged = encoder(), whole.merge(encoder())
    before, after = state_of(plain), state_of(merged)
    moved = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    assert moved and all("backbone.layers.1." in name for name in moved), moved


def test_a_second_stage_moves_nothing_of_its_base(tmp_path: Path) -> None:
    shared = first_stage(4)
    folder = str(shared.save(tmp_path / "shared"))
    base = shared.merge(encoder())
    before = {name: value.clone() for name, value in state_of(base).items()}
    new = Dataset("new", [Example(row.id, row.raw, text=row.text, extra={"language": "new"}) for row in spoken(8, "x", seed=5)], "audio")
    added = learned(base, new, MasterAsrOptions(shared=folder), epochs=2)
    assert all(torch.equal(value, before[name]) for name, value in state_of(base).items())
    assert {edit.kind for edit in added.edits} == {"mask", "prototypes"}
