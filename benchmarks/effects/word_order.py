"""The paper's order, conformer > bottleneck > linear probe (arXiv 2312.03694), on a small AST that has never needed word order.

Source: one of twelve words, spoken by espeak-ng in many voices, somewhere in a second of noise, no clip twice. A fresh AST
(width 96, 4 blocks, 100 frames) learns which word it is and is frozen. Target: two of three words, one behind the other, in the same noise:
six classes, of which each word's presence tells only half. Test voices are those of no training clip. Adapters stand in
parallel at the FFN of every block, with the norm before it: conformer r = 8, k = 31, bottleneck r = 14, below 5 % of the net;
how they are trained and chosen: arms.py.
To be shown: conformer > bottleneck > linear probe, the intervals above zero. If it does not hold, the table says so. Each seed
makes a base of its own and is one value of the intervals; clips, which could be made without end, are none.

    apt-get install -y --no-install-recommends espeak-ng
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import PROBE, RATES, Arm, Notebook, Outcome, Run, chosen_rate, differences, probe, train
from measuring import Load, command, machine, t_interval, versions
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from polyadapt.data.dataset import Dataset, Example
from polyadapt.families.ast.card import CARD as AST
from polyadapt.families.ast.model import AstFamily
from polyadapt.model import Model, build_model
from polyadapt.signature import Task
from polyadapt.sources.fbank import KaldiFbank
from polyadapt.sources.processors import audio_spec, make_processor
from polyadapt_runtime.audio import read_audio

RATE_HZ = 16000
WORDS = ("left", "right", "red", "green", "cat", "dog", "one", "five", "house", "tree", "stop", "go")
TARGETS = ("red", "cat", "five")
ORDERS = tuple(f"{first} {second}" for first in TARGETS for second in TARGETS if first != second)
VOICES = tuple(f"{accent}+{variant}" for accent in ("en-us", "en-gb", "en-gb-scotland") for variant in ("m1", "m2", "m3", "m4", "f1", "f2", "f3", "f4"))
TASK, SOURCE, BASE = "word order", "single words", "base"
SIZES = {"train": 240, "validation": 120, "test": 480}
NOISE = 0.02
CLIPS_OF_AN_EPOCH = 1920
PRETRAINING_RATE, WARM_UP_STEPS = 5e-4, 300  # at twice the rate and a fifth of the warm-up, some seeds learned nothing in ten epochs
ARMS: Mapping[str, Arm] = {
    "conformer": Arm("conformer", {"rank": 8, "kernel": 31}),
    "bottleneck": Arm("bottleneck", {"rank": 14, "activation": "gelu", "train_norm": True}),
}


def spoken() -> dict[tuple[str, str], np.ndarray]:
    """Every word in every voice, without the silence around it, at most 0.42 s of it."""
    said = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "word.wav"
        for voice in VOICES:
            for word in WORDS:
                subprocess.run(["espeak-ng", "-v", voice, "-s", "190", "-w", str(path), word], check=True, capture_output=True)
                sound = read_audio(path, {"sample_rate_hz": RATE_HZ, "seconds": None, "maximum_seconds": 2.0})
                heard = np.flatnonzero(np.abs(sound) > 0.02)
                said[voice, word] = sound[heard[0] : heard[-1] + 1][: int(0.42 * RATE_HZ)]
    return said


def clip_of(pieces: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """Words in a row, anywhere in a second of noise."""
    sound = np.concatenate(pieces) * generator.uniform(0.5, 1.0)
    made = NOISE * generator.standard_normal(RATE_HZ)
    start = int(generator.integers(0, RATE_HZ - len(sound) + 1))
    made[start : start + len(sound)] += sound
    return made.astype(np.float32)


def pretrained(seed: int, said: Mapping[tuple[str, str], np.ndarray], voices: list[str], epochs: int, place: Path) -> tuple[Model, float]:
    """(an AST that knows single words, its accuracy in percent on further clips); its weights are kept in a file."""
    from transformers import ASTConfig, ASTForAudioClassification

    generator = np.random.default_rng([seed, 1])

    def clips(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        targets = generator.integers(0, len(WORDS), count)
        sounds = [clip_of([said[str(generator.choice(voices)), WORDS[target]]], generator) for target in targets]
        return torch.from_numpy(np.stack(sounds)), torch.from_numpy(targets)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = ASTConfig(hidden_size=96, num_hidden_layers=4, num_attention_heads=4, intermediate_size=384, max_length=100, num_labels=len(WORDS), attn_implementation="sdpa")
        backbone = ASTForAudioClassification(config)
        front = KaldiFbank(128, 100, -4.2677393, 4.5689974)
        optimiser = torch.optim.AdamW(backbone.parameters(), lr=PRETRAINING_RATE, weight_decay=0.05)
        steps = epochs * CLIPS_OF_AN_EPOCH // 32
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))
        backbone.train()
        for epoch in range(0 if place.is_file() else epochs):
            sounds, targets = clips(CLIPS_OF_AN_EPOCH)
            values = front(audio=sounds)["input_values"]
            for rows in torch.arange(len(targets)).split(32):
                loss = F.cross_entropy(backbone(values[rows]).logits, targets[rows])
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
                optimiser.step()
                schedule.step()
            print(f"seed {seed}: pretraining, epoch {epoch + 1} of {epochs}: loss {float(loss.detach()):.2f}", flush=True)
        if place.is_file():
            backbone.load_state_dict(load_file(place))
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            save_file(backbone.state_dict(), place.with_suffix(".part"))
            place.with_suffix(".part").replace(place)
        backbone.eval()
        generator = np.random.default_rng([seed, 3])
        sounds, targets = clips(480)
        with torch.no_grad():
            right = backbone(front(audio=sounds)["input_values"]).logits.argmax(-1) == targets
    backbone.config.pooling = "tokens"
    family = AstFamily(AST)
    model = build_model(family, backbone.audio_spectrogram_transformer, Task("classification"), make_processor(audio_spec()), reference="small-ast", front=front)
    return model, 100 * float(right.float().mean())


def parts_of(seed: int, said: Mapping[tuple[str, str], np.ndarray], sides: Mapping[str, list[str]]) -> dict[str, Dataset]:
    """Pairs of words, classes in turn; every part has voices of its own."""
    generator, parts = np.random.default_rng([seed, 2]), {}
    for name, count in SIZES.items():
        rows = []
        for index in range(count):
            label, voice = ORDERS[index % len(ORDERS)], str(generator.choice(sides[name]))
            rows.append(Example(f"{name}-{index}", (clip_of([said[voice, word] for word in label.split()], generator), RATE_HZ), label))
        parts[name] = Dataset(f"{TASK} {name}", rows, "audio", ORDERS)
    return parts


def run(seeds: int, notebook: Notebook, epochs: int, pretraining: int, device: str) -> None:
    """Everything that the notebook lacks."""
    said = spoken()
    for seed in range(seeds):
        wanted = [
            (name, rate) for name, arm in ARMS.items() for rate in (arm.rates if seed == 0 else (chosen_rate(notebook, TASK, name),)) if not notebook.find(TASK, name, seed, rate)
        ]
        if not wanted and notebook.find(TASK, PROBE, seed) and notebook.find(SOURCE, BASE, seed):
            continue
        voices = np.random.default_rng(seed).permutation(VOICES).tolist()
        sides = {"train": voices[:12], "validation": voices[12:16], "test": voices[16:]}
        began = time.monotonic()
        model, accuracy = pretrained(seed, said, sides["train"], pretraining, notebook.path.with_suffix("") / f"base-{seed}-{pretraining}.safetensors")
        print(f"seed {seed}: single words {accuracy:.1f}", flush=True)
        if not notebook.find(SOURCE, BASE, seed):
            size = sum(parameter.numel() for parameter in model.backbone.parameters())
            notebook.add(Outcome(SOURCE, BASE, seed, PRETRAINING_RATE, 0.0, accuracy, size, time.monotonic() - began, ()))
        parts = parts_of(seed, said, sides)
        if not notebook.find(TASK, PROBE, seed):
            probe(model, parts, TASK, seed, notebook, device)
        for name, rate in wanted:
            outcome = train(model, parts, TASK, name, ARMS[name], Run(seed, rate, epochs, device), notebook)
            print(f"seed {seed}: {name} rate {rate:g}: {outcome.test:.1f} ({outcome.seconds:.0f} s)", flush=True)


def over_seeds(left: list[Outcome], right: list[Outcome]) -> dict[str, Any]:
    """Mean difference in points with its 95 % t interval over the seeds."""
    by_seed = [a.test - b.test for a, b in zip(left, right, strict=True)]
    mean, low, high = t_interval(by_seed)
    return {"points": round(mean, 2), "by_seed": [round(value, 2) for value in by_seed], "interval": [round(low, 2), round(high, 2)], "above_zero": low > 0, "seeds": len(left)}


def main() -> int:
    parser = argparse.ArgumentParser(description="Conformer, bottleneck and linear probe on word order.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--pretraining", type=int, default=40, help="epochs of the small AST on single words")
    parser.add_argument("--device", default="auto", help="auto takes a GPU where there is one")
    parser.add_argument("--notebook", type=Path, default=Path("runs/effects/word_order.jsonl"), help="finished trainings; delete it to begin anew")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "word_order.json")
    arguments = parser.parse_args()
    settings = {"epochs": arguments.epochs, "pretraining": arguments.pretraining, "clips": SIZES, "clips_of_an_epoch": CLIPS_OF_AN_EPOCH}
    notebook = Notebook(arguments.notebook, {**settings, "arms": {name: asdict(arm) for name, arm in ARMS.items()}})
    with Load() as load_of_others:
        run(arguments.seeds, notebook, arguments.epochs, arguments.pretraining, arguments.device)
    rows: dict[str, list[Outcome]] = {PROBE: [notebook.find(TASK, PROBE, seed)[0] for seed in range(arguments.seeds)]}
    rows |= {name: [notebook.find(TASK, name, seed, chosen_rate(notebook, TASK, name))[0] for seed in range(arguments.seeds)] for name in ARMS}
    known = [round(notebook.find(SOURCE, BASE, seed)[0].test, 1) for seed in range(arguments.seeds)]
    arms = {name: {"all": [round(row.test, 2) for row in found], "rate": found[0].rate, "values": found[0].parameters} for name, found in rows.items()}
    pairs = (("conformer", "bottleneck"), ("bottleneck", PROBE), ("conformer", PROBE))
    checks: dict[str, Any] = {f"{left} > {right}": over_seeds(rows[left], rows[right]) for left, right in pairs}
    lines = [f"Word order on a small AST, {len(ORDERS)} classes, {SIZES['test']} test clips a seed; test accuracy in percent. Intervals are over the seeds (t)."]
    lines += [f"Of {len(WORDS)} single words, in voices that it trained on, the base tells {', '.join(f'{value:.0f}' for value in known)} % (by seed).", ""]
    lines += ["| arm | mean | by seed | learning rate or C | trained values |", "|---|---|---|---|---|"]
    for name, row in arms.items():
        lines.append(f"| {name} | {statistics.fmean(row['all']):.1f} | {', '.join(f'{value:.1f}' for value in row['all'])} | {row['rate']:g} | {row['values']} |")
    page = "\n".join([*lines, "", *differences(checks), ""])
    result = {
        "experiment": "word_order",
        "command": command(),
        "machine": machine(),
        "versions": versions(),
        "load_of_others": round(load_of_others.others, 2),
        "single_words": known,
        **settings,
        "rates": RATES,
        "arms": arms,
        "checks": checks,
        "table": page,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
