"""The gate: a graph is kept only when it agrees with torch and when every slot does something.

Parity is measured at other sizes than the traced ones, relative to max|reference|. Effects are measured
at a seeded state without zero factors, because an absolute tolerance alone passes with a dead adapter.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from polyadapt.errors import ExportError

Arrays = dict[str, npt.NDArray[Any]]

# Of the tolerance: what is less than this is rounding and no effect. Measured over all families' tiny networks:
# nulls up to 4.4e-7, effects from 4.1e-4, tolerance 1e-5.
EFFECT_FLOOR = 0.3


@dataclass(frozen=True)
class Case:
    """One recorded comparison by one of the bundle's graphs. `slots` are fed beside the inputs; `artifact` names where they come from.

    `absent` are outputs in which minus infinity says that a row has no such class; anywhere else torch's answer is finite.
    """

    name: str
    artifact: str | None
    sizes: Mapping[str, int]
    inputs: Arrays
    slots: Arrays
    expected: Arrays
    graph: str = "model"
    absent: tuple[str, ...] = ()


@dataclass
class GateReport:
    """What was measured; `ok` decides whether the bundle is kept."""

    tolerance: float
    cause: str = ""
    cases: list[dict[str, Any]] = field(default_factory=list)
    effects: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return all(row["ok"] for row in (*self.cases, *self.effects))

    @property
    def max_error(self) -> float:
        return max((row["error"] for row in self.cases), default=0.0)

    def summary(self) -> dict[str, Any]:
        """The manifest's `parity`."""
        return {"ok": self.ok, "max_relative_error": self.max_error, "tolerance": self.tolerance, "cause": self.cause}

    def to_dict(self) -> dict[str, Any]:
        return {**self.summary(), "cases": self.cases, "effects": self.effects}

    def require(self) -> None:
        """Raise when anything failed.

        Raises:
            ExportError: naming the first failures.
        """
        failed = [row for row in (*self.cases, *self.effects) if not row["ok"]]
        if failed:
            words = "; ".join(row["message"] for row in failed[:3])
            raise ExportError(f"the exported graph did not pass the gate ({len(failed)} of {len(self.cases) + len(self.effects)} checks failed): {words}; nothing was written")


