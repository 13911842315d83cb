"""Adapters of a frozen spectrogram transformer on real sounds (ast-adapters, arXiv 2312.03694), on Whisper tiny.en's encoder.

Every arm trains about 42 thousand values (0.5 % of the encoder) in its upper two blocks, beside the class head: conformer
r = 16, bottleneck r = 26 (both parallel at the FFN, with the norm that feeds it), LoRA r = 14 on q and v; `full` trains all of
those blocks. What lies below is computed once. The linear probe is solved to its optimum (probe.py). Learning rates are
chosen on the validation part of the first seed, the probe's penalty on that of every seed; nothing by the test part.
To be shown: the best adapter beats the linear probe, the interval above zero, on at least two tasks.

Each training is written down when it is done, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from measuring import Load, command, machine, versions
from probe import solve
from sounds import TASKS, loaded, parts_of

import polyadapt as pa
from polyadapt.artifact import detach
from polyadapt.data.dataset import Dataset
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.model import Model
from polyadapt.training import TrainingData, TrainSettings, fit
from polyadapt.training.processes import find_processes, moved

BLOCKS = ("encoder.block.2", "encoder.block.3")
SPANS = tuple(f"{block}.ffn" for block in BLOCKS)
EPOCHS = {"first word": 8, "letters": 20, "instruments": 40}
BATCH_SIZE = 16
DRAWS = 10_000
PROBE = "linear probe"


@dataclass(frozen=True)
class Arm:
    """A method with its options, and learning rates to choose from."""

    method: str
    options: Mapping[str, Any]
    rates: tuple[float, ...] = (1e-3, 5e-3)


ARMS: Mapping[str, Arm] = {
    "conformer": Arm("conformer", {"sites": SPANS, "rank": 16}),
    "bottleneck": Arm("bottleneck", {"sites": SPANS, "rank": 26, "activation": "gelu", "train_norm": True}),
    "lora": Arm("lora", {"sites": tuple(f"{block}.attn.{letter}" for block in BLOCKS for letter in "qv"), "rank": 14, "alpha": 28.0}),
    "full": Arm("full", {"sites": tuple(f"{block}.*" for block in BLOCKS)}, (1e-4, 4e-4)),
}


@dataclass(frozen=True)
class Outcome:
    """One training: accuracies in percent, and which test clips were right."""

    task: str
    arm: str
    seed: int
    rate: float
    validation: float
    test: float
    parameters: int
    seconds: float
    right: tuple[bool, ...]


class Notebook:
    """Outcomes, one JSON line each, and those of an earlier run that was stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.outcomes = [Outcome(**{**row, "right": tuple(row["right"])}) for row in map(json.loads, lines)]

    def add(self, outcome: Outcome) -> None:
        """Write an outcome down."""
        self.outcomes.append(outcome)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")

    def find(self, task: str, arm: str, seed: int, rate: float | None = None) -> list[Outcome]:
        """Outcomes of one arm and seed, of one rate or of all."""
        return [row for row in self.outcomes if (row.task, row.arm, row.seed) == (task, arm, seed) and rate in (None, row.rate)]


def answers(model: Model, data: Dataset, output: str, device: str) -> np.ndarray:
    """An output of the model for all clips, [clips, …]."""
    sounds = torch.from_numpy(np.stack([samples for samples, _ in (row.raw for row in data)]))
    place = find_processes(device, "no").device
    with torch.no_grad(), moved(model.module, place):
        return torch.cat([model.module(audio=rows.to(place))[output].cpu() for rows in sounds.split(32)]).numpy()


def probe(model: Model, parts: Mapping[str, Dataset], task: str, seed: int, notebook: Notebook, device: str) -> None:
    """The floor, on the frozen features."""
    began = time.monotonic()
    found = solve({name: answers(model, part, "features", device) for name, part in parts.items()}, {name: part.targets() for name, part in parts.items()})
    notebook.add(Outcome(task, PROBE, seed, found.penalty, found.validation, found.test, found.parameters, time.monotonic() - began, found.right))


