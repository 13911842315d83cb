"""What the experiments on sounds share: arms, how each is trained, and outcomes that are written down as they come.

Every arm is trained alike: AdamW with weight decay 0.1 (as in arXiv 2312.03694), the state of the best epoch by the validation
part, the learning rate by the validation part of the first seed from a grid that reaches over a factor of 64 (accuracy, then
log loss: on a few dozen clips accuracies tie). The linear probe
is solved to its optimum (probe.py), its penalty chosen on the validation part of every seed. Nothing is chosen by a test part.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from measuring import keep_apart, machine
from probe import solve

from polyadapt.artifact import detach
from polyadapt.data.dataset import Dataset
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.model import Model
from polyadapt.training import TrainingData, TrainSettings, fit
from polyadapt.training.processes import find_processes, moved

RATES = (5e-4, 2e-3, 8e-3, 3.2e-2)
WEIGHT_DECAY = 0.1
BATCH_SIZE = 16
PROBE = "linear probe"


@dataclass(frozen=True)
class Arm:
    """A method with its options, and learning rates to choose from."""

    method: str
    options: Mapping[str, Any]
    rates: tuple[float, ...] = RATES


@dataclass(frozen=True)
class Run:
    """What is another in each training of an arm."""

    seed: int
    rate: float
    epochs: int
    device: str


@dataclass(frozen=True)
class Outcome:
    """One training: accuracies in percent, the log loss of the validation part, which test clips were right, and where it ran."""

    task: str
    arm: str
    seed: int
    rate: float
    validation: float
    test: float
    parameters: int
    seconds: float
    right: tuple[bool, ...]
    loss: float = 0.0
    machine: str = ""


class Notebook:
    """Outcomes, one JSON line each, and those of an earlier run that was stopped; runs of other settings are not taken for it."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, mark = path, path.with_suffix(".settings")
        if not path.is_file():
            mark.unlink(missing_ok=True)
        keep_apart(mark, json.dumps({**settings, "weight_decay": WEIGHT_DECAY, "batch_size": BATCH_SIZE}, sort_keys=True), "other settings")
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        self.outcomes = [Outcome(**{**row, "right": tuple(row["right"])}) for row in map(json.loads, lines)]

    def add(self, outcome: Outcome) -> None:
        """Write an outcome down, with the name of this machine."""
        outcome = replace(outcome, machine=machine())
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


def train(model: Model, parts: Mapping[str, Dataset], task: str, name: str, arm: Arm, run: Run, notebook: Notebook) -> Outcome:
    """One training of one arm."""
    began = time.monotonic()
    card = Host().registry.methods.get(arm.method).card
    settings = TrainSettings(
        epochs=run.epochs,
        early_stopping=run.epochs,  # never stops before the end, and keeps the best epoch
        batch_size=BATCH_SIZE,
        learning_rate=run.rate,
        weight_decay=WEIGHT_DECAY,
        seed=run.seed,
        device=run.device,
    )
    artifact = fit(model, load_method(card), card.options(**arm.options), TrainingData(parts["train"], parts["validation"]), settings)
    artifact.attach(model, "measured").eval()
    try:
        logits = {part: answers(model, parts[part], "logits", run.device) for part in ("validation", "test")}
    finally:
        detach(model, "measured")
    right = {part: rows.argmax(-1) == parts[part].targets() for part, rows in logits.items()}
    loss = float(torch.nn.functional.cross_entropy(torch.from_numpy(logits["validation"]), torch.from_numpy(parts["validation"].targets())))
    head = (model.family.feature_size(model.backbone) + 1) * len(parts["train"].labels)
    size = int(artifact.provenance["parameters"]) - head
    accuracy = {part: 100 * float(value.mean()) for part, value in right.items()}
    outcome = Outcome(task, name, run.seed, run.rate, accuracy["validation"], accuracy["test"], size, time.monotonic() - began, tuple(right["test"].tolist()), loss)
    notebook.add(outcome)
    return outcome


def chosen_rate(notebook: Notebook, task: str, name: str) -> float:
    """The rate that is best on the first seed's validation part."""
    return max(notebook.find(task, name, 0), key=by_validation).rate


def by_validation(outcome: Outcome) -> tuple[float, float]:
    """What is better is larger: accuracy, then log loss."""
    return outcome.validation, -outcome.loss


def differences(compared: Mapping[str, Any]) -> list[str]:
    """Paired differences, a line each."""
    lines = []
    for name, row in compared.items():
        low, high = row["interval"]
        by_seed = f"; by seed {', '.join(f'{value:+.1f}' for value in row['by_seed'])}"
        lines.append(f"- {name}: {row['points']:+.1f} points [{low:+.1f} … {high:+.1f}]{', above zero' if row['above_zero'] else ''}{by_seed}")
    return lines
