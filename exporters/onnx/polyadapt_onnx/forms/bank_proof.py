"""What a bank must do beyond parity: artifacts act, swapping repeats, numbers may stand in any order, rows do not see each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polyadapt_onnx.gate import Arrays, GateReport, Graph, relative_error


@dataclass(frozen=True)
class BankProof:
    """Effect tests of one graph of a bank.

    Attributes:
        graph: the exported graph, with its default bank.
        probe: inputs whose rows are all alike.
        names: artifacts by number, None for the base.
        rows: outputs that have a row for each of the batch.
        report: takes the findings.
    """

    graph: Graph
    probe: Arrays
    names: Sequence[str | None]
    rows: Sequence[str]
    report: GateReport

    def check(self, expected: Sequence[Arrays]) -> None:
        """All tests; `expected` are torch's answers with one artifact on every row, by number."""
        alone = [self._run(np.full(self._batch, number)) for number in range(len(self.names))]
        for number in range(1, len(self.names)):
            self._check_effect(number, alone[0], alone[number], expected[number])
        for number in reversed(range(len(self.names))):
            name, again = self.names[number], self._run(np.full(self._batch, number))
            same = all(np.array_equal(again[output], alone[number][output], equal_nan=True) for output in again)
            self._add("swap", name, same, f"{name or 'base'} after swapping {'repeats bit for bit' if same else 'differs from its first run'}")
        for number, name in enumerate(self.names):
            self._check_places(number, name, alone[number])

    @property
    def _batch(self) -> int:
        return len(next(iter(self.probe.values())))

    def _run(self, ids: np.ndarray) -> Arrays:
        return self.graph.run({**self.probe, "artifact_id": ids.astype(np.int64)}, {})

    def _add(self, check: str, name: str | None, ok: bool, message: str, **measured: float) -> None:
        self.report.effects.append({"check": check, "artifact": name, **measured, "ok": ok, "message": message})

    def _check_effect(self, number: int, plain: Arrays, adapted: Arrays, expected: Arrays) -> None:
        """An artifact changes the output, and the error is small beside the change. Classes that one of two answers lacks are left out."""
        change = max(_distance(adapted[output], plain[output]) for output in self.rows)
        worst = max(_distance(adapted[output][..., : expected[output].shape[-1]], expected[output]) for output in self.rows)
        name = self.names[number]
        message = f"artifact {name}: " + ("changes nothing" if change == 0 else f"error {worst:.2g} beside a change of {change:.2g}")
        self._add("artifact", name, change > 0 and worst <= 0.01 * change, message, change=change)

    def _check_places(self, number: int, name: str | None, alone: Arrays) -> None:
        """One row of an artifact among rows of the others, at every place: the answer is the same.

        Bit for bit beside the uniform batch at the same place (its row runs the same arithmetic), and within the tolerance
        from place to place (a matrix product may sum in another order in its last rows).
        """
        exact, error = True, 0.0
        for place in range(self._batch):
            ids = (np.arange(self._batch) - place + number) % len(self.names)  # the number stands at this place, others beside it
            found = self._run(ids)
            for output in self.rows:
                exact = exact and np.array_equal(found[output][place], alone[output][place], equal_nan=True)
                error = max(error, relative_error(found[output][place], alone[output][0]))
        words = "its rows do not see the others" if exact else "other rows change its rows"
        self._add("rows", name, exact, f"{name or 'base'} among others: {words}")
        self._add("places", name, error <= self.report.tolerance, f"{name or 'base'} at every place of the batch: relative error {error:.2g}", change=error)


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference where both are finite; infinite where shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    both = np.isfinite(found) & np.isfinite(expected)
    return float(np.abs(found[both] - expected[both]).max(initial=0.0))