def train(model: Model, parts: Mapping[str, Dataset], task: str, name: str, arm: Arm, settings: TrainSettings, notebook: Notebook) -> Outcome:
    """One training of one arm."""
    began = time.monotonic()
    card = Host().registry.methods.get(arm.method).card
    artifact = fit(model, load_method(card), card.options(**arm.options), TrainingData(parts["train"]), settings)
    artifact.attach(model, "measured").eval()
    try:
        right = {part: answers(model, parts[part], "logits", settings.device).argmax(-1) == parts[part].targets() for part in ("validation", "test")}
    finally:
        detach(model, "measured")
    head = (model.family.feature_size(model.backbone) + 1) * len(parts["train"].labels)
    size = int(artifact.provenance["parameters"]) - head
    accuracy = {part: 100 * float(value.mean()) for part, value in right.items()}
    rate = settings.learning_rate or card.learning_rate
    outcome = Outcome(task, name, settings.seed, rate, accuracy["validation"], accuracy["test"], size, time.monotonic() - began, tuple(right["test"].tolist()))
    notebook.add(outcome)
    return outcome


def run(task: str, seeds: int, arms: Sequence[str], notebook: Notebook, device: str) -> None:
    """Everything of one task that the notebook lacks, seed by seed."""
    model = pa.load("polyadapt:whisper-tiny.en", task="classification")
    clips, samples = loaded(task)
    for seed in range(seeds):
        parts, _ = parts_of(task, clips, samples, seed)
        if not notebook.find(task, PROBE, seed):
            probe(model, parts, task, seed, notebook, device)
        for name in arms:
            rates = ARMS[name].rates if seed == 0 else (chosen_rate(notebook, task, name),)
            for rate in rates:
                if not notebook.find(task, name, seed, rate):
                    settings = TrainSettings(epochs=EPOCHS[task], batch_size=BATCH_SIZE, learning_rate=rate, seed=seed, device=device)
                    outcome = train(model, parts, task, name, ARMS[name], settings, notebook)
                    print(f"{task}: {name} seed {seed} rate {rate:g}: {outcome.test:.1f} ({outcome.seconds:.0f} s)", flush=True)


def chosen_rate(notebook: Notebook, task: str, name: str) -> float:
    """The rate that is best on the first seed's validation part; the lower one among equals."""
    return max(notebook.find(task, name, 0), key=lambda row: (row.validation, -row.rate)).rate


def kept(notebook: Notebook, task: str, name: str, seeds: int) -> list[Outcome]:
    """The outcomes of an arm at its chosen rate, one a seed; empty while some are missing."""
    if name != PROBE and len(notebook.find(task, name, 0)) < len(ARMS[name].rates):
        return []
    found = [notebook.find(task, name, seed, None if name == PROBE else chosen_rate(notebook, task, name)) for seed in range(seeds)]
    return [rows[0] for rows in found] if all(found) else []


