"""Adapters of a frozen spectrogram transformer on real sounds (ast-adapters, arXiv 2312.03694), on Whisper tiny.en's encoder.

Every arm trains about 42 thousand values (0.5 % of the encoder) in its upper two blocks, beside the class head: conformer
r = 16, bottleneck r = 26 (both parallel at the FFN, with the norm that feeds it), LoRA r = 14 on q and v; `full` trains all of
those blocks. What lies below is computed once. How all are trained and chosen: arms.py.
To be shown: the adapter that is best on the first seed's validation part, on which no seed tests, beats the linear probe on the
test parts, the interval above zero, on at least two tasks.

Each training is written down when it is done, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from arms import PROBE, Arm, Notebook, Outcome, Run, by_validation, chosen_rate, differences, probe, train
from measuring import Load, command, machine, versions
from sounds import TASKS, digest, loaded, parts_of

import polyadapt as pa

BLOCKS = ("encoder.block.2", "encoder.block.3")
SPANS = tuple(f"{block}.ffn" for block in BLOCKS)
EPOCHS = {"first word": 8, "article gender": 4, "letters": 20}
DRAWS = 10_000
RATES_OF_BLOCKS = (2.5e-5, 1e-4, 4e-4, 1.6e-3)
ARMS: Mapping[str, Arm] = {
    "conformer": Arm("conformer", {"sites": SPANS, "rank": 16}),
    "bottleneck": Arm("bottleneck", {"sites": SPANS, "rank": 26, "activation": "gelu", "train_norm": True}),
    "lora": Arm("lora", {"sites": tuple(f"{block}.attn.{letter}" for block in BLOCKS for letter in "qv"), "rank": 14, "alpha": 28.0}),
    "full": Arm("full", {"sites": tuple(f"{block}.*" for block in BLOCKS)}, RATES_OF_BLOCKS),
}
ADAPTERS = tuple(name for name in ARMS if name != "full")


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
                    outcome = train(model, parts, task, name, ARMS[name], Run(seed, rate, EPOCHS[task], device), notebook)
                    print(f"{task}: {name} seed {seed} rate {rate:g}: {outcome.test:.1f} ({outcome.seconds:.0f} s)", flush=True)


def kept(notebook: Notebook, task: str, name: str, seeds: int) -> list[Outcome]:
    """The outcomes of an arm at its chosen rate, one a seed; empty while some are missing."""
    if name != PROBE and len(notebook.find(task, name, 0)) < len(ARMS[name].rates):
        return []
    found = [notebook.find(task, name, seed, None if name == PROBE else chosen_rate(notebook, task, name)) for seed in range(seeds)]
    return [rows[0] for rows in found] if all(found) else []


def paired(left: Sequence[Outcome], right: Sequence[Outcome], units: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Mean difference in points over the test clips of all seeds with its 95 % bootstrap interval.

    Seeds and units are both drawn: a seed with all its clips, a unit with its clips of every seed.
    """
    names = sorted({name for row in units for name in row})
    sums, counts = np.zeros((2, len(units), len(names)))  # (seeds, units) each
    for seed, (a, b) in enumerate(zip(left, right, strict=True)):
        where = [names.index(name) for name in units[seed]]
        np.add.at(sums[seed], where, 100.0 * (np.array(a.right, float) - np.array(b.right, float)))
        np.add.at(counts[seed], where, 1.0)
    generator = np.random.default_rng(0)
    of_seeds = generator.multinomial(len(units), np.full(len(units), 1 / len(units)), DRAWS)
    of_units = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)
    heard = np.einsum("ds,su,du->d", of_seeds, counts, of_units)
    means = np.einsum("ds,su,du->d", of_seeds, sums, of_units)[heard > 0] / heard[heard > 0]
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "points": round(float(sums.sum() / counts.sum()), 2),
        "by_seed": [round(float(value), 2) for value in sums.sum(1) / counts.sum(1)],
        "units": len(names),
        "interval": [round(float(low), 2), round(float(high), 2)],
        "above_zero": bool(low > 0),
        "seeds": len(left),
    }


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
    validated = {name: by_validation(rows[name][0]) for name in ADAPTERS if name in rows}
    sizes = [{name: len(part) for name, part in parts.items()} for parts, _ in splits]
    return {
        "classes": len(splits[0][0]["train"].labels),
        "clips": sizes,
        "epochs": EPOCHS[task],
        "rates": {name: arm.rates for name, arm in ARMS.items()},
        "seconds_heard": TASKS[task].seconds,
        "unit": TASKS[task].unit,
        "arms": arms,
        "machines": sorted({row.machine for found in rows.values() for row in found}),
        "best_on_validation": max(validated, key=lambda name: validated[name]) if validated else None,
        "compared": compared,
    }


def table(task: str, found: Mapping[str, Any]) -> str:
    """Figures of one task as Markdown."""
    clips = ", ".join(f"{count} {name}" for name, count in found["clips"][0].items())
    lines = [f"{task.capitalize()}: {found['classes']} classes, {clips} clips (first seed), {found['seconds_heard']:g} s heard; test accuracy in percent.", ""]
    lines += ["| arm | mean | by seed | learning rate or C | trained values |", "|---|---|---|---|---|"]
    for name, row in found["arms"].items():
        lines.append(f"| {name} | {row['mean']:.1f} | {', '.join(f'{value:.1f}' for value in row['all'])} | {row['rate']:g} | {row['values']} |")
    drawn = f"Intervals draw the seeds and the test part's {found['unit']}. Best adapter by the validation part: {found['best_on_validation']}."
    return "\n".join([*lines, "", drawn, "", *differences(found["compared"]), ""])


def main() -> int:
    parser = argparse.ArgumentParser(description="Adapters of Whisper tiny.en's encoder on real sounds.")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=tuple(TASKS))
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=tuple(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto", help="auto takes a GPU where there is one")
    parser.add_argument("--notebook", type=Path, default=Path("runs/effects/ast_adapters.jsonl"), help="finished trainings; delete it to begin anew")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ast_adapters.json")
    arguments = parser.parse_args()
    data = {task: digest(task) for task in TASKS}
    notebook = Notebook(arguments.notebook, {"data": data, "epochs": EPOCHS, "arms": {name: asdict(arm) for name, arm in ARMS.items()}})
    with Load() as load_of_others:
        for task in arguments.tasks:
            run(task, arguments.seeds, arguments.arms, notebook, arguments.device)
    found = {task: summary(task, arguments.seeds, notebook) for task in TASKS if notebook.find(task, PROBE, arguments.seeds - 1)}
    page = "\n".join(table(task, row) for task, row in found.items())
    print(page)
    beaten = [task for task, row in found.items() if row["best_on_validation"] and row["compared"][f"{row['best_on_validation']} - {PROBE}"]["above_zero"]]
    check = {"the adapter that is best on validation beats the linear probe, its interval above zero, on at least two tasks": {"holds": len(beaten) >= 2, "tasks": beaten}}
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
