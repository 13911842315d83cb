"""Master-ASR on Whisper base's encoder and Tux Paint's captions: five languages, then Belarusian with eight minutes and one to stop by (arXiv 2306.15686).

Stage 1 learns French, Catalan, Romanian, Russian and Greek with masks in the two highest layers; `--layers 6` is a longer run,
in which nothing of the encoder is computed once. Stage 2 adds Belarusian by every arm, from the same merged base, over several
seeds; every arm is stopped on the validation part. The share of the gap from the head alone to full tuning that an arm closes is
what the paper's method is about. Learning rates are chosen on the validation part of the first seed.

Every arm's result is kept as soon as it is there; a run that was stopped goes on where it stood.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from measuring import Load, command, machine, versions
from tux_speech import SECONDS, joined, language_parts, minutes

import polyadapt as pa
from polyadapt.artifact import Artifact
from polyadapt.data.dataset import Dataset
from polyadapt.edits import Form
from polyadapt.evaluation.interval import paired_bootstrap
from polyadapt.evaluation.metrics import metric
from polyadapt.evaluation.prediction import Prediction
from polyadapt.files import read_json, write_json
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.methods.card import MethodCard
from polyadapt.methods.full.card import FullOptions
from polyadapt.methods.full.method import Full
from polyadapt.methods.head import HeadForm
from polyadapt.model import Model
from polyadapt.training import TrainingData, TrainSettings, fit
from polyadapt.training.alphabet import alphabet_of
from polyadapt_speech.master_asr.shared import language_artifact, languages_of_shared, overlap

FIRST = ("fr", "ca", "ro", "ru", "el")
NEW = "be"
LAYERS = 6  # of the encoder
HEAD, ROWS, FULL = "head only", "rows + head", "full tuning"
EPOCHS = 40
HOST = Host()
COMMON = {"batch_size": 16, "early_stopping": 5}


@dataclass(frozen=True)
class Arm:
    """One way to add a language. `row` is the language whose masks lie on the base while a head is learned.

    Without `rates` an arm takes the rate of the head alone. With `has_head` it begins from that head: the layers do not move
    while a fresh head says nothing but blanks.
    """

    name: str
    method: str
    rates: tuple[float, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    row: str = ""
    merged: bool = True
    has_head: bool = False


class FromHead(Full):
    """Full tuning that begins from a head."""

    def __init__(self, card: MethodCard, head: Artifact) -> None:
        super().__init__(card)
        self._head = {name: tensor for edit in head.edits for name, tensor in edit.tensors.items()}

    def build(self, model: Model, options: FullOptions, generator: torch.Generator) -> Form:
        form = super().build(model, options, generator)
        [head] = [part for part in form.modules() if isinstance(part, HeadForm)]
        head.load_state_dict({name: self._head[name] for name in ("weight", "bias")})
        return form


def arms_of(layers: int) -> tuple[Arm, ...]:
    """Every way to add a language, in so many of the highest layers."""
    blocks = [f"encoder.block.{number}" for number in range(LAYERS - layers, LAYERS)]
    return (
        Arm(HEAD, "linear-probe", (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
        Arm("head only, Whisper's own weights", "linear-probe", (3e-4, 1e-3, 3e-3, 1e-2), merged=False),
        *(Arm(f"head on the row of {language}", "linear-probe", (), row=language) for language in FIRST),
        Arm(ROWS, "master-asr", (3e-4, 1e-3, 3e-3), {"shared": "SHARED"}),
        Arm("LoRA q, v + head", "lora", (3e-4, 1e-3, 3e-3), {"sites": [f"{block}.attn.[qv]" for block in blocks]}),
        Arm("mask tuning + head", "master-asr", (1e-3, 3e-3, 1e-2), {"specialists": 1, "adapt_layers": layers}),
        Arm(f"{FULL} + head", "full", (1e-4, 3e-4, 1e-3), {"sites": [f"{block}.*" for block in blocks]}),
        Arm(f"{FULL} from the trained head", "full", (3e-5, 1e-4, 3e-4, 1e-3), {"sites": [f"{block}.*" for block in blocks]}, has_head=True),
    )


def base_of(shared: Artifact | None, row: str = "") -> Model:
    """Whisper's encoder, with the weights that the first stage moved, with one language's masks folded in."""
    model = pa.load("polyadapt:whisper-base", task="ctc", pad_to_seconds=SECONDS, host=HOST)
    if shared is None:
        return model
    model = shared.merge(model)
    if not row:
        return model
    spoken = language_artifact(shared, model, row)
    return replace(spoken, edits=tuple(edit for edit in spoken.edits if edit.kind == "mask"), labels=()).merge(model)


def alphabet(parts: Mapping[str, Dataset]) -> tuple[str, ...]:
    """A language's letters, which are known beforehand: rare ones may be missing among the training captions."""
    return alphabet_of(str(example.text) for part in parts.values() for example in part)


