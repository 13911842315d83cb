"""Peak memory of a LoRA training step, against PEFT on the same sites: each side in processes of its own.

The peak is that of the process's own pages (VmHWM), which starts at zero when a program starts; `getrusage` would hand a
child the peak of the process that started it. Memory does not depend on what else the machine does, so no load is counted.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import torch
from measuring import Report, Row, Target, arguments_of, median_interval
from train_step import CASES, load, steps_of

STEPS = 5


def measure(name: str, repeats: int, report: Report) -> None:
    """Peaks of five steps, and what they take beyond the loaded model."""
    peaks: dict[str, list[dict[str, float]]] = {"polyadapt": [], "peft": []}
    for _ in range(repeats):
        for side, found in peaks.items():
            done = subprocess.run([sys.executable, __file__, "--peak", name, side], capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
    for key, label, target in (("peak", "peak memory", Target(1.02)), ("steps", "memory of the steps alone", None)):
        ratios = [ours[key] / theirs[key] for ours, theirs in zip(peaks["polyadapt"], peaks["peft"], strict=True)]
        sizes = ", ".join(f"{side} {median_interval([found[key] for found in rows])[0]:.0f} MB" for side, rows in peaks.items())
        report.rows.append(Row(f"{name}: {label} / PEFT", *median_interval(ratios), "x", target, sizes))


def peak(name: str, side: str) -> None:
    """In a process of its own: five steps, and what they took."""
    case = CASES[name]
    torch.set_num_threads(1)
    model, data = load(case)
    with steps_of(case, side, model, data, "cpu") as step:
        before = own_megabytes("VmRSS")
        for _ in range(STEPS):
            if not math.isfinite(float(step())):  # type: ignore[arg-type]
                raise RuntimeError(f"{name}, {side}: the loss is not finite")
    most = own_megabytes("VmHWM")
    print(json.dumps({"peak": most, "steps": most - before}))


def own_megabytes(field: str) -> float:
    """A line of this process's status, in MB."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) / 1024


def main() -> int:
    if "--peak" in sys.argv:
        peak(*sys.argv[sys.argv.index("--peak") + 1 :][:2])
        return 0

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=tuple(CASES), help="some of the cases")

    arguments = arguments_of("Peak memory of a LoRA training step against PEFT.", 3, add)
    report = Report("train_memory", "Memory of LoRA training steps (rank 8), random weights", others=None, is_trial=arguments.is_trial)
    for name in arguments.cases:
        measure(name, arguments.rounds, report)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
