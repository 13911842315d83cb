"""Variants of exported graphs beside float32, and a float32 bundle beside PyTorch.

ViT-S/16 at 224 pixels and a BERT encoder with 6 layers of width 384, random weights, LoRA of rank 8 active in every
call (slots, through the runtime). PyTorch runs the same model with the same artifact attached, in inference mode. A run
is eight examples, one after the other or in one batch, so that waking up threads does not count. A figure is how many
times faster the second side is; sizes and errors stand in the notes, as the exports' own gates measured them.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Load, Report, Rounds, Side, Target, arguments_of, in_turns
from slots import encoder, feeds_of, lora
from subjects import vit_small

from polyadapt.host.inference import adapted
from polyadapt.model import Model
from polyadapt_onnx.exporter import export
from polyadapt_runtime import Bundle

VARIANTS = ("float16", "int8")
LEAST = 1.8  # times faster than float32
EXAMPLES = 8  # in a run
Subject = tuple[Callable[[], Model], Callable[[int], Mapping[str, np.ndarray]], tuple[int, ...], tuple[str, ...]]
SUBJECTS: dict[str, Subject] = {
    "ViT-S": (vit_small, lambda batch: {"image": np.random.default_rng(0).random((batch, 3, 224, 224), dtype=np.float32)}, (1, 8), ("attn.q", "attn.v")),
    "encoder": (encoder, lambda batch: feeds_of(batch, 128), (1, 8), ("attn.q", "attn.v", "attn.o", "ffn.up", "ffn.down")),
}
"""(model, inputs of a batch, batches, sites of the artifact) by name."""


def bundle_side(name: str, bundle: Path, variant: str, feeds: Mapping[str, np.ndarray], repeats: int, threads: tuple[int, ...]) -> Side:
    """Calls of the runtime with the artifact; one opened bundle for each number of threads."""
    opened = {count: Bundle(bundle, device="cpu", threads=count, variant=variant) for count in threads}
    now = [threads[0]]

    def run() -> None:
        for _ in range(repeats):
            opened[now[0]].run(feeds, "a")

    return Side(name, run, threads, lambda count: now.__setitem__(0, count))


def torch_side(model: Model, feeds: Mapping[str, np.ndarray], repeats: int, threads: tuple[int, ...]) -> Side:
    """The module with the artifact attached."""
    inputs = {name: torch.from_numpy(value) for name, value in feeds.items()}

    def run() -> None:
        with torch.inference_mode():
            for _ in range(repeats):
                model.module(**inputs)

    return Side("torch", run, threads, torch.set_num_threads)


def compare(
    label: str, model: Model, bundle: Path, feeds: Mapping[str, np.ndarray], threads: tuple[int, ...], arguments: Any, report: Report, targets: Mapping[str, Target]
) -> None:
    """One size: torch, float32 and every variant in turns."""
    repeats = max(1, EXAMPLES // len(next(iter(feeds.values()))))
    sides = [bundle_side(name, bundle, name, feeds, repeats, threads) for name in ("float32", *VARIANTS)]
    rounds: Rounds = in_turns([torch_side(model, feeds, repeats, threads), *sides], arguments.rounds, arguments.clock)
    report.rows += [
        rounds.ratio("torch", "float32", f"{label}: torch / bundle", targets.get("torch")),
        rounds.ratio("float32", "int8", f"{label}: float32 / int8", targets.get("int8")),
        rounds.ratio("float32", "float16", f"{label}: float32 / float16"),
    ]


def describe(label: str, bundle: Path, report: Report) -> None:
    """Sizes and errors of the variants."""
    opened = Bundle(bundle, device="cpu")
    entries = {"float32": opened.manifest.raw["graphs"], **{name: entry["graphs"] for name, entry in opened.manifest.raw["variants"].items()}}
    for name, graphs in entries.items():
        place = graphs["model"]
        size = sum((bundle / path).stat().st_size for path in (place["file"], *place["data"]))
        parity = opened.manifest.raw["variants"].get(name, {}).get("parity", opened.manifest.raw["parity"])
        error = parity.get("error", parity.get("max_relative_error"))
        kept = "".join(f", effect of {artifact} kept {value:.4f}" for artifact, value in parity.get("effect_correlations", {}).items())
        report.notes.append(f"{label} {name}: {size / 1e6:.1f} MB, error {error:.1e} ({parity.get('measure', 'max-relative')}){kept}")


def main() -> int:
    arguments = arguments_of("Variants beside float32, a bundle beside PyTorch.", 20, lambda parser: parser.add_argument("--only", choices=tuple(SUBJECTS), help="one model alone"))
    report = Report("variants", "Variants of exported graphs, and a bundle beside PyTorch", is_trial=arguments.is_trial)
    bounds = {"ViT-S x 1": {"torch": Target(1.15, at_most=False)}, "ViT-S x 8": {"torch": Target(1.05, at_most=False)}}
    with tempfile.TemporaryDirectory() as folder:
        for name in (arguments.only,) if arguments.only else SUBJECTS:
            make, feeds, batches, sites = SUBJECTS[name]
            model = make()
            artifact, bundle = lora(model, 1, sites), Path(folder) / f"{name}.bundle"
            export(model, {"a": artifact}, bundle, options={"variants": VARIANTS})
            describe(name, bundle, report)
            with adapted(model, artifact), Load() as load_of_others:
                for batch in batches:
                    label = f"{name} x {batch}"
                    compare(label, model, bundle, feeds(batch), arguments.threads, arguments, report, {"int8": Target(LEAST, at_most=False), **bounds.get(label, {})})
                    if name == "encoder":  # products with slots stay float32, and gain the least from a second thread
                        compare(f"{label}, one thread", model, bundle, feeds(batch), (1,), arguments, report, {})
            report.others = max(report.others, load_of_others.others)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
