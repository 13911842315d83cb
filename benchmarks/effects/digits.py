"""The ground of the vision experiments: a tiny ViT pretrained on one half of scikit-learn's digits, and shifts of the other half.

The backbone (width 128, 4 blocks, 16 patches of 2 x 2 pixels) learns upright digits and is frozen. The other half, turned by
90 degrees or inverted, is split by class into train, validation and test. An arm's learning rate is chosen on the
validation part of the first seed and kept for all seeds, the linear probe's penalty on that of every seed (probe.py);
nothing is chosen by the test part.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from measuring import Load, command, machine, t_interval, versions
from probe import solve
from sklearn.datasets import load_digits
from torch.nn import functional as F

from polyadapt.artifact import Artifact, detach
from polyadapt.data.dataset import Dataset, Example
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.families.vit.model import VitFamily
from polyadapt.methods.base import load_method
from polyadapt.methods.card import MethodCard
from polyadapt.model import Model, build_model
from polyadapt.signature import Task
from polyadapt.sources.processors import array_spec, make_processor
from polyadapt.training import TrainingData, TrainSettings, fit

LABELS = tuple(str(digit) for digit in range(10))
SHIFTS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "rotated": lambda pictures: np.rot90(pictures, axes=(2, 3)).copy(),
    "inverted": lambda pictures: 1.0 - pictures,
}
FLOOR = "linear probe"
MEAN, DEVIATION = 0.305, 0.376  # of all digits, grey values from 0 to 1


@dataclass(frozen=True)
class Ground:
    """One seed's backbone and parts.

    Attributes:
        parts: train, validation and test of the shifted half.
        upright_accuracy: of the pretrained net on the upright pictures of the other half.
    """

    model: Model
    parts: Mapping[str, Dataset]
    upright_accuracy: float


@dataclass(frozen=True)
class Arm:
    """One thing that is compared: a method with its options, and learning rates to choose from."""

    name: str
    card: MethodCard
    options: Mapping[str, Any]
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)


@dataclass(frozen=True)
class Outcome:
    """What an arm reached on one seed: accuracies in percent."""

    test: float
    validation: float
    rate: float
    parameters: int


def pretrained(seed: int, epochs: int = 14) -> tuple[Model, tuple[np.ndarray, np.ndarray], float]:
    """A ViT trained on one half of the upright digits; the other half, and the accuracy on it."""
    from timm.models.vision_transformer import VisionTransformer

    digits = load_digits()
    pictures, targets = (digits.images / 16.0).astype(np.float32)[:, None], digits.target  # (n, 1, 8, 8)
    order = np.random.default_rng(seed).permutation(len(targets))
    ours, others = order[: len(order) // 2], order[len(order) // 2 :]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = VisionTransformer(img_size=8, patch_size=2, in_chans=1, embed_dim=128, depth=4, num_heads=4, num_classes=10)
        torch.nn.init.normal_(backbone.pos_embed, std=0.3)  # with timm's 0.02 so small a net waits long before it learns where things are
        train_backbone(backbone, torch.from_numpy(normalised(pictures[ours])), torch.from_numpy(targets[ours]), epochs)
    with torch.no_grad():
        accuracy = 100 * float((backbone(torch.from_numpy(normalised(pictures[others]))).argmax(-1).numpy() == targets[others]).mean())
    family = VitFamily(VIT)
    task = Task("classification", LABELS)
    processor = make_processor(array_spec(family.signature(backbone, task)))
    return build_model(family, backbone, task, processor, reference="digits-vit"), (pictures[others], targets[others]), accuracy


def normalised(pictures: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 over all upright digits."""
    return ((pictures - MEAN) / DEVIATION).astype(np.float32)


