"""The parity proof, run again here: recorded inputs through this session, compared with the recorded outputs of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyadapt_runtime.errors import ManifestError
from polyadapt_runtime.manifest import PLAIN, Manifest, need, read_json, read_table, tolerance_in
from polyadapt_runtime.session import CPU
from polyadapt_runtime.tensors import read_safetensors

CASES, TENSORS, REPORT = "parity/cases.json", "parity/cases.safetensors", "parity/report.json"
POOLED = "rmse-std"

Run = Callable[[Mapping[str, np.ndarray], str | None, str], dict[str, np.ndarray]]


@dataclass(frozen=True)
class CaseResult:
    """One output of one case, or of `all` cases together where the variant's measure needs that: its error, and whether it is small enough."""

    case: str
    artifact: str | None
    output: str
    error: float
    tolerance: float
    ok: bool


@dataclass(frozen=True)
class SelfTest:
    """All cases of a bundle."""

    ok: bool
    provider: str
    cases: tuple[CaseResult, ...]
    variant: str = PLAIN
    measure: str = "max-relative"

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {**asdict(self), "cases": [asdict(case) for case in self.cases]}


def selftest(root: Path, manifest: Manifest, run: Run, provider: str) -> SelfTest:
    """Run every recorded case.

    Args:
        root: the bundle's folder.
        manifest: of the bundle.
        run: (inputs and explicit slots, artifact, graph) -> outputs.
        provider: what runs.

    Raises:
        ManifestError: the bundle has no cases, or they do not follow the format.
    """
    for path in (CASES, TENSORS):
        if path not in manifest.files:
            raise ManifestError(f"{root} holds no {path}, so there is nothing to compare with; export it again")
    tensors, _ = read_safetensors(root / TENSORS, manifest.files[TENSORS][0])
    tolerances = _tolerances(root, manifest) if manifest.variant == PLAIN else {}
    usual = manifest.tolerance if provider == CPU else max(manifest.tolerance, manifest.format_tolerance)
    results: list[CaseResult] = []
    pooled: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    for case in _cases(root):
        name, artifact = need(case, "name", str, CASES), None if case.get("artifact") is None else need(case, "artifact", str, CASES)
        recorded = {part: _below(tensors, f"{name}/{part}/") for part in ("in", "slot", "out")}
        if not recorded["out"]:
            raise ManifestError(f"{root / TENSORS} holds no outputs for case {name!r}")
        got = run({**recorded["in"], **recorded["slot"]}, artifact, str(case.get("graph", "model")))
        for output, expected in recorded["out"].items():
            pooled.setdefault((str(case.get("graph", "model")), output), []).append((got.get(output, np.empty(0)), expected))
            error, tolerance = relative_error(got.get(output), expected), tolerances.get((name, output), usual)
            results.append(CaseResult(name, artifact, output, error, tolerance, error <= tolerance))
    if manifest.measure == POOLED:
        errors = [(output, pooled_error(pairs)) for (_, output), pairs in pooled.items()]
        results = [CaseResult("all", None, output, error, usual, error <= usual) for output, error in errors]
    return SelfTest(bool(results) and all(result.ok for result in results), provider, tuple(results), manifest.variant, manifest.measure)


def pooled_error(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """Root of the mean squared difference over the deviation of what is expected, all cases of an output together; infinite where shapes, infinities or not-a-numbers differ."""
    differences, values = [np.empty(0)], [np.empty(0)]
    for found, expected in pairs:
        finite = np.isfinite(expected)
        if found.shape != expected.shape or not np.array_equal(found[~finite], expected[~finite], equal_nan=True):
            return float("inf")
        differences.append(found[finite].astype(np.float64) - expected[finite])
        values.append(expected[finite].astype(np.float64))
    difference, value = np.concatenate(differences), np.concatenate(values)
    error, deviation = (float(np.sqrt(np.mean(difference**2))), float(np.std(value))) if value.size else (0.0, 0.0)
    if not math.isfinite(error):
        return float("inf")
    return error / deviation if deviation else (0.0 if error == 0.0 else float("inf"))


def relative_error(found: np.ndarray | None, expected: np.ndarray) -> float:
    """max|found - expected| / max|expected|; infinite where shapes or not-a-numbers differ."""
    if found is None or found.shape != expected.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(found[~finite], expected[~finite], equal_nan=True) or not np.isfinite(found[finite]).all():
        return float("inf")
    difference = float(np.abs(found[finite] - expected[finite]).max(initial=0.0))
    largest = float(np.abs(expected[finite]).max(initial=0.0))
    return difference / largest if largest else (0.0 if difference == 0.0 else float("inf"))


def _cases(root: Path) -> list[dict[str, Any]]:
    listed = read_json(root / CASES)
    cases = listed.get("cases") if isinstance(listed, dict) else listed
    if not isinstance(cases, list) or not all(isinstance(case, dict) for case in cases):
        raise ManifestError(f"{root / CASES} must hold a list of tables with name and artifact; export the bundle again")
    return cases


def _below(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _tolerances(root: Path, manifest: Manifest) -> dict[tuple[str, str], float]:
    """Tolerances that the export recorded for single outputs."""
    if REPORT not in manifest.files:
        return {}
    cases = need(read_table(root / REPORT), "cases", list, REPORT)
    return {(str(case.get("name")), str(case.get("output"))): tolerance_in(case, REPORT) for case in cases if isinstance(case, dict)}
