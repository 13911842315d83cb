"""Many artifacts in one open bundle: what switching among a hundred of them takes, and what they take of memory.

The encoder and the LoRA artifacts of `slots.py` (60 slot tensors, 1.2 MB each), taken in from their folders. Memory is
what the process holds resident after every artifact was called once, less before, over the artifacts' own bytes.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Load, Report, Row, Target, arguments_of, median_interval, timed
from slots import encoder, feeds_of, lora

from polyadapt_onnx.exporter import export
from polyadapt_runtime import Bundle

# In a process of its own: what a process has freed it may use again without growing.
MEMORY = """
import gc, os, sys
from pathlib import Path
import numpy as np
from polyadapt_runtime import Bundle

def resident_bytes():
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

bundle = Bundle(sys.argv[1], device="cpu", threads=1)
feeds = {name: np.ones((1, 16), np.int64) for name in ("input_ids", "attention_mask")}
bundle.run(feeds)
before = resident_bytes()
for folder in sys.argv[2:]:
    bundle.run(feeds, bundle.load_artifact(folder))
print(resident_bytes() - before)
"""


def measure_memory(bundle: Path, folders: list[Path], own_bytes: int, arguments: Any, report: Report) -> None:
    """Every artifact called once, in one fresh process an opening."""
    ratios = []
    for _ in range(arguments.openings):
        done = subprocess.run([sys.executable, "-c", MEMORY, bundle, *folders], capture_output=True, text=True, check=True)
        ratios.append(int(done.stdout) / own_bytes)
    report.rows.append(Row(f"memory of {len(folders)} artifacts / their own bytes", *median_interval(ratios), "x", Target(1.1), f"{len(ratios)} processes"))
    report.notes.append(f"{own_bytes / 1e6:.1f} MB in {len(folders)} artifacts")


def measure_switching(bundle: Path, folders: list[Path], arguments: Any, report: Report) -> None:
    """A call with another artifact than the one before, less a call with the same one: medians over ten artifacts a round."""
    opened, feeds, generator, extra, ready = Bundle(bundle, device="cpu", threads=1), feeds_of(1, 16), np.random.default_rng(0), [], []
    names = [opened.load_artifact(folder) for folder in folders]
    for name in names:
        opened.run(feeds, name)
    for _ in range(arguments.rounds):
        chosen = generator.permutation(names)[:10].tolist()
        same = statistics.median(timed(lambda: opened.run(feeds, chosen[0]), arguments.clock) for _ in chosen)  # noqa: B023
        other = statistics.median(timed(lambda name=name: opened.run(feeds, name), arguments.clock) for name in chosen)  # type: ignore[misc]
        extra.append((other - same) * 1e3)
        ready.append(statistics.median(timed(lambda name=name: opened._store.values(name, 1.0), arguments.clock) for name in chosen) * 1e3)  # type: ignore[misc]
    report.rows.append(Row(f"switch among {len(names)}: extra time of the next call", *median_interval(extra), "ms", Target(1.0)))
    report.rows.append(Row(f"switch among {len(names)}: finding the other slots", *median_interval(ready), "ms", Target(1.0)))


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--artifacts", type=int, default=100, help="how many (default 100; fewer make the run a trial)")
    parser.add_argument("--openings", type=int, default=6, help="of the bundle, for memory (default 6; fewer make the run a trial)")


def main() -> int:
    arguments = arguments_of("Many artifacts in one bundle: switching and memory.", 20, options)
    arguments.is_trial = arguments.is_trial or arguments.artifacts < 100 or arguments.openings < 6
    report = Report("artifacts", "Many artifacts in one encoder (6 layers, width 384, LoRA rank 8)", is_trial=arguments.is_trial)
    model = encoder()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        made = [lora(model, seed) for seed in range(arguments.artifacts)]
        bundle = export(model, {"first": made[0]}, root / "encoder.bundle").directory
        folders = [artifact.save(root / f"artifact-{index}") for index, artifact in enumerate(made)]
        own_bytes = sum(artifact.size_bytes for artifact in made)
        del made
        with Load() as load_of_others:
            measure_memory(bundle, folders, own_bytes, arguments, report)
            measure_switching(bundle, folders, arguments, report)
        report.others = load_of_others.others
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
