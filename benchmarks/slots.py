"""Exported slots: what they cost beside a merged graph, what the runtime adds to onnxruntime, what a switch takes; and banks.

A BERT encoder with 6 layers of width 384 and random weights; LoRA of rank 8 on q, v, o and both FFN projections (60
slot tensors, 1.2 MB). Graphs are compared through onnxruntime alone with slots as OrtValues; the runtime's call is
compared with the bare `session.run` on the same graph, the same inputs and the same slots as numpy arrays. A bank holds the
base and two artifacts, and neighbouring rows have different ones; beside it stands one call of the slots graph for each row.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from measuring import Load, Report, Row, Side, Target, arguments_of, in_turns, median_interval, timed

from polyadapt.artifact import Artifact
from polyadapt.families.bert.card import CARD as BERT
from polyadapt.families.bert.model import Bert
from polyadapt.families.shared import enliven
from polyadapt.methods.base import load_method
from polyadapt.methods.lora.card import CARD as LORA
from polyadapt.methods.lora.card import LoraOptions
from polyadapt.model import Model, build_model
from polyadapt.signature import Task
from polyadapt.sources.processors import make_processor
from polyadapt.testing.conformance import non_degenerate
from polyadapt_onnx.exporter import export
from polyadapt_runtime import Bundle

SIZES = ((1, 16), (1, 128), (8, 128))
BANK_TARGETS = {(1, 32): 1.20, (8, 32): 1.15}
SITES = ("attn.q", "attn.v", "attn.o", "ffn.up", "ffn.down")


def encoder() -> Model:
    """Six layers of width 384."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=8192, hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536, max_position_embeddings=256, attn_implementation="sdpa"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = enliven(BertModel(config))
    return build_model(Bert(BERT), backbone, Task("features"), make_processor({"kind": "tensors"}), reference="encoder")


def lora(model: Model, seed: int, sites: tuple[str, ...] = SITES) -> Artifact:
    """An artifact without a zero factor."""
    form = load_method(LORA).build(model, LoraOptions(sites=sites, rank=8), torch.Generator().manual_seed(seed))
    non_degenerate(form)
    return Artifact("lora", model.base_id, model.family.card.id, model.task.kind, tuple(form.lower()))