def first_stage(folder: Path, layers: int, clips: int, epochs: int, precision: str = "no") -> tuple[Artifact, dict[str, Any]]:
    """The shared artifact, and its error rates by language; both kept in the folder."""
    parts = {language: language_parts(language, clips, 40, 100) for language in FIRST}
    if not (folder / "shared" / "artifact.json").is_file():
        began, seen = time.monotonic(), list[Mapping[str, Any]]()
        data = TrainingData(*(joined([parts[language][name] for language in FIRST], name) for name in ("train", "validation")))
        card = HOST.registry.methods.get("master-asr").card
        options = card.options(adapt_layers=layers, turn_steps=100, head_rate=10.0, alphabets={language: alphabet(parts[language]) for language in FIRST})
        settings = TrainSettings(**COMMON, precision=precision, epochs=epochs, learning_rate=3e-4)
        artifact = fit(base_of(None), load_method(card), options, data, settings, lambda event: report(event, seen), folder / "stage-1", resume=True, seed=0)
        artifact.save(folder / "shared")
        # A run that was killed between its last epoch and the artifact trains nothing when it goes on.
        course = {"epochs": artifact.provenance["epochs"], "seconds_an_epoch": (time.monotonic() - began) / len(seen) if seen else None}
        write_json(folder / "stage-1.json", course | {"train_minutes": minutes(data.train)})
    shared = Artifact.load(folder / "shared")
    if not (folder / "first.json").is_file():
        base = base_of(shared)
        cer = {language: pa.evaluate(base, parts[language]["test"], language_artifact(shared, base, language), metrics=["cer"], host=HOST).value for language in FIRST}
        pairs = {f"{one}-{other}": overlap(shared, one, other) for place, one in enumerate(FIRST) for other in FIRST[place + 1 :]}
        write_json(folder / "first.json", {"cer": cer, "mean": statistics.mean(cer.values()), "overlap": pairs, **read_json(folder / "stage-1.json", "stage 1")})
    return shared, read_json(folder / "first.json", "stage 1")


def run_arm(arm: Arm, shared: Artifact, folder: Path, parts: Mapping[str, Dataset], seed: int, rates: Sequence[float], head_rate: float, precision: str) -> dict[str, Any]:
    """Train with each rate, keep the best on validation, and measure that on test."""
    data, tried = TrainingData(parts["train"], parts["validation"]), []
    for rate in rates:
        model = base_of(shared if arm.merged else None, arm.row).with_labels(alphabet(parts))
        card = HOST.registry.methods.get(arm.method).card
        options = card.options(**{name: str(folder / "shared") if value == "SHARED" else value for name, value in arm.options.items()})
        settings = TrainSettings(**COMMON, precision=precision, epochs=EPOCHS, schedule="constant")
        began, method = time.monotonic(), load_method(card)
        # One folder for all: activations below what trains are read back where base and data are the same.
        if arm.has_head:
            probe = HOST.registry.methods.get("linear-probe").card
            head = fit(model, load_method(probe), probe.options(), data, settings.model_copy(update={"learning_rate": head_rate}), directory=folder / "work", seed=seed)
            method = FromHead(card, head)
        artifact = fit(model, method, options, data, settings.model_copy(update={"learning_rate": rate}), directory=folder / "work", seed=seed)
        tried.append((artifact.provenance["metrics"]["validation"]["symbol_accuracy"], rate, artifact, model, time.monotonic() - began))
    accuracy, rate, artifact, model, seconds = max(tried, key=lambda row: row[0])
    found = pa.evaluate(model, parts["test"], artifact, metrics=["cer"], host=HOST)
    searched = pa.evaluate(model, parts["test"], artifact, metrics=["cer"], beams=8, host=HOST).value if arm.name in (HEAD, ROWS) else None
    return {
        "cer": found.value,
        "beam_cer": searched,
        "validation_accuracy": accuracy,
        "rate": rate,
        "seconds": seconds,
        "epochs": artifact.provenance["epochs"],
        "parameters": artifact.provenance["parameters"],
        "predictions": [row.to_dict() for row in found.predictions],
    }


def second_stage(arms: Sequence[Arm], shared: Artifact, folder: Path, seeds: int, precision: str = "no") -> dict[str, list[dict[str, Any]]]:
    """Results of all arms by seed, as far as they go."""
    parts = language_parts(NEW, 1000, 60, 170)
    results: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    for seed in range(seeds):
        for arm in arms:
            kept = folder / "arms" / f"{seed}-{arm.name.replace(' ', '_')}.json"
            if not kept.is_file():
                of_head = results[HEAD][0]["rate"] if results[HEAD] else 0.0
                rates = arm.rates if arm.rates and not seed else (results[arm.name][0]["rate"] if seed else of_head,)
                write_json(kept, run_arm(arm, shared, folder, parts, seed, rates, of_head, precision))
            results[arm.name].append(read_json(kept, "result of an arm"))
            sys.stderr.write(f"seed {seed}, {arm.name}: CER {results[arm.name][-1]['cer']:.3f}\n")
    return results