def train_backbone(backbone: torch.nn.Module, pictures: torch.Tensor, targets: torch.Tensor, epochs: int) -> None:
    """AdamW with a cosine schedule."""
    backbone.train()
    optimiser = torch.optim.AdamW(backbone.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * -(-len(targets) // 64)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(1.0, (step + 1) / 30) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps))))
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(targets)), 64):
            loss = F.cross_entropy(backbone(pictures[rows]), targets[rows])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
    backbone.eval()


def ground(seed: int, shift: str, base: tuple[Model, tuple[np.ndarray, np.ndarray], float], train_per_class: int, validation_per_class: int) -> Ground:
    """Parts of equal class sizes for training and validation; the rest is the test part."""
    model, (pictures, targets), accuracy = base
    moved = normalised(SHIFTS[shift](pictures))
    generator = np.random.default_rng([seed, 1])
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for digit in range(10):
        rows = generator.permutation(np.flatnonzero(targets == digit)).tolist()
        parts["train"] += rows[:train_per_class]
        parts["validation"] += rows[train_per_class : train_per_class + validation_per_class]
        parts["test"] += rows[train_per_class + validation_per_class :]
    sets = {name: Dataset(f"{shift} {name}", [Example(f"{row}", moved[row], LABELS[targets[row]]) for row in sorted(rows)], "array", LABELS) for name, rows in parts.items()}
    return Ground(model, sets, accuracy)


def accuracy(model: Model, artifact: Artifact | None, data: Dataset) -> float:
    """Percent right; without an artifact the pretrained net's own head."""
    inputs = torch.from_numpy(np.stack([np.asarray(row.raw) for row in data]))
    if artifact is not None:
        artifact.attach(model, "measured")
    try:
        with torch.no_grad():
            found = model.module(image=inputs)["logits"].argmax(-1).numpy()
    finally:
        if artifact is not None:
            detach(model, "measured")
    return 100.0 * float((found == data.targets()).mean())


def train(arm: Arm, place: Ground, rate: float, seed: int, epochs: int, batch_size: int) -> Outcome:
    """One training, and its accuracies."""
    settings = TrainSettings(epochs=epochs, batch_size=batch_size, learning_rate=rate, seed=seed, device="cpu")
    artifact = fit(place.model, load_method(arm.card), arm.card.options(**arm.options), TrainingData(place.parts["train"]), settings)
    test, validation = (accuracy(place.model, artifact, place.parts[part]) for part in ("test", "validation"))
    return Outcome(test, validation, rate, int(artifact.provenance["parameters"]))


def probe(place: Ground) -> Outcome:
    """The floor, on the frozen features."""
    features = {}
    for name, part in place.parts.items():
        with torch.no_grad():
            features[name] = place.model.module(image=torch.from_numpy(np.stack([np.asarray(row.raw) for row in part])))["features"].numpy()
    found = solve(features, {name: part.targets() for name, part in place.parts.items()})
    return Outcome(found.test, found.validation, found.penalty, found.parameters)


def run_arm(arm: Arm, places: Sequence[Ground], epochs: int, batch_size: int) -> list[Outcome]:
    """All seeds of an arm at the learning rate that is best on the first seed's validation part; the lower one among equals."""
    tried = [train(arm, places[0], rate, 0, epochs, batch_size) for rate in arm.rates]
    first = max(tried, key=lambda outcome: (outcome.validation, -outcome.rate))
    return [first, *(train(arm, place, first.rate, seed, epochs, batch_size) for seed, place in enumerate(places[1:], start=1))]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation and range over seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.fmean(values), 2), "sd": round(deviation, 2), "low": round(min(values), 2), "high": round(max(values), 2)}


def paired(left: Sequence[float], right: Sequence[float]) -> dict[str, Any]:
    """Mean difference over seeds with its 95 % t interval, and on how many seeds it is above zero."""
    differences = [a - b for a, b in zip(left, right, strict=True)]
    mean, low, high = t_interval(differences)
    return {"difference": round(mean, 2), "interval": [round(low, 2), round(high, 2)], "wins": sum(value > 0 for value in differences), "seeds": len(differences)}