def session(bundle: Path, threads: int, device: str = "cpu") -> onnxruntime.InferenceSession:
    """The bundle's graph in onnxruntime alone. On a GPU without TF32, as the runtime runs it."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        onnxruntime.preload_dlls()
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"}))
    opened = onnxruntime.InferenceSession(str(bundle / "onnx" / "model.onnx"), options, providers=providers)
    if len(opened.get_providers()) != len(providers):
        raise RuntimeError("onnxruntime did not take its CUDA provider")
    return opened


class Choice:
    """One call in one session for each number of threads."""

    def __init__(self, make: Callable[[int], Callable[[], object]], threads: tuple[int, ...]) -> None:
        self.threads = threads
        self._calls = {count: make(count) for count in threads}
        self._now = threads[0]

    def set_threads(self, count: int) -> None:
        self._now = count

    def __call__(self) -> object:
        return self._calls[self._now]()

    def side(self, name: str, repeats: int) -> Side:
        """A side that calls so often that one run takes some ten milliseconds."""

        def run() -> None:
            for _ in range(repeats):
                self()

        return Side(name, run, self.threads, self.set_threads)


def graph_call(bundle: Path, feeds: Mapping[str, np.ndarray], device: str = "cpu") -> Callable[[int], Callable[[], object]]:
    """onnxruntime alone, everything as OrtValues that lie on the device."""

    def make(count: int) -> Callable[[], object]:
        inner = session(bundle, count, device)
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value, device) for name, value in feeds.items()}
        return lambda: inner.run_with_ort_values(None, values)

    return make


def graph_calls(bundle: Path, several: Sequence[Mapping[str, np.ndarray]]) -> Callable[[int], Callable[[], object]]:
    """The same, several calls one after the other on one session."""

    def make(count: int) -> Callable[[], object]:
        inner = session(bundle, count)
        values = [{name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in feeds.items()} for feeds in several]
        return lambda: [inner.run_with_ort_values(None, feeds) for feeds in values]

    return make


def bare_call(opened: Mapping[int, Bundle], feeds: Mapping[str, np.ndarray]) -> Callable[[int], Callable[[], object]]:
    """`session.run` as everybody writes it, on the runtime's own session: a second one would bring its weights into the processor's cache anew."""
    return lambda count: lambda: opened[count]._session._session.run(None, dict(feeds))


def runtime_call(opened: Mapping[int, Bundle], feeds: Mapping[str, np.ndarray], artifact: str | None) -> Callable[[int], Callable[[], object]]:
    """A call of the runtime."""
    return lambda count: lambda: opened[count].run(feeds, artifact)


def feeds_of(batch: int, tokens: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {"input_ids": generator.integers(1, 8192, (batch, tokens)), "attention_mask": np.ones((batch, tokens), dtype=np.int64)}


def compare_on_one_thread(size: tuple[int, int], bundles: Mapping[str, Path], slots: Mapping[str, np.ndarray], arguments: Any, report: Report) -> None:
    """What slots cost where no second thread hides or adds anything."""
    feeds, repeats = feeds_of(*size), max(1, min(16, 1024 // (size[0] * size[1])))
    calls = {
        "merged": graph_call(bundles["merged"], feeds),
        "base": graph_call(bundles["base"], feeds),
        "active": graph_call(bundles["slots"], {**feeds, **slots}),
        "nothing": graph_call(bundles["slots"], feeds),
    }
    rounds = in_turns([Choice(make, (1,)).side(name, repeats) for name, make in calls.items()], arguments.rounds, arguments.clock)
    report.rows.append(rounds.ratio("active", "merged", f"{size[0]} x {size[1]}: active slots / merged, one thread"))
    report.rows.append(rounds.ratio("nothing", "base", f"{size[0]} x {size[1]}: nothing active / base graph, one thread"))


def compare(size: tuple[int, int], bundles: Mapping[str, Path], slots: Mapping[str, np.ndarray], arguments: Any, report: Report) -> None:
    feeds = feeds_of(*size)
    opened = {count: Bundle(bundles["slots"], device="cpu", threads=count) for count in arguments.threads}
    calls = {
        "merged": graph_call(bundles["merged"], feeds),
        "base": graph_call(bundles["base"], feeds),
        "active": graph_call(bundles["slots"], {**feeds, **slots}),
        "nothing": graph_call(bundles["slots"], feeds),
        "runtime": runtime_call(opened, feeds, "a"),
        "bare": bare_call(opened, {**feeds, **slots}),
        "runtime, base": runtime_call(opened, feeds, None),
        "bare, base": bare_call(opened, feeds),
    }
    repeats = max(1, 1024 // (size[0] * size[1]))
    sides = [Choice(make, arguments.threads).side(name, min(repeats, 16)) for name, make in calls.items()]
    rounds = in_turns(sides, arguments.rounds, arguments.clock)
    label = f"{size[0]} x {size[1]}"
    report.rows += [
        rounds.ratio("active", "merged", f"{label}: active slots / merged", Target(1.08)),
        rounds.ratio("nothing", "base", f"{label}: nothing active / base graph", Target(1.02)),
        rounds.ratio("runtime", "bare", f"{label}: runtime call / session.run, artifact", Target(1.03)),
        rounds.ratio("runtime, base", "bare, base", f"{label}: runtime call / session.run, base", Target(1.03)),
    ]


def compare_bank(size: tuple[int, int], bundles: Mapping[str, Path], artifacts: Mapping[str, Artifact], arguments: Any, report: Report) -> None:
    """A batch whose rows have different artifacts: in one call of a bank, and in a call for each row."""
    feeds = feeds_of(*size)
    ids = (np.arange(size[0]) + 1) % (len(artifacts) + 1)
    slots: list[dict[str, np.ndarray]] = [{}, *({name: value.numpy() for name, value in artifact.slots.items()} for artifact in artifacts.values())]
    rows = [{**{name: value[row : row + 1] for name, value in feeds.items()}, **slots[number]} for row, number in enumerate(ids.tolist())]
    calls = {
        "merged": graph_call(bundles["merged"], feeds),
        "bank": graph_call(bundles["bank"], {**feeds, "artifact_id": ids}),
        "each row": graph_calls(bundles["slots"], rows),
    }
    repeats = max(1, 512 // (size[0] * size[1]))
    sides = [Choice(make, arguments.threads).side(name, repeats) for name, make in calls.items()]
    rounds = in_turns(sides, arguments.rounds, arguments.clock)
    label = f"{size[0]} x {size[1]}"
    report.rows.append(rounds.ratio("bank", "merged", f"{label}: bank / merged", Target(BANK_TARGETS[size])))
    report.rows.append(rounds.ratio("bank", "each row", f"{label}: bank / a call of the slots graph for each row"))


def measure_switch(bundle: Path, arguments: Any, report: Report) -> None:
    """A call with another artifact than the one before, less a call with the same one: medians of ten pairs each."""
    opened, feeds = Bundle(bundle, device="cpu", threads=1), feeds_of(1, 16)
    for name in ("a", "b"):
        opened.run(feeds, name)
    extra, ready = [], []
    for _ in range(arguments.rounds):
        same = statistics.median(timed(lambda: opened.run(feeds, "a"), arguments.clock) for _ in range(10))
        other = statistics.median(timed(lambda name=name: opened.run(feeds, name), arguments.clock) for name in "ba" * 5)  # type: ignore[misc]
        extra.append((other - same) * 1e3)
        ready.append(timed(lambda: opened._store.values("b", 1.0), arguments.clock) * 1e3)
    report.rows.append(Row("switch: extra time of the next call", *median_interval(extra), "ms", Target(1.0)))
    report.rows.append(Row("switch: finding the other slots", *median_interval(ready), "ms", Target(1.0)))
    first = []
    for _ in range(min(arguments.rounds, 10)):
        fresh = Bundle(bundle, device="cpu", threads=1)
        first.append(timed(lambda: fresh._store.values("a", 1.0), arguments.clock) * 1e3)  # noqa: B023
    report.rows.append(Row("first use of an artifact: read and check its file", *median_interval(first), "ms"))


def main() -> int:
    arguments = arguments_of("Slots against a merged graph, the runtime against onnxruntime.", 20)
    report = Report("slots", "Slots of an exported encoder (6 layers, width 384, LoRA rank 8)", is_trial=arguments.is_trial)
    model = encoder()
    artifacts = {"a": lora(model, 1), "b": lora(model, 2)}
    with tempfile.TemporaryDirectory() as folder:
        bundles = {name: Path(folder) / f"{name}.bundle" for name in ("slots", "merged", "bank", "base")}
        export(model, artifacts, bundles["slots"])
        export(model, {"a": artifacts["a"]}, bundles["merged"], form="merged")
        export(model, artifacts, bundles["bank"], form="bank")
        export(model, {}, bundles["base"])
        slots = {name: value.numpy() for name, value in artifacts["a"].slots.items()}
        report.notes.append(f"{len(slots)} slots, {sum(value.nbytes for value in slots.values()) / 1e6:.2f} MB an artifact")
        with Load() as load_of_others:
            for size in SIZES:
                compare(size, bundles, slots, arguments, report)
                compare_on_one_thread(size, bundles, slots, arguments, report)
            for size in BANK_TARGETS:
                compare_bank(size, bundles, artifacts, arguments, report)
            measure_switch(bundles["slots"], arguments, report)
        report.others = load_of_others.others
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
