"""The gate of a variant: as near to torch as its number format can be, every slot alive, every artifact's effect kept."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from polyadapt_onnx.forms.job import Made
from polyadapt_onnx.gate import Arrays, Case, GateReport, Graph, check_swap, moved_slot, null_reason, relative_error
from polyadapt_onnx.variants import Variant
from polyadapt_onnx.variants.errors import VariantError
from polyadapt_onnx.views import View
from polyadapt_runtime.selftest import pooled_error

OWN_ERROR = 3  # how many times torch's own error in half precision
HALF_STEP = 2.0**-10  # relative rounding of half precision: where torch's error is less, this is the least that is asked
MARGIN = 10  # tolerances: by so much torch's best class must lead for another one to be an error


@dataclass
class VariantReport:
    """What was measured of one variant, all graphs together."""

    variant: Variant
    rows: GateReport
    correlations: dict[str, float] = field(default_factory=dict)
    own_error: float | None = None
    answers: int = 0
    other_answers: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For `parity/report.json`."""
        return {**self.summary(), "cases": self.rows.cases, "effects": self.rows.effects}

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        row: dict[str, Any] = {"ok": self.rows.ok, "measure": self.variant.measure, "tolerance": self.rows.tolerance, "error": self.rows.max_error}
        row["effect_correlations"] = self.correlations
        row["answers"] = {"compared": self.answers, "other": self.other_answers}
        return row if self.own_error is None else {**row, "torch_error": self.own_error}

    def require(self) -> None:
        """Raise when anything failed.

        Raises:
            VariantError: naming the first failures.
        """
        failed = [row for row in (*self.rows.effects, *self.rows.cases) if not row["ok"]]
        if failed:
            words = "; ".join(row["message"] for row in failed[:3])
            raise VariantError(f"variant {self.variant.name} did not pass its gate ({len(failed)} checks failed): {words}; nothing was written, export without this variant")


def check_variant(variant: Variant, view: View, plain: Graph, graph: Graph, made: Made, no_effect: Mapping[str, str], report: VariantReport) -> None:
    """Every check of one graph.

    Args:
        variant: what was made.
        view: the graph's module.
        plain: the float32 graph, which has passed its own gate.
        graph: the variant of it.
        made: cases with torch's answers.
        no_effect: globs of groups that the family declares to be null.
        report: takes the findings.
    """
    if graph.overridable != plain.overridable:
        lost = sorted(plain.overridable - graph.overridable)
        report.rows.effects.append({"check": "slots", "ok": False, "message": f"slots are lost: {', '.join(lost[:3])}"})
        return
    cases = [case for case in made.cases if case.graph == view.name]
    found = {case.name: graph.run(case.inputs, case.slots) for case in cases}
    _compare(variant, cases, found, report)
    _check_answers(variant, cases, found, report)
    by_artifact = {case.artifact: case for case in reversed(cases) if case.artifact is None or case.slots}
    base = next(case for case in cases if case.artifact is None)
    check_swap(graph, {None: base, **{name: case for name, case in by_artifact.items() if name is not None}}, report.rows)
    for name in by_artifact:
        if name is not None:
            _check_effect(variant, plain, graph, name, [case for case in cases if case.artifact == name], report)
    _check_slots(graph, [case for case in cases if case.artifact is None and case.slots], no_effect, report)


def limit_of(variant: Variant, view: View, made: Made) -> tuple[float, float | None]:
    """(tolerance, torch's own error): half precision has to be as good as torch's own, where torch can run it here."""
    base = next(case for case in made.cases if case.graph == view.name)
    if variant.name != "float16" or base.slots:
        return variant.tolerance, None
    own = _own_error(view, base)
    return (variant.tolerance, None) if own is None else (min(variant.tolerance, max(OWN_ERROR * own, HALF_STEP)), own)


def _own_error(view: View, case: Case) -> float | None:
    """torch's error on the base when weights and inputs are half; None where it has no such kernel, or no finite answer."""
    half = copy.deepcopy(view.inner).half()
    inputs = {name: torch.from_numpy(value) for name, value in case.inputs.items()}
    try:
        outputs = half(**{name: value.half() if value.is_floating_point() else value for name, value in inputs.items()})
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return None
    errors = [relative_error(outputs[name].float().numpy(), expected) for name, expected in case.expected.items()]
    return max(errors) if np.isfinite(errors).all() else None