class Graph:
    """An onnxruntime session on the CPU, one thread, so that repeats are comparable bit for bit."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ExportError(f"onnxruntime refuses the exported graph: {error}") from error
        self.outputs = [value.name for value in self._session.get_outputs()]
        self.overridable = {value.name for value in self._session.get_overridable_initializers()}

    def run(self, inputs: Arrays, slots: Arrays) -> Arrays:
        try:
            values = self._session.run(self.outputs, {**inputs, **slots})
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise ExportError(f"the exported graph fails at run time: {reason}") from error
        return dict(zip(self.outputs, values, strict=True))


def relative_error(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """max|found - expected| / max|expected|, over finite values; infinite where shapes or what is not finite differ."""
    finite = np.isfinite(expected)
    if found.shape != expected.shape or not np.isfinite(found[finite]).all() or not np.array_equal(found[~finite], expected[~finite], equal_nan=True):
        return float("inf")
    scale = float(np.abs(expected[finite]).max(initial=0.0))
    return float(np.abs(found[finite] - expected[finite]).max(initial=0.0)) / max(scale, 1e-30)


def check_parity(graph: Graph, cases: Sequence[Case], report: GateReport, tolerance: float) -> None:
    """Compare every output of every case with torch, within the tolerance of this graph. Equal not-a-numbers would agree, and are no answer."""
    for case in cases:
        found = graph.run(case.inputs, case.slots)
        for output, expected in case.expected.items():
            error = relative_error(found[output], expected)
            is_number = bool((np.isfinite(expected) | ((expected == -np.inf) & (output in case.absent))).all())
            ok = error <= tolerance and is_number
            where = f"{case.name}, output {output}, sizes {dict(case.sizes)}"
            message = f"{where}: relative error {error:.2g}, tolerance {tolerance:.0e}" + ("" if is_number else "; torch's own answer holds numbers that are not finite")
            report.cases.append(
                {
                    "name": case.name,
                    "graph": case.graph,
                    "artifact": case.artifact,
                    "sizes": dict(case.sizes),
                    "output": output,
                    "error": error,
                    "tolerance": tolerance,
                    "ok": ok,
                    "message": message,
                }
            )


def check_swap(graph: Graph, case_by_artifact: Mapping[str | None, Case], report: GateReport) -> None:
    """Base and artifacts in turn, there and back: every answer repeats bit for bit."""
    order = [*case_by_artifact, *reversed(list(case_by_artifact))]
    inputs = next(iter(case_by_artifact.values())).inputs
    first: dict[str | None, Arrays] = {}
    for name in order:
        found = graph.run(inputs, case_by_artifact[name].slots)
        if name not in first:
            first[name] = found
            continue
        same = all(np.array_equal(found[output], first[name][output], equal_nan=True) for output in found)
        report.effects.append(
            {"check": "swap", "artifact": name, "ok": same, "message": f"{name or 'base'} after swapping {'repeats bit for bit' if same else 'differs from its first run'}"}
        )


def check_artifact_effect(graph: Graph, base: Case, case: Case, report: GateReport) -> None:
    """An artifact must change the output, and the error must be small beside the change."""
    plain, adapted = graph.run(case.inputs, {}), graph.run(case.inputs, case.slots)
    change = max(_change(adapted[output], plain[output]) for output in adapted)
    worst = max(float(np.max(np.abs(adapted[output] - expected), initial=0.0)) for output, expected in case.expected.items() if adapted[output].shape == expected.shape)
    same_shape = [output for output in adapted if adapted[output].shape == plain[output].shape]
    largest = max((float(np.max(np.abs(adapted[output] - plain[output]), initial=0.0)) for output in same_shape), default=float("inf"))
    alive = change > 0
    small = len(same_shape) < len(adapted) or worst <= 0.01 * largest
    message = f"artifact {case.artifact or case.name}: " + ("changes nothing" if not alive else f"error {worst:.2g} beside a change of {largest:.2g}")
    report.effects.append({"check": "artifact", "artifact": case.artifact, "change": change, "ok": alive and small, "message": message})


def check_slot_effects(graph: Graph, cases: Sequence[Case], no_effect: Mapping[str, str], report: GateReport, silent: Arrays | None = None) -> None:
    """Perturb each slot alone, at a state without zero factors; declared nulls must stay null.

    A unit may sleep behind its activation for one input, so a slot that moves nothing is tried with the other cases
    too: one that reaches nothing moves nothing at any of them.

    Args:
        graph: the exported graph.
        cases: the same slots with inputs of different sizes.
        no_effect: globs of `site:kind` that the family declares to be null, with the reason.
        report: takes the findings.
        silent: slots that make the graph the base, where its defaults do not.
    """
    # Small cases are cheap. Cached keys of an example come from the bare base, so nulls are asserted where the cache is empty.
    ordered = sorted(cases, key=lambda case: (case.sizes.get("past", 0), sum(value.size for value in case.inputs.values())))
    plain: dict[str, Arrays] = {}
    for name, value in cases[0].slots.items():
        if not value.size:
            continue
        reason = null_reason(name, no_effect)
        change, floor = 0.0, (10 if reason else EFFECT_FLOOR) * report.tolerance
        for case in ordered[:1] if reason else ordered:
            if not reason and case.name not in plain:
                plain[case.name] = graph.run(case.inputs, case.slots)
            change = max(change, _null_change(graph, case, name, silent or {}) if reason else _change_by(graph, case, name, case.slots, plain[case.name]))
            if change > floor:
                break
        ok = (change > floor) != bool(reason)
        failure = f"declared without effect ({reason}) but moves the output by {change:.2g}" if reason else f"moves no output beyond rounding (relative change {change:.2g})"
        message = f"slot {name}: {f'relative change {change:.2g}' if ok else failure}"
        report.effects.append({"check": "slot", "slot": name, "change": change, "declared_null": reason, "ok": ok, "message": message})


def _null_change(graph: Graph, case: Case, name: str, silent: Arrays) -> float:
    """The change of the answer when a declared null moves, its own group fed alone.

    What is exact for the bare network (softmax does not see a shift of all its scores) no longer holds beside,
    say, a prefix; and a shifted key is still seen in the cache that a graph hands out behind its answer.
    """
    group = name.rpartition(".")[0]
    state = {**silent, **{other: fed for other, fed in case.slots.items() if other.rpartition(".")[0] == group}}
    before = graph.run(case.inputs, state)
    return _change_by(graph, case, name, state, {graph.outputs[0]: before[graph.outputs[0]]})


def _change_by(graph: Graph, case: Case, name: str, state: Arrays, before: Arrays) -> float:
    """Largest relative change of the watched outputs `before` when one slot of `state` moves."""
    found = graph.run(case.inputs, {**state, name: moved_slot(name, state[name])})
    return max(_change(found[output], reference) for output, reference in before.items())


def null_reason(name: str, no_effect: Mapping[str, str]) -> str:
    """The reason for which a family declares a slot to be without effect; empty where it does not."""
    group = name.rpartition(".")[0]
    return next((why for glob, why in no_effect.items() if fnmatch.fnmatchcase(group, glob)), "")


def moved_slot(name: str, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A slot's tensor moved by seeded noise of its own size; a switch the other way, and lengths to zero."""
    if value.dtype.kind == "i":
        return np.zeros_like(value)
    if name.endswith(":prototypes.cosine"):
        return np.asarray(1.0 - value, value.dtype)
    noise = np.random.default_rng(0).standard_normal(value.shape).astype(value.dtype)
    return np.asarray(value + noise * max(float(np.std(value[np.isfinite(value)])), 0.1), value.dtype)


def numpy_of(tensors: Mapping[str, torch.Tensor]) -> Arrays:
    """Tensors as contiguous arrays."""
    return {name: np.ascontiguousarray(value.detach().cpu().numpy()) for name, value in tensors.items()}


def expected_outputs(run: Callable[[], Mapping[str, torch.Tensor]], names: Sequence[str]) -> Arrays:
    """torch's answers for the named outputs."""
    with torch.no_grad():
        outputs = run()
    return numpy_of({name: outputs[name] for name in names})


def _change(found: npt.NDArray[Any], reference: npt.NDArray[Any]) -> float:
    return 1.0 if found.shape != reference.shape else relative_error(found, reference)
