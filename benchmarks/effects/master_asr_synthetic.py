"""Master-ASR on made-up languages that share sounds: does a row bring what a head cannot, and do related languages share specialists?

A sound is a glide between two tones. Six languages draw theirs from two sub-alphabets: `low1`, `low2` and `new` from one, `high1`
and `high2` from the other, `both` from both; related languages share half of their sounds or more. A small encoder with Whisper's
architecture learns five of them in the first stage, all its weights included, and the sixth from 60 words by every arm.

Words are five sounds long. A word belongs to training, validation or test by its letters alone, whatever the language, so none
that an arm is measured on was in the training or validation of any language. Each arm is stopped on validation and measured on
200 words, at the learning rate that is best on the validation part, seed by seed. The first stage's rate was not tuned: it is
the same for all arms.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from measuring import Load, command, machine, versions

import polyadapt as pa
from polyadapt.artifact import Artifact
from polyadapt.data.dataset import Dataset, Example
from polyadapt.families.shared import enliven
from polyadapt.families.whisper.card import CARD as WHISPER
from polyadapt.families.whisper.model import WhisperFamily
from polyadapt.files import read_json, write_json
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.model import Model, build_model
from polyadapt.signature import Task
from polyadapt.sources.logmel import LogMel
from polyadapt.sources.processors import audio_spec, make_processor
from polyadapt.training import TrainingData, TrainSettings, fit
from polyadapt_speech.master_asr.shared import language_artifact, overlap, with_language

RATE_HZ = 16000
SOUND_S, GAP_S = 0.08, 0.02
LOW, HIGH = (300.0, 480.0, 770.0), (1300.0, 2100.0, 3400.0)
GLIDES = {chr(97 + place): (start, end) for place, (start, end) in enumerate([(a, b) for tones in (LOW, HIGH) for a in tones for b in tones if a != b])}
LANGUAGES = {"low1": "abcd", "low2": "abef", "high1": "ghij", "high2": "ghkl", "both": "acgi", "new": "bcde"}
FIRST = tuple(name for name in LANGUAGES if name != "new")
RELATED = (("low1", "low2"), ("high1", "high2"), ("low1", "new"), ("low2", "new"))
UNRELATED = (("low1", "high1"), ("low1", "high2"), ("low2", "high1"), ("low2", "high2"), ("high1", "new"), ("high2", "new"))
SOUNDS = 5  # of a word
PARTS = ("train", "train", "validation", "test", "test")
HEAD, ROWS = "head only", "rows + head"
HOST = Host()


@dataclass(frozen=True)
class Arm:
    """One way to add a language. `row` is the old language whose masks lie on the base."""

    name: str
    method: str
    rates: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    row: str = ""


HEAD_RATES = (3e-2, 1e-1, 3e-1, 1.0)
ARMS = (
    Arm(HEAD, "linear-probe", HEAD_RATES),
    *(Arm(f"head on the row of {language}", "linear-probe", HEAD_RATES, row=language) for language in FIRST),
    Arm(ROWS, "master-asr", (3e-2, 1e-1, 3e-1), {"shared": "SHARED"}),
    Arm("LoRA q, v + head", "lora", (1e-3, 3e-3, 1e-2), {"sites": ["attn.[qv]"]}),
    Arm("mask tuning + head", "master-asr", (1e-2, 3e-2, 1e-1), {"specialists": 1}),
    Arm("full tuning", "full", (3e-3, 1e-2, 3e-2)),
)


def encoder(seed: int) -> Model:
    """A random encoder of Whisper's architecture: 2 blocks of width 48, 32 mel bands."""
    from transformers.models.whisper import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(num_mel_bins=32, d_model=48, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=96, max_source_positions=96, attn_implementation="sdpa")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = enliven(WhisperEncoder(config))
    return build_model(WhisperFamily(WHISPER), backbone, Task("ctc"), make_processor(audio_spec()), reference="module:synthetic", front=LogMel(32))


def sound(word: str, generator: np.random.Generator) -> np.ndarray:
    """A word as glides with gaps, in noise; every voice is a little higher or lower."""
    voice = 2 ** generator.uniform(-0.08, 0.08)
    time_s = np.arange(int(RATE_HZ * SOUND_S)) / RATE_HZ
    pieces = []
    for letter in word:
        start, end = GLIDES[letter]
        phase = 2 * np.pi * voice * (start * time_s + (end - start) * time_s**2 / (2 * SOUND_S))
        pieces += [np.sin(phase), np.zeros(int(RATE_HZ * GAP_S))]
    samples = np.concatenate(pieces)
    return np.asarray(0.3 * samples + generator.normal(size=len(samples), scale=0.1), np.float32)


def words(language: str, part: str, count: int, seed: int) -> Dataset:
    """So many different words of a language's sounds, all of one part."""
    generator = np.random.default_rng([seed, list(LANGUAGES).index(language)])
    known = ["".join(letters) for letters in itertools.product(LANGUAGES[language], repeat=SOUNDS)]
    drawn = generator.choice([word for word in known if part_of(word) == part], size=count, replace=False)
    rows = [Example(f"{language}-{seed}-{row}", (sound(str(word), generator), RATE_HZ), text=str(word), extra={"language": language}) for row, word in enumerate(drawn)]
    return Dataset(language, rows, "audio")


