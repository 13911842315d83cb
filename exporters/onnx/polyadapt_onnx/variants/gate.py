"""The gate of a variant: as near to torch as its number format can be, every slot alive, every artifact's effect kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from polyadapt.edits import Edit
from polyadapt_onnx.forms.bank import ARTIFACT_ID as NUMBERS
from polyadapt_onnx.forms.job import Job, Made, attached
from polyadapt_onnx.gate import Arrays, Case, GateReport, Graph, check_swap, expected_outputs, moved_slot, null_reason, relative_error
from polyadapt_onnx.variants import Variant
from polyadapt_onnx.variants.errors import VariantError
from polyadapt_onnx.views import View
from polyadapt_runtime.selftest import pooled_error

ARTIFACT_ID = NUMBERS.name
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
    answers: dict[str, tuple[int, int]] = field(default_factory=dict)  # by case: how many were compared, and how many were other ones

    def to_dict(self) -> dict[str, Any]:
        """For `parity/report.json`."""
        return {**self.summary(), "cases": self.rows.cases, "effects": self.rows.effects}

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        row: dict[str, Any] = {"ok": self.rows.ok, "measure": self.variant.measure, "tolerance": self.rows.tolerance, "error": self.rows.max_error}
        row["format_tolerance"] = self.variant.tolerance
        row["effect_correlations"] = self.correlations
        row["answers"] = {"compared": sum(compared for compared, _ in self.answers.values()), "other": sum(other for _, other in self.answers.values())}
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


def check_variant(
    variant: Variant, view: View, plain: Graph, graph: Graph, made: Made, no_effect: Mapping[str, str], report: VariantReport, tolerance: float | None = None
) -> None:
    """Every check of one graph.

    Args:
        variant: what was made.
        view: the graph's module.
        plain: the float32 graph, which has passed its own gate.
        graph: the variant of it.
        made: cases with torch's answers.
        no_effect: globs of groups that the family declares to be null.
        report: takes the findings.
        tolerance: of this graph; None takes the report's.
    """
    if graph.overridable != plain.overridable:
        lost = sorted(plain.overridable - graph.overridable)
        report.rows.effects.append({"check": "slots", "ok": False, "message": f"slots are lost: {', '.join(lost[:3])}"})
        return
    cases = [case for case in made.cases if case.graph == view.name]
    found = {case.name: graph.run(case.inputs, case.slots) for case in cases}
    _compare(variant, cases, found, report, report.rows.tolerance if tolerance is None else tolerance)
    _check_answers(variant, cases, found, report)
    swapped = numbered_cases(cases, made.numbered) or cases
    by_artifact = {case.artifact: case for case in reversed(swapped) if case.artifact is None or case.slots}
    base = next(case for case in swapped if case.artifact is None)
    check_swap(graph, {None: base, **{name: case for name, case in by_artifact.items() if name is not None}}, report.rows)
    for name in by_artifact:
        if name is not None:
            _check_effect(variant, plain, graph, name, [case for case in swapped if case.artifact == name], report)
    _check_slots(graph, [case for case in cases if case.artifact is None and case.slots], no_effect, report)


def numbered_cases(cases: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """Cases of a bank as those of slots: rows of the base, and the number of each artifact for all rows as what is fed beside them. One for each size."""
    found = []
    for case in {tuple(case.sizes.items()): case for case in cases if ARTIFACT_ID in case.inputs and not case.slots}.values():
        zeros = np.zeros_like(case.inputs[ARTIFACT_ID])
        plain = replace(case, inputs={**case.inputs, ARTIFACT_ID: zeros})
        found += [plain, *(replace(plain, artifact=name, slots={ARTIFACT_ID: zeros + number}) for number, name in enumerate(names, 1))]
    return found


def limit_of(variant: Variant, job: Job, view: View, made: Made) -> tuple[float, float | None]:
    """(tolerance of one graph, torch's own error): half precision has to be as good as torch's own, where torch can run it here."""
    case = next(case for case in made.cases if case.graph == view.name)
    if variant.name != "float16" or case.slots:
        return variant.tolerance, None
    own = _own_error(job, view, case, made.baked)
    return (variant.tolerance, None) if own is None else (min(variant.tolerance, max(OWN_ERROR * own, HALF_STEP)), own)


def _own_error(job: Job, view: View, case: Case, edits: Sequence[Edit]) -> float | None:
    """torch's error, with what is baked into the graph, when weights and inputs are half; None where it has no such kernel, or no finite answer.

    Rows of a bank are those of the base here: their artifacts act on top of it.
    """
    inputs = {name: torch.from_numpy(value) for name, value in case.inputs.items() if name != ARTIFACT_ID}
    with attached(job.model, edits):
        expected = expected_outputs(lambda: view.inner(**inputs), view.outputs)
        held = {**dict(view.inner.named_parameters()), **dict(view.inner.named_buffers())}
        try:
            outputs = torch.func.functional_call(view.inner, halved(held), (), halved(inputs))
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            return None
    errors = [relative_error(outputs[name].float().numpy(), value) for name, value in expected.items()]
    return max(errors) if np.isfinite(errors).all() else None


def halved(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is floating, in half precision."""
    return {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}


def _compare(variant: Variant, cases: Sequence[Case], found: Mapping[str, Arrays], report: VariantReport, tolerance: float) -> None:
    if variant.measure == "max-relative":
        measured = [(case.name, output, relative_error(found[case.name][output], expected)) for case in cases for output, expected in case.expected.items()]
    else:
        measured = [("all", output, pooled_error([(found[case.name][output], case.expected[output]) for case in cases])) for output in cases[0].expected]
    for name, output, error in measured:
        message = f"{name}, output {output}: error {error:.2g} ({variant.measure}), tolerance {tolerance:.2g}"
        report.rows.cases.append({"name": name, "graph": cases[0].graph, "output": output, "error": error, "tolerance": tolerance, "ok": error <= tolerance, "message": message})


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
        report.answers[case.name] = (differs.size, int(differs.sum()))
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
                finite = np.all([np.isfinite(run[output]) for run in runs], axis=0)  # classes that a row of a bank does not have are minus infinity
                here.append(runs[0][output][finite] - runs[1][output][finite])
                there.append(runs[2][output][finite] - runs[3][output][finite])
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
