"""Ten epochs with and without the cache of the frozen prefix: whole trainings of ViT-S on 200 pictures.

The times hold everything that `adapt` does after loading, the filling of the cache included. Trained weights with and
without the cache agree to 1e-5, and what a training wrote into its cache with the activations of whole passes in shuffled
batches of another size to 1e-6 (both relative to the greatest value of a tensor), or the run fails.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measuring import Load, Report, Row, Side, Target, arguments_of, best_threads
from subjects import pictures, vit_small

from polyadapt.artifact import Artifact
from polyadapt.data.dataset import Dataset
from polyadapt.methods.base import load_method
from polyadapt.methods.linear_probe.card import CARD as PROBE
from polyadapt.methods.lora.card import CARD as LORA
from polyadapt.methods.lora.card import LoraOptions
from polyadapt.model import Model
from polyadapt.training import TrainingData, TrainSettings, fit
from polyadapt.training.prefix import FOLDER
from polyadapt.training.store import RowsOnDisk

BLOCKS = 12
BATCH, OTHER_BATCH = 16, 10
SITES = ("attn.q", "attn.v", "ffn.up", "ffn.down")


def in_blocks(first: int) -> tuple[str, ...]:
    """LoRA's sites in all blocks from one on."""
    return tuple(f"block.{block}.{site}" for block in range(first, BLOCKS) for site in SITES)


CASES = {
    "linear probe": (PROBE, (), 8.0, 0),
    "last block": (LORA, in_blocks(11), 3.0, 11),
    "last third": (LORA, in_blocks(8), 1.5, 8),
}


def train(model: Model, name: str, data: Dataset, prefix: str, epochs: int, directory: Path | None = None) -> Artifact:
    """One whole training."""
    card, sites, _, _ = CASES[name]
    options = LoraOptions(sites=sites) if sites else card.options()
    return fit(model, load_method(card), options, TrainingData(data), TrainSettings(epochs=epochs, batch_size=BATCH, frozen_prefix=prefix, device="cpu"), directory=directory)


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The greatest difference, relative to the greatest expected value."""
    difference = float((found - expected).abs().max())
    return difference / float(expected.abs().max()) if difference else 0.0


def greatest_difference(left: Artifact, right: Artifact) -> float:
    """Of the trained tensors, each relative to its greatest value."""
    return max(relative_difference(right.slots[name], value) for name, value in left.slots.items() if value.numel())


def cached(model: Model, name: str, data: Dataset) -> torch.Tensor:
    """What a training of one epoch writes into its cache and reads from it: [pictures, tokens, width]."""
    with tempfile.TemporaryDirectory() as folder:
        train(model, name, data, "cache", 1, Path(folder))
        (file,) = (Path(folder) / FOLDER).iterdir()
        return RowsOnDisk(file).take(range(len(data)))


@torch.no_grad()
def cache_difference(model: Model, name: str, data: Dataset) -> float:
    """Cached activations against those of whole passes in shuffled batches of another size, relative to the greatest."""
    inputs = torch.stack([torch.from_numpy(model.processor(row.raw)["image"]) for row in data])
    order = np.random.default_rng(1).permutation(len(data))
    seen: list[torch.Tensor] = []
    handle = model.backbone.get_submodule(f"blocks.{CASES[name][3] - 1}").register_forward_hook(lambda module, args, output: seen.append(output))
    for rows in np.split(order, range(OTHER_BATCH, len(data), OTHER_BATCH)):
        model.module(image=inputs[rows])
    handle.remove()
    with torch.enable_grad():
        held = cached(model, name, data)
    return relative_difference(held, torch.cat(seen)[np.argsort(order)])


def compare(name: str, model: Model, data: Dataset, arguments: argparse.Namespace, report: Report) -> None:
    times: dict[str, list[float]] = {"off": [], "cache": []}
    artifacts: dict[str, Artifact] = {}
    for turn in range(arguments.rounds):
        for prefix in ("off", "cache") if turn % 2 == 0 else ("cache", "off"):
            began = arguments.clock()
            artifacts[prefix] = train(model, name, data, prefix, arguments.epochs)
            times[prefix].append(arguments.clock() - began)
    ratios = sorted(off / cache for off, cache in zip(times["off"], times["cache"], strict=True))
    seconds = {prefix: statistics.median(values) for prefix, values in times.items()}
    note = f"{seconds['off']:.1f} s without, {seconds['cache']:.1f} s with the cache"
    report.rows.append(Row(f"{name}: how many times faster", statistics.median(ratios), ratios[0], ratios[-1], "x", Target(CASES[name][2], at_most=False), note))
    weights = greatest_difference(artifacts["off"], artifacts["cache"])
    report.rows.append(Row(f"{name}: trained weights differ by", weights, weights, weights, "", Target(1e-5)))
    if CASES[name][3]:
        activations = cache_difference(model, name, data[:48])
        note = f"the cache, filled in batches of {BATCH}, against shuffled batches of {OTHER_BATCH}"
        report.rows.append(Row(f"{name}: activations differ by", activations, activations, activations, "", Target(1e-6), note))


def main() -> int:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--images", type=int, default=200)
        parser.add_argument("--epochs", type=int, default=10)
        parser.add_argument("--image-size", type=int, default=224, help="smaller pictures make the run a trial")
        parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=tuple(CASES))

    arguments = arguments_of("What the cache of the frozen prefix saves.", 3, add)
    is_trial = arguments.is_trial or (arguments.images, arguments.epochs, arguments.image_size) != (200, 10, 224)
    report = Report("frozen_prefix", f"{arguments.epochs} epochs on {arguments.images} pictures, ViT-S with random weights", is_trial=is_trial)
    model = vit_small(arguments.image_size)
    data = pictures(model, arguments.images)
    with Load() as load_of_others:
        if not arguments.cpu_time:
            few = data[:16]
            threads = best_threads(Side("training", lambda: train(model, "last third", few, "off", 1), set_threads=torch.set_num_threads), time.perf_counter, 2)
            torch.set_num_threads(threads)
            report.notes.append(f"{threads} threads on both sides, the better of 1 and 2; intervals are the extremes of {arguments.rounds} repeats")
        for name in arguments.cases:
            compare(name, model, data, arguments, report)
    report.others = load_of_others.others
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