def claim(left: Sequence[float], right: Sequence[float], at_least: float = 0.0) -> dict[str, Any]:
    """Whether one arm's mean is above another's by so many points, and whether its interval is too: only then it is shown."""
    difference = paired(left, right)
    return {"holds": difference["difference"] > at_least, "shown": difference["interval"][0] > at_least, **difference}


def experiment(
    name: str, arms: Sequence[Arm], checks: Callable[[Mapping[str, list[float]]], dict[str, Any]], *, train_per_class: int, validation_per_class: int, epochs: int, batch_size: int
) -> int:
    """Run all arms on all seeds and shifts, print a table, write the results.

    Args:
        name: of the results file.
        arms: what is compared.
        checks: test accuracies by arm -> what the method's card promises, each a `claim`.
        train_per_class: pictures.
        validation_per_class: pictures.
        epochs: passes over the training pictures.
        batch_size: pictures a step.
    """
    parser = argparse.ArgumentParser(description=f"Effect of {name} on shifted digits.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--shifts", nargs="+", choices=tuple(SHIFTS), default=tuple(SHIFTS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / f"{name}.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # so that the figures do not depend on the machine's processors
    began, found = time.monotonic(), {}
    with Load() as load_of_others:
        bases = [pretrained(seed) for seed in range(arguments.seeds)]
        for shift in arguments.shifts:
            places = [ground(seed, shift, base, train_per_class, validation_per_class) for seed, base in enumerate(bases)]
            frozen = [accuracy(place.model, None, place.parts["test"]) for place in places]
            outcomes = {FLOOR: [probe(place) for place in places]}
            for arm in arms:
                outcomes[arm.name] = run_arm(arm, places, epochs, batch_size)
                print(f"{shift}: {arm.name} {spread([outcome.test for outcome in outcomes[arm.name]])}", flush=True)
            found[shift] = summary(outcomes, frozen, checks)
            print(table(shift, found[shift]))
    result = {
        "experiment": name,
        "command": command(),
        "machine": machine(),
        "versions": versions(),
        "seconds": round(time.monotonic() - began, 1),
        "load_of_others": round(load_of_others.others, 2),
        "pretrained_upright_accuracy": spread([base[2] for base in bases]),
        "per_class": {"train": train_per_class, "validation": validation_per_class},
        "training": {"epochs": epochs, "batch_size": batch_size, "rates": {arm.name: list(arm.rates) for arm in arms}},
        "shifts": found,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"upright accuracy of the backbones {result['pretrained_upright_accuracy']}; {result['seconds']} s; command: {command()}")
    return 0


def summary(outcomes: Mapping[str, list[Outcome]], frozen: Sequence[float], checks: Callable[[Mapping[str, list[float]]], dict[str, Any]]) -> dict[str, Any]:
    """Figures of one shift."""
    tests = {name: [outcome.test for outcome in rows] for name, rows in outcomes.items()}
    arms = {
        name: {"test": spread(tests[name]), "all": [round(value, 2) for value in tests[name]], "rate": rows[0].rate, "parameters": rows[0].parameters}
        for name, rows in outcomes.items()
    }
    return {"pretrained_as_it_is": spread(frozen), "arms": arms, "checks": checks(tests)}


def table(shift: str, found: Mapping[str, Any]) -> str:
    """Figures of one shift for people."""
    lines = [f"{shift}: test accuracy in percent over seeds", f"  {'the net as it is':<20} {found['pretrained_as_it_is']['mean']:6.2f}"]
    lines += [f"  {name:<20} {row['test']['mean']:6.2f} +- {row['test']['sd']:5.2f}  {row['parameters']:>7} parameters" for name, row in found["arms"].items()]
    lines += [
        f"  {'shown' if check['shown'] else 'not shown' if check['holds'] else 'FAILS'}: {what} {check['difference']:+.2f} {check['interval']}"
        for what, check in found["checks"].items()
    ]
    return "\n".join(lines)
