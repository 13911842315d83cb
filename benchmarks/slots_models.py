"""What slots cost in larger models: ViT-S on one picture and on eight, and one decode step of Llama-135M.

LoRA of rank 8 on q and v of every block. Graphs are compared through onnxruntime alone, slots as OrtValues, as in `slots.py`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from measuring import Load, Report, add_device, arguments_of, in_turns, on_device
from slots import Choice, graph_call, lora
from subjects import llama_135m, vit_small

from polyadapt.model import Model
from polyadapt_onnx.exporter import export
from polyadapt_runtime.manifest import read_manifest

PAST = 64
SITES = ("attn.q", "attn.v")
Feeds = dict[str, np.ndarray]
SUBJECTS: dict[str, tuple[Callable[[], Model], Mapping[str, Mapping[str, int]], int]] = {
    "ViT-S": (vit_small, {"1 picture": {"batch": 1}, "8 pictures": {"batch": 8}}, 4),
    "Llama-135M": (llama_135m, {f"a step after {PAST}": {"batch": 1, "tokens": 1, "past": PAST, "past+tokens": PAST + 1}}, 2),
}
"""(model, sizes by name, calls in a run) by name."""


def feeds_of(bundle: Path, sizes: Mapping[str, int]) -> Feeds:
    """Seeded inputs of the bundle's graph: numbers from 0 to 1, and ones where it takes integers."""
    generator = np.random.default_rng(0)
    shapes = {port.name: ([sizes.get(str(size), size) for size in port.shape], port.dtype) for port in read_manifest(bundle, verify=False).graphs["model"].inputs}
    return {name: np.ones(shape, dtype) if dtype == "int64" else generator.random(shape, np.float32) for name, (shape, dtype) in shapes.items()}


def main() -> int:
    arguments = arguments_of("What slots cost in larger models.", 20, add_device)
    report = Report(on_device("slots_models", arguments), "Slots in ViT-S and in a decode step of Llama-135M (LoRA rank 8 on q and v)", is_trial=arguments.is_trial)
    with tempfile.TemporaryDirectory() as folder:
        for name, (make, several, repeats) in SUBJECTS.items():
            model = make()
            artifact = lora(model, 1, SITES)
            bundles = {form: Path(folder) / f"{name}-{form}.bundle" for form in ("slots", "merged", "base")}
            export(model, {"a": artifact}, bundles["slots"])
            export(model, {"a": artifact}, bundles["merged"], form="merged")
            export(model, {}, bundles["base"])
            del model
            slots = {slot: value.numpy() for slot, value in artifact.slots.items()}
            with Load() as load_of_others:
                for label, sizes in several.items():
                    feeds = feeds_of(bundles["base"], sizes)
                    calls = {
                        "merged": graph_call(bundles["merged"], feeds, arguments.device),
                        "base": graph_call(bundles["base"], feeds, arguments.device),
                        "active": graph_call(bundles["slots"], {**feeds, **slots}, arguments.device),
                        "nothing": graph_call(bundles["slots"], feeds, arguments.device),
                    }
                    rounds = in_turns([Choice(call, arguments.threads).side(side, repeats) for side, call in calls.items()], arguments.rounds, arguments.clock)
                    report.rows.append(rounds.ratio("active", "merged", f"{name}, {label}: active slots / merged"))
                    report.rows.append(rounds.ratio("nothing", "base", f"{name}, {label}: nothing active / base graph"))
            report.others = max(report.others, load_of_others.others)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