def paired(left: Sequence[Outcome], right: Sequence[Outcome], units: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Mean difference in points over seeds with its 95 % bootstrap interval: test units are drawn, seeds are kept."""
    generator = np.random.default_rng(0)
    drawn, means = np.zeros(DRAWS), []
    for a, b, names in zip(left, right, units, strict=True):
        difference = 100.0 * (np.array(a.right, float) - np.array(b.right, float))
        means.append(difference.mean())
        _, where = np.unique(names, return_inverse=True)
        sums, counts = np.bincount(where, difference), np.bincount(where)
        picked = generator.integers(0, len(sums), (DRAWS, len(sums)))
        drawn += sums[picked].sum(1) / counts[picked].sum(1) / len(left)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"points": round(statistics.fmean(means), 2), "interval": [round(float(low), 2), round(float(high), 2)], "above_zero": bool(low > 0), "seeds": len(left)}


def summary(task: str, seeds: int, notebook: Notebook) -> dict[str, Any]:
    """Figures of one task, of those arms that have run on every seed."""
    clips = TASKS[task].clips()
    placeholder = [np.zeros(1, np.float32)] * len(clips)
    splits = [parts_of(task, clips, placeholder, seed) for seed in range(seeds)]
    rows = {name: found for name in (PROBE, *ARMS) if (found := kept(notebook, task, name, seeds))}
    arms = {
        name: {"mean": round(statistics.fmean(row.test for row in found), 2), "all": [round(row.test, 2) for row in found], "rate": found[0].rate, "values": found[0].parameters}
        for name, found in rows.items()
    }
    units = [names for _, names in splits]
    pairs = [(name, PROBE) for name in ARMS] + [("conformer", other) for other in ARMS if other != "conformer"]
    compared = {f"{left} - {right}": paired(rows[left], rows[right], units) for left, right in pairs if left in rows and right in rows}
    sizes = [{name: len(part) for name, part in parts.items()} for parts, _ in splits]
    return {
        "classes": len(splits[0][0]["train"].labels),
        "clips": sizes,
        "epochs": EPOCHS[task],
        "batch_size": BATCH_SIZE,
        "seconds_heard": TASKS[task].seconds,
        "arms": arms,
        "compared": compared,
    }


def table(task: str, found: Mapping[str, Any]) -> str:
    """Figures of one task as Markdown."""
    clips = ", ".join(f"{count} {name}" for name, count in found["clips"][0].items())
    lines = [f"{task.capitalize()}: {found['classes']} classes, {clips} clips (first seed), {found['seconds_heard']:g} s heard; test accuracy in percent.", ""]
    lines += ["| arm | mean | by seed | learning rate or C | trained values |", "|---|---|---|---|---|"]
    for name, row in found["arms"].items():
        lines.append(f"| {name} | {row['mean']:.1f} | {', '.join(f'{value:.1f}' for value in row['all'])} | {row['rate']:g} | {row['values']} |")
    return "\n".join([*lines, "", *differences(found["compared"]), ""])


def differences(compared: Mapping[str, Any]) -> list[str]:
    """Paired differences, a line each."""
    lines = []
    for name, row in compared.items():
        low, high = row["interval"]
        lines.append(f"- {name}: {row['points']:+.1f} points [{low:+.1f} … {high:+.1f}]{', above zero' if row['above_zero'] else ''}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="Adapters of Whisper tiny.en's encoder on real sounds.")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=tuple(TASKS))
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=tuple(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto", help="auto takes a GPU where there is one")
    parser.add_argument("--notebook", type=Path, default=Path("runs/effects/ast_adapters.jsonl"), help="finished trainings; delete it to begin anew")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ast_adapters.json")
    arguments = parser.parse_args()
    notebook = Notebook(arguments.notebook)
    with Load() as load_of_others:
        for task in arguments.tasks:
            run(task, arguments.seeds, arguments.arms, notebook, arguments.device)
    found = {task: summary(task, arguments.seeds, notebook) for task in TASKS if notebook.find(task, PROBE, arguments.seeds - 1)}
    page = "\n".join(table(task, row) for task, row in found.items())
    print(page)
    adapters = [f"{name} - {PROBE}" for name in ARMS if name != "full"]
    beaten = [task for task, row in found.items() if any(row["compared"][pair]["above_zero"] for pair in adapters if pair in row["compared"])]
    check = {"an adapter beats the linear probe, its interval above zero, on at least two tasks": {"holds": len(beaten) >= 2, "tasks": beaten}}
    result = {
        "experiment": "ast_adapters",
        "command": command(),
        "machine": machine(),
        "versions": versions(),
        "load_of_others": round(load_of_others.others, 2),
        "tasks": found,
        "checks": check,
        "table": page,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(check))
    return 0


if __name__ == "__main__":
    sys.exit(main())