def part_of(word: str) -> str:
    """The part that a word belongs to in every language."""
    return PARTS[zlib.crc32(word.encode()) % len(PARTS)]


def first_stage(seed: int, folder: Path) -> tuple[Model, Artifact]:
    """The merged base and the shared artifact of five languages."""
    parts = []
    for place, (part, count) in enumerate((("train", 80), ("validation", 15)), 1):
        parts.append(Dataset("languages", [example for language in FIRST for example in words(language, part, count, 100 * seed + place)], "audio"))
    card = HOST.registry.methods.get("master-asr").card
    options = card.options(turn_steps=100, row_every_steps=2, head_rate=3.0)
    settings = TrainSettings(epochs=60, batch_size=16, learning_rate=3e-3, frozen_prefix="off")
    shared = fit(encoder(seed), load_method(card), options, TrainingData(*parts), settings, seed=seed)
    shared.save(folder)
    return shared.merge(encoder(seed)), shared


def second_stage(arm: Arm, seed: int, shared: Artifact, folder: Path) -> tuple[float, float, Artifact]:
    """(error rate on test, learning rate, what was learned), with the rate that is best on validation."""
    base = shared.merge(encoder(seed))
    if arm.row:
        spoken = language_artifact(shared, base, arm.row)
        base = replace(spoken, edits=tuple(edit for edit in spoken.edits if edit.kind == "mask"), labels=()).merge(base)
    card = HOST.registry.methods.get(arm.method).card
    options = card.options(**{name: str(folder) if value == "SHARED" else value for name, value in arm.options.items()})
    data, tried = TrainingData(words("new", "train", 60, 1000 + seed), words("new", "validation", 40, 2000 + seed)), []
    for rate in arm.rates:
        settings = TrainSettings(epochs=120, batch_size=20, learning_rate=rate, schedule="constant", early_stopping=40)
        artifact = fit(base, load_method(card), options, data, settings, seed=seed)
        tried.append((artifact.provenance["metrics"]["validation"]["symbol_accuracy"], rate, artifact))
    _, rate, artifact = max(tried, key=lambda row: row[0])
    return pa.evaluate(base, words("new", "test", 200, 3000), artifact, metrics=["cer"], host=HOST).value, rate, artifact


def run_seed(seed: int, folder: Path) -> dict[str, Any]:
    """All arms of one seed, kept in the folder."""
    if (folder / "result.json").is_file():
        return read_json(folder / "result.json", "result of a seed")
    began = time.monotonic()
    base, shared = first_stage(seed, folder / "shared")
    first = {language: pa.evaluate(base, words(language, "test", 60, 4000), language_artifact(shared, base, language), metrics=["cer"], host=HOST).value for language in FIRST}
    row: dict[str, Any] = {"first": first, "arms": {}, "rates": {}, "parameters": {}}
    for arm in ARMS:
        row["arms"][arm.name], row["rates"][arm.name], learned = second_stage(arm, seed, shared, folder / "shared")
        row["parameters"][arm.name] = learned.provenance["parameters"]
        if arm.name == ROWS:
            shared_by_six = with_language(shared, learned)
    row["overlap"] = {name: statistics.mean(overlap(shared_by_six, *pair) for pair in pairs) for name, pairs in (("related", RELATED), ("unrelated", UNRELATED))}
    write_json(folder / "result.json", row)
    sys.stderr.write(f"seed {seed}, {time.monotonic() - began:.0f} s: {json.dumps(row)}\n")
    return row


def text(rows: list[dict[str, Any]]) -> str:
    """The tables of the page."""
    head, mean = [row["arms"][HEAD] for row in rows], statistics.mean
    first = mean(value for row in rows for value in row["first"].values())
    lines = [f"Five made-up languages in the first stage: CER {first:.3f} on new words. A sixth from 60 words, {len(rows)} seeds:", ""]
    lines += ["| arm | CER | by seed | below head only | trained values |", "|---|---|---|---|---|"]
    for name in rows[0]["arms"]:
        found = [row["arms"][name] for row in rows]
        wins = sum(one < other for one, other in zip(found, head, strict=True))
        lines.append(f"| {name} | {mean(found):.3f} | {', '.join(f'{value:.3f}' for value in found)} | on {wins} of {len(rows)} seeds | {rows[0]['parameters'][name]} |")
    shares = {name: mean(row["overlap"][name] for row in rows) for name in ("related", "unrelated")}
    wins = sum(row["overlap"]["related"] > row["overlap"]["unrelated"] for row in rows)
    words = f"related {shares['related']:.2f}, unrelated {shares['unrelated']:.2f}, more where related on {wins} of {len(rows)} seeds"
    return "\n".join([*lines, "", f"Specialists that two languages share (Jaccard): {words}.", ""])


def main() -> int:
    """Run all seeds and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path("runs/master-asr-synthetic"), help="where the first stages are kept")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "master_asr_synthetic.json")
    given = parser.parse_args()
    with Load() as load:
        rows = [run_seed(seed, given.directory / str(seed)) for seed in range(given.seeds)]
    page = text(rows)
    sys.stdout.write(page)
    found = {"command": command(), "machine": machine(), "versions": versions(), "load_of_others": load.others, "seeds": rows, "table": page}
    given.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