def summary(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Means over seeds, paired differences from the head alone over clips and seeds, and shares of the gap to full tuning."""
    sums = {name: sum(metric("cer").statistics([Prediction.from_dict(row) for row in seed["predictions"]], ()) for seed in seeds) for name, seeds in results.items()}
    means = {name: statistics.mean(seed["cer"] for seed in seeds) for name, seeds in results.items()}
    head, table = means[HEAD], {}
    for name, seeds in results.items():
        interval, _ = paired_bootstrap(np.asarray(sums[name]), np.asarray(sums[HEAD]), metric("cer").value, np.random.default_rng(0), 5000, 0.95)
        row = {"cer": [seed["cer"] for seed in seeds], "mean": means[name], "difference": means[name] - head, "interval": [interval.low, interval.high]}
        table[name] = row | {key: seeds[0][key] for key in ("parameters", "rate", "beam_cer")}
    full = min((row for name, row in table.items() if name.startswith(FULL)), key=lambda row: row["mean"], default=table[HEAD])
    for row in table.values():  # a share of a gap that may be none would be noise
        row["gap_closed"] = max(0.0, row["difference"] / full["difference"]) if full["interval"][1] < 0 else None
    return table


def text(first: Mapping[str, Any], table: Mapping[str, Any], layers: int, seeds: int, clips: int) -> str:
    """The tables of the page."""
    pace = f" of {first['seconds_an_epoch'] / 60:.1f} minutes" if first["seconds_an_epoch"] else ""
    course = f"{first['train_minutes']:.0f} minutes of speech in all, {first['epochs']} epochs{pace}, one seed"
    rates = [f"{value:.3f}" for value in (*first["cer"].values(), first["mean"])]
    lines = [f"Stage 1, masks in the {layers} highest of {LAYERS} layers, {course}: CER on unseen captions", ""]
    lines += [f"| {' | '.join(first['cer'])} | mean |", "|---" * len(rates) + "|", f"| {' | '.join(rates)} |", ""]
    lines += [f"Stage 2, Belarusian, {clips} test clips, {seeds} {'seed' if seeds == 1 else 'seeds'}; differences from the head alone with 95 % intervals over clips", ""]
    lines += ["| arm | CER | by seed | difference | gap closed | trained values |", "|---|---|---|---|---|---|"]
    for name, row in table.items():
        closed = "–" if row["gap_closed"] is None else f"{100 * row['gap_closed']:.0f} %"
        by_seed = ", ".join(f"{value:.3f}" for value in row["cer"])
        difference = f"{row['difference']:+.3f} [{row['interval'][0]:+.3f} … {row['interval'][1]:+.3f}]"
        lines.append(f"| {name} | {row['mean']:.3f} | {by_seed} | {difference} | {closed} | {row['parameters']} |")
    if any(name.startswith(FULL) for name in table) and table[HEAD]["gap_closed"] is None:
        lines += ["", "Full tuning is not surely below the head alone, so there is no gap of which a share could be told."]
    return "\n".join([*lines, ""])


def report(event: Mapping[str, Any], seen: list[Mapping[str, Any]]) -> None:
    """An epoch of the first stage in a line; those of this process are kept, as a run that goes on knows no other's time."""
    if event["kind"] in ("epoch", "cached"):
        sys.stderr.write(f"{dict(event)}\n")
    if event["kind"] == "epoch":
        seen.append(event)


def main() -> int:
    """Run what is not done yet, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, choices=range(1, LAYERS + 1), default=2, help="highest layers that are adapted (default 2; what is below is computed once)")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="these alone beside the head alone (default all)")
    parser.add_argument("--directory", type=Path, help="where results of stages and arms are kept (default runs/master-asr-LAYERS, with the precision behind it)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=400, help="of each language in the first stage")
    parser.add_argument("--epochs", type=int, default=15, help="of the first stage")
    parser.add_argument("--out", type=Path, help="default: results/master_asr.json, with the number of layers behind it where that is not 2")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="of the forward passes in training; bf16 is some three times as fast on processors with AMX")
    given = parser.parse_args()
    directory = given.directory or Path(f"runs/master-asr-{given.layers}{'' if given.precision == 'no' else '-bf16'}")
    out = given.out or Path(__file__).parent / "results" / ("master_asr.json" if given.layers == 2 else f"master_asr_{given.layers}.json")
    arms = [arm for arm in arms_of(given.layers) if arm.name == HEAD or not given.arms or arm.name in given.arms]
    with Load() as load:
        shared, first = first_stage(directory, given.layers, given.clips, given.epochs, given.precision)
        assert languages_of_shared(shared) == tuple(sorted(FIRST))
        results = second_stage(arms, shared, directory, given.seeds, given.precision)
    table = summary(results)
    page = text(first, table, given.layers, given.seeds, len(results[HEAD][0]["predictions"]))
    sys.stdout.write(page)
    circumstances = {"command": command(), "machine": machine(), "versions": versions(), "load_of_others": load.others, "precision": given.precision}
    found = {**circumstances, "first": first, "arms": table, "table": page}
    out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
