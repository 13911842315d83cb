"""Master-ASR's experiments: what their words say about the split, and a first stage that is taken up at its very end."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from polyadapt.data.dataset import Dataset, Example
from polyadapt.files import read_json, write_json

EFFECTS = Path(__file__).resolve().parents[3] / "benchmarks" / "effects"


def experiment(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EFFECTS.parent))
    monkeypatch.syspath_prepend(str(EFFECTS))
    return importlib.import_module(name)


def test_no_word_of_the_made_up_languages_is_in_two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draws of the first seed: what is tested was never trained or validated, in any language."""
    made = experiment("master_asr_synthetic", monkeypatch)
    drawn: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
    counts = [("new", "train", 60, 1000), ("new", "validation", 40, 2000), ("new", "test", 200, 3000)]
    counts += [(language, *draw) for language in made.FIRST for draw in (("train", 80, 1), ("validation", 15, 2), ("test", 60, 4000))]
    for language, part, count, start in counts:
        texts = [example.text for example in made.words(language, part, count, start)]
        assert len(set(texts)) == count and set("".join(texts)) == set(made.LANGUAGES[language])
        drawn[part].update(texts)
    assert not drawn["test"] & (drawn["train"] | drawn["validation"]) and not drawn["train"] & drawn["validation"]


def test_a_first_stage_that_was_killed_before_its_artifact_was_saved_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left to train, so no epoch is heard of and none can be timed."""
    run = experiment("master_asr", monkeypatch)

    def parts(language: str, *counts: int) -> dict[str, Dataset]:
        part = Dataset(language, [Example(language, (np.zeros(16000, np.float32), 16000), text="a")], "audio")
        return dict.fromkeys(("train", "validation", "test"), part)

    artifact = SimpleNamespace(provenance={"epochs": 15}, save=lambda folder: folder)
    monkeypatch.setattr(run, "fit", lambda *args, **more: artifact)
    monkeypatch.setattr(run, "language_parts", parts)
    monkeypatch.setattr(run, "base_of", lambda shared: None)
    monkeypatch.setattr(run, "Artifact", SimpleNamespace(load=lambda folder: artifact))
    write_json(tmp_path / "first.json", {})
    run.first_stage(tmp_path, 2, 1, 15)
    first = read_json(tmp_path / "stage-1.json", "stage 1")
    assert first["epochs"] == 15 and first["seconds_an_epoch"] is None
    head = {"cer": [0.2], "mean": 0.2, "difference": 0.0, "interval": [0.0, 0.0], "gap_closed": None, "parameters": 1}
    assert "15 epochs, one seed" in run.text({**first, "cer": {"fr": 0.3}, "mean": 0.3}, {run.HEAD: head}, 2, 1, 170)