def _compare(variant: Variant, cases: Sequence[Case], found: Mapping[str, Arrays], report: VariantReport) -> None:
    rows = report.rows
    if variant.measure == "max-relative":
        measured = [(case.name, output, relative_error(found[case.name][output], expected)) for case in cases for output, expected in case.expected.items()]
    else:
        measured = [("all", output, pooled_error([(found[case.name][output], case.expected[output]) for case in cases])) for output in cases[0].expected]
    for name, output, error in measured:
        message = f"{name}, output {output}: error {error:.2g} ({variant.measure}), tolerance {rows.tolerance:.2g}"
        rows.cases.append({"name": name, "graph": cases[0].graph, "output": output, "error": error, "tolerance": rows.tolerance, "ok": error <= rows.tolerance, "message": message})


def _check_answers(variant: Variant, cases: Sequence[Case], found: Mapping[str, Arrays], report: VariantReport) -> None:
    """Another best class only where torch's best two are near each other."""
    for case in cases:
        expected = case.expected.get("logits")
        other = found[case.name].get("logits")
        if expected is None or other is None or expected.shape[-1] < 2 or not expected.size or other.shape != expected.shape:
            continue
        ordered = np.sort(expected, axis=-1)
        lead = ordered[..., -1] - ordered[..., -2]
        unit = float(np.abs(expected).max()) if variant.measure == "max-relative" else float(expected.std())
        differs = expected.argmax(-1) != other.argmax(-1)
        worst = float(lead[differs].max(initial=0.0))
        report.answers += differs.size
        report.other_answers += int(differs.sum())
        ok = worst <= MARGIN * variant.tolerance * unit
        if differs.any():
            report.rows.effects.append({"check": "answer", "case": case.name, "ok": ok, "message": f"{case.name}: another answer where torch's leads by {worst:.2g}"})


def _check_effect(variant: Variant, plain: Graph, graph: Graph, name: str, cases: Sequence[Case], report: VariantReport) -> None:
    """What an artifact changes here, beside what it changes in float32."""
    here: list[npt.NDArray[Any]] = []
    there: list[npt.NDArray[Any]] = []
    for case in cases:
        runs = [side.run(case.inputs, slots) for side in (graph, plain) for slots in (case.slots, {})]
        for output in graph.outputs:
            if runs[0][output].shape == runs[1][output].shape:
                here.append((runs[0][output] - runs[1][output]).ravel())
                there.append((runs[2][output] - runs[3][output]).ravel())
    if not here:
        return
    value = correlation(np.concatenate(here), np.concatenate(there))
    report.correlations[name] = min(value, report.correlations.get(name, 1.0))
    message = f"artifact {name}: its effect correlates by {value:.3f} with that in float32, at least {variant.correlation} is asked"
    report.rows.effects.append({"check": "effect", "artifact": name, "correlation": value, "ok": value >= variant.correlation, "message": message})


def correlation(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> float:
    """Cosine of two changes; 0 where one of them is none. No mean is taken off: a change by a constant is a change."""
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first.astype(np.float64) @ second.astype(np.float64)) / lengths if lengths else 0.0


def _check_slots(graph: Graph, cases: Sequence[Case], no_effect: Mapping[str, str], report: VariantReport) -> None:
    """Each slot alone moves some output of some case; what is null in float32 has been proven there."""
    ordered = sorted(cases, key=lambda case: sum(value.size for value in case.inputs.values()))
    before: dict[str, Arrays] = {}
    for name in ordered[0].slots if ordered else ():
        if not ordered[0].slots[name].size or null_reason(name, no_effect):
            continue
        alive = any(_moves(graph, case, name, before) for case in ordered)
        message = f"slot {name} moves {'the output' if alive else 'no output'}"
        report.rows.effects.append({"check": "slot", "slot": name, "ok": alive, "message": message})


def _moves(graph: Graph, case: Case, name: str, before: dict[str, Arrays]) -> bool:
    """Whether some output moves; `before` keeps the answers of cases that were looked at."""
    if case.name not in before:
        before[case.name] = graph.run(case.inputs, case.slots)
    found = graph.run(case.inputs, {**case.slots, name: moved_slot(name, case.slots[name])})
    return any(not np.array_equal(found[output], value, equal_nan=True) for output, value in before[case.name].items())
