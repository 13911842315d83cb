"""Sessions: which classes arrive when, with which examples, and how well all that were seen are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from polyadapt.data.dataset import Dataset
from polyadapt.errors import UserError, nearest
from polyadapt_vision.prototypes.card import PrototypesOptions


def session_classes(labels: Sequence[str], options: PrototypesOptions) -> list[tuple[str, ...]]:
    """Classes of each session in the order in which they arrive; the first session holds the base classes.

    Raises:
        UserError: a class that the data does not have, has not been named or is named twice, or too few classes.
    """
    order = options.classes or tuple(labels)
    for label in order:
        if label not in labels:
            raise UserError(f"prototypes: classes names {label!r}, which the data does not have{nearest(label, labels)}")
    if len(set(order)) != len(order):
        raise UserError("prototypes: classes names a class twice; name each once")
    if missing := [label for label in labels if label not in order]:
        raise UserError(f"prototypes: classes leaves out {', '.join(missing[:5])}; name all {len(labels)} classes of the data in their order, or none")
    if not options.base_classes and (given := [name for name in ("shots", "ways") if getattr(options, name)]):
        raise UserError(f"prototypes: {given[0]} is of classes that arrive later, and base_classes = 0 takes all at once; give base_classes, or leave out {given[0]}")
    if options.base_classes > len(order):
        raise UserError(f"prototypes: base_classes is {options.base_classes}, the data has {len(order)} classes; lower it, or set it to 0 for all")
    base = options.base_classes or len(order)
    rest = order[base:]
    ways = options.ways or max(1, len(rest))
    return [order[:base], *(rest[start : start + ways] for start in range(0, len(rest), ways))]


def rows_by_class(dataset: Dataset, sessions: Sequence[Sequence[str]], shots: int) -> dict[str, list[int]]:
    """Rows of the training part from which each class is learnt: all for base classes, the first `shots` for later ones.

    Raises:
        UserError: a class has fewer examples than asked.
    """
    rows: dict[str, list[int]] = {label: [] for session in sessions for label in session}
    for row, example in enumerate(dataset):
        rows[str(example.label)].append(row)
    for label in (label for session in sessions[1:] for label in session):
        if shots and len(rows[label]) < shots:
            raise UserError(f"prototypes: class {label!r} has {len(rows[label])} training examples, {shots} shots were asked; lower shots, or give the training part more of it")
        rows[label] = rows[label][: shots or None]
    if empty := [label for label, found in rows.items() if not found]:
        raise UserError(f"prototypes: class {empty[0]!r} has no training example; add some")
    return rows


def prototype(features: torch.Tensor, average: str) -> torch.Tensor:
    """The direction of a class: [examples, d] -> [d], of length 1.

    Raises:
        UserError: the mean has no direction.
    """
    mean = (F.normalize(features, dim=1) if average == "directions" else features).mean(0)  # (d,)
    if not bool(torch.isfinite(mean).all()) or float(mean.norm()) < 1e-6:
        raise UserError("prototypes: the features of a class have no common direction; look at its examples, or take another encoder")
    return F.normalize(mean, dim=0)


@dataclass(frozen=True)
class SessionResult:
    """After one session, over all classes seen so far; shares of right answers.

    Attributes:
        classes: how many are known by then.
        accuracy: over examples of all of them.
        base: over examples of base classes.
        novel: over examples of later classes; None in the first session.
    """

    session: int
    classes: int
    accuracy: float
    base: float
    novel: float | None

    @property
    def harmonic(self) -> float | None:
        """Harmonic mean of base and novel: low when either is forgotten."""
        if self.novel is None:
            return None
        total = self.base + self.novel
        return 2 * self.base * self.novel / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without what the first session has not."""
        row = {"session": self.session, "classes": self.classes, "accuracy": self.accuracy, "base": self.base, "novel": self.novel, "harmonic": self.harmonic}
        return {name: value for name, value in row.items() if value is not None}


def measure(session: int, prototypes: torch.Tensor, base: int, features: torch.Tensor, targets: torch.Tensor) -> SessionResult:
    """Tell the examples of all seen classes apart by the nearest prototype.

    Args:
        session: its number, from 0.
        prototypes: directions of the classes seen so far, [d, seen].
        base: how many of them, the first ones, are base classes.
        features: of the measured examples, [n, d].
        targets: their classes as numbers in order of arrival, [n]; those of classes not seen yet are left out.
    """
    seen = prototypes.shape[1]
    here = targets < seen
    answers = (F.normalize(features[here], dim=1) @ prototypes).argmax(1)  # (n',)
    right, is_base = (answers == targets[here]).double(), targets[here] < base
    novel = float(right[~is_base].mean()) if seen > base else None
    return SessionResult(session, seen, float(right.mean()), float(right[is_base].mean()), novel)


def summary(results: Sequence[SessionResult]) -> dict[str, float]:
    """The last session's figures, the average over sessions, and what the first session lost until the last (PD)."""
    last = {name: value for name, value in results[-1].to_dict().items() if name not in ("session", "classes")}
    if len(results) == 1:
        return last
    accuracies = [result.accuracy for result in results]
    return {**last, "average": sum(accuracies) / len(accuracies), "performance_drop": accuracies[0] - accuracies[-1]}
