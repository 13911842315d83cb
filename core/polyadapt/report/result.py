"""What a run found, as plain data: everything that a report shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from polyadapt.errors import UserError, nearest
from polyadapt.evaluation.evaluation import Evaluation
from polyadapt.evaluation.interval import Comparison
from polyadapt.report.examples import Shown

ROLES = ("arm", "baseline")


@dataclass
class ArmResult:
    """One method, or one honest baseline, on the run's split.

    Attributes:
        name: as the recipe calls it.
        method: id of the method; `frozen base`, `majority` … for baselines without one.
        role: `arm` or `baseline`.
        options: of the method.
        trainable_parameters: values that were trained.
        artifact_bytes: size of the saved artifact.
        seconds: training time.
        curves: name to rows (step, value), for instance `train loss`.
        evaluation: on the test part; None when it was not evaluated.
        train: settings of its training that the recipe gives.
    """

    name: str
    method: str
    role: str = "arm"
    options: Mapping[str, Any] = field(default_factory=dict)
    trainable_parameters: int = 0
    artifact_bytes: int = 0
    seconds: float = 0.0
    curves: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)
    evaluation: Evaluation | Mapping[str, Any] | None = None
    train: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UserError(f"arm {self.name!r}: role {self.role!r} is unknown; known: {', '.join(ROLES)}")

    def to_dict(self, predictions: bool = True) -> dict[str, Any]:
        """As JSON; `predictions` keeps every example's id, truth and answer."""
        row = {name: getattr(self, name) for name in ("name", "method", "role", "trainable_parameters", "artifact_bytes", "seconds")}
        row["options"], row["train"] = dict(self.options), dict(self.train)
        row["curves"] = {name: [[float(step), _number(value)] for step, value in points] for name, points in self.curves.items()}
        row["evaluation"] = _evaluation_dict(self.evaluation, predictions)
        return row


@dataclass
class RunResult:
    """A whole run.

    Attributes:
        title: of the report.
        model: what the model is, in words or as its family.
        reference: that loads it.
        base_id: identity of its weights.
        task: kind of the task.
        base_parameters: values of the base, to which trained ones are compared; 0 when unknown.
        data: `uri`, `options` of its reader, `hash`, and `parts` {name: {n, hash}}; `by` says how it was split.
        arms: methods and baselines.
        comparisons: paired differences.
        bundle: `path`, `parity` {ok, max_relative_error, tolerance} and `latency_ms`, when the run exported one.
        versions: library to version.
        seed: of the run.
        examples: what to show of single examples, made by `polyadapt.report.examples.pick_examples`.
        notes: what a reader must know, one sentence each.
    """

    title: str
    model: str = ""
    reference: str = ""
    base_id: str = ""
    task: str = ""
    base_parameters: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    arms: Sequence[ArmResult] = ()
    comparisons: Sequence[Comparison | Mapping[str, Any]] = ()
    bundle: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    examples: Sequence[Shown] = ()
    notes: Sequence[str] = ()

    def to_dict(self, examples: bool = True) -> dict[str, Any]:
        """As JSON; without `examples`, nothing of the data is left but class names, sizes and hashes."""
        row: dict[str, Any] = {"format": 1}
        for name in ("title", "model", "reference", "base_id", "task", "base_parameters", "seed"):
            row[name] = getattr(self, name)
        row["data"] = dict(self.data)
        row["arms"] = [arm.to_dict(predictions=examples) for arm in self.arms]
        row["comparisons"] = [value.to_dict() if isinstance(value, Comparison) else dict(value) for value in self.comparisons]
        row["bundle"] = None if self.bundle is None else dict(self.bundle)
        row["versions"] = dict(self.versions)
        row["examples"] = [asdict(shown) for shown in self.examples] if examples else []
        row["notes"] = list(self.notes)
        return row

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> RunResult:
        """The inverse of `to_dict`; evaluations and comparisons stay mappings.

        Raises:
            UserError: an unknown key, or a format of another version.
        """
        known = {item.name for item in fields(cls)}
        for key in row:
            if key not in known and key != "format":
                raise UserError(f"a run's result has no entry {key!r}{nearest(key, known)}")
        if row.get("format", 1) != 1:
            raise UserError(f"this result has format {row['format']!r}, expected 1; write it again with this version")
        given = {key: value for key, value in row.items() if key != "format"}
        given["arms"] = [arm if isinstance(arm, ArmResult) else ArmResult(**arm) for arm in row.get("arms", ())]
        given["comparisons"] = [value if isinstance(value, Comparison) else {name: _restored(item, name) for name, item in value.items()} for value in row.get("comparisons", ())]
        given["examples"] = [shown if isinstance(shown, Shown) else Shown(**shown) for shown in row.get("examples", ())]
        return cls(**given)


def _evaluation_dict(evaluation: Evaluation | Mapping[str, Any] | None, predictions: bool) -> dict[str, Any] | None:
    if evaluation is None:
        return None
    if isinstance(evaluation, Evaluation):
        return evaluation.to_dict(predictions)
    return {key: _restored(value, key) for key, value in evaluation.items() if predictions or key != "predictions"}


def _number(value: float | None) -> float:
    """A number as it was before JSON, which has null for what is not finite."""
    return math.nan if value is None else float(value)


def _restored(value: Any, key: str) -> Any:
    if key in ("value", "low", "high", "difference", "wins"):
        return _number(value)
    if isinstance(value, Mapping) and key in ("interval", "others"):
        return {name: {part: _restored(item, part) for part, item in row.items()} if isinstance(row, Mapping) else _restored(row, name) for name, row in value.items()}
    return value
