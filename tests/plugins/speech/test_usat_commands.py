"""`polyadapt speech usat-corpus` and `usat-train` as they are typed: from collections and espeak-ng to a voice that loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyadapt import builtin
from polyadapt.cli import main
from polyadapt.data.dataset import Dataset, Example
from polyadapt.host import Host
from polyadapt.model import Model
from polyadapt_speech import entry
from polyadapt_speech.usat.family.model import TINY, tiny_voice
from polyadapt_speech.usat.training.corpus import read_corpus, write_sound
from polyadapt_speech.usat.training.sources import synthetic_names
from polyadapt_speech.usat.voices.folder import save_voice

RATE_HZ = 8000
SYMBOLS = {symbol: [number] for number, symbol in enumerate("_^$ abcdefghijklmnopqrstuvwxyz,.?!ˈˌːəɪɛæɑɔʊʌθðŋʃʒɹɡɚɜɐᵻɾɒʔ")}
SETTINGS = {"audio": {"sample_rate": RATE_HZ}, "espeak": {"voice": "en-us"}, "phoneme_id_map": SYMBOLS}
LANGUAGES = {"data:tux-paint-captions": ("be", "fr"), "data:asterisk-prompts": ("en", "it"), "data:klettres": ("de",)}
LEFT_OUT = "espeak-en-gb+f5"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The usual one, with a tiny voice in place of joe, and a few recordings in place of the collections."""
    (tmp_path / "start.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_voice(tiny_voice(replace(TINY, sample_rate_hz=RATE_HZ)), tmp_path / "start", tmp_path / "start.json", {})
    load_as_usual = Host.load

    def load(self: Host, reference: str, *rest: Any) -> Model:
        return load_as_usual(self, f"usat:{tmp_path / 'start'}" if reference == "polyadapt:joe" else reference, *rest)

    def open_dataset(self: Host, uri: str, options: Mapping[str, Any]) -> Dataset:
        rows = []
        for language in LANGUAGES[uri]:
            if language in str(options.get("language", language)).split(","):
                for number in range(3):
                    path = tmp_path / f"{uri.partition(':')[2]}-{language}-{number}.flac"
                    time = np.arange(RATE_HZ) / RATE_HZ
                    write_sound(path, (0.2 * np.sin(2 * np.pi * (150 + 40 * number) * time)).astype(np.float32), RATE_HZ)
                    rows.append(Example(path.stem, path, text="a red hen and a dog", extra={"language": language, "caption": "A red hen and a dog."}))
        return Dataset(uri, rows, "audio", licence="none")

    monkeypatch.setattr(Host, "load", load)
    monkeypatch.setattr(Host, "open_dataset", open_dataset)
    return Host(plugins=[("core", builtin), ("speech", entry)], discover=False, environment={})


@pytest.mark.wide
@pytest.mark.program("espeak-ng")
def test_a_voice_that_listens_is_made_by_two_commands(host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "voice"
    assert main(["speech", "usat-corpus", "--out", str(corpus), "--held-out", LEFT_OUT, "--share", "0.02"]) == 0
    printed = capsys.readouterr().out
    names = [speaker.name for speaker in read_corpus(corpus).speakers]
    assert names[:5] == ["tux-paint-be", "tux-paint-fr", "asterisk-en", "asterisk-it", "klettres-de"]
    assert names[5:] == [name for name in synthetic_names() if name != LEFT_OUT]
    assert all(name in printed for name in names) and LEFT_OUT in printed and "held out" in printed
    assert len((corpus / "held-out" / LEFT_OUT / "adapt.jsonl").read_text().splitlines()) > 5
    train = ["speech", "usat-train", "polyadapt:joe", "--corpus", str(corpus), "--out", str(out), "--steps", "1", "--batch-size", "2", "--said", "8", "--device", "cpu"]
    assert main([*train, "--stage", "B"]) == 1  # A first
    assert "stage" in capsys.readouterr().err and not (out / "stage-autoencoder").exists()
    assert main(train) == 0
    assert f"wrote {out}; load it as usat:{out}" in capsys.readouterr().out
    model = host.load(f"usat:{out}")
    assert {"posterior", "autoencoder", "adversarial", "timbre"} <= {path.name.removeprefix("stage-") for path in out.iterdir()}
    assert "speaker" in model.family.conditioners(model.backbone)
    assert main([*train, "--minutes", "1,2"]) == 1
    assert "give the minutes of stages A, B and C" in capsys.readouterr().err
