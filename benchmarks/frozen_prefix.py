"""Ten epochs with and without the cache of the frozen prefix: whole trainings of ViT-S on 200 pictures.

The times hold everything that `adapt` does after loading, the filling of the cache included. Trained weights with and
without the cache agree to 1e-5, and the cached activations with those of shuffled batches to 1e-6 (both relative to the
greatest value), or the run fails.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

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

BLOCKS = 12
SITES = ("attn.q", "attn.v", "ffn.up", "ffn.down")


def in_blocks(first: int) -> tuple[str, ...]:
    """LoRA's sites in all blocks from one on."""
    return tuple(f"block.{block}.{site}" for block in range(first, BLOCKS) for site in SITES)


CASES = {
    "linear probe": (PROBE, (), 8.0, 0),
    "last block": (LORA, in_blocks(11), 3.0, 11),
    "last third": (LORA, in_blocks(8), 1.5, 8),
}


def train(model: Model, name: str, data: Dataset, prefix: str, epochs: int) -> Artifact:
    """One whole training."""
    card, sites, _, _ = CASES[name]
    options = LoraOptions(sites=sites) if sites else card.options()
    return fit(model, load_method(card), options, TrainingData(data), TrainSettings(epochs=epochs, batch_size=16, frozen_prefix=prefix, device="cpu"))


def greatest_difference(left: Artifact, right: Artifact) -> float:
    """Of the trained tensors, relative to the greatest value of each."""
    return max(float((right.slots[name] - value).abs().max() / value.abs().max().clamp_min(1.0)) for name, value in left.slots.items() if value.numel())


@torch.no_grad()
def shuffled_difference(model: Model, data: Dataset, block: int) -> float:
    """Activations behind the frozen blocks, in order and in shuffled batches of 16: relative to the greatest."""
    found: dict[str, torch.Tensor] = {}
    inputs = torch.stack([torch.from_numpy(model.processor(row.raw)["image"]) for row in data[:48]])
    for name, order in (("in order", np.arange(48)), ("shuffled", np.random.default_rng(1).permutation(48))):
        seen: list[torch.Tensor] = []
        target = model.backbone.get_submodule(f"blocks.{block - 1}")
        handle = target.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
        for rows in np.split(order, 3):
            model.module(image=inputs[rows])
        handle.remove()
        found[name] = torch.cat(seen)[np.argsort(order)]
    return float((found["in order"] - found["shuffled"]).abs().max() / found["in order"].abs().max())


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
        activations = shuffled_difference(model, data, CASES[name][3])
        report.rows.append(Row(f"{name}: activations differ by", activations, activations, activations, "", Target(1e-6), "one order against another, in batches of 16"))


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
