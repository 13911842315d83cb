"""Percentile bootstrap: intervals of a metric, and of the difference of two models on the same examples.

Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 (percentile interval) and 16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from polyadapt.errors import UserError

LEVEL = 0.95
DRAWS = 2000
_CHUNK_VALUES = 4_000_000


@dataclass(frozen=True)
class Interval:
    """The middle `level` of the resampled values."""

    low: float
    high: float
    level: float = LEVEL

    def to_dict(self) -> dict[str, float]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Difference of two models on the same examples: `first` minus `second`.

    `wins` is the share of resamplings in which the first is the better one; ties count half. `is_clear` says that
    the interval leaves out zero. It is one comparison: among many, some are clear by chance.
    """

    first: str
    second: str
    metric: str
    difference: float
    interval: Interval
    wins: float
    n: int

    @property
    def is_clear(self) -> bool:
        return self.interval.low > 0 or self.interval.high < 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "is_clear": self.is_clear}


def bootstrap(statistics: np.ndarray, value: Callable[[np.ndarray], np.ndarray], generator: np.random.Generator, draws: int = DRAWS, level: float = LEVEL) -> Interval:
    """Interval of a metric.

    Args:
        statistics: one row per example, float64 [n, k].
        value: sums [..., k] to the metric's values [...].
        generator: the only source of randomness.
        draws: how many resamplings.
        level: share of the resampled values inside.
    """
    values = _resampled(statistics, value, generator, draws)  # (draws,)
    return _middle(values, level)


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    value: Callable[[np.ndarray], np.ndarray],
    generator: np.random.Generator,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> tuple[Interval, np.ndarray]:
    """Interval of the difference `first - second` when both are drawn with the same examples each time.

    Shape:
        first and second [n, k], rows in the same order; the differences that are returned beside the interval [draws].

    Raises:
        UserError: the two have different numbers of examples.
    """
    if first.shape != second.shape:
        raise UserError(f"a paired comparison needs the same examples on both sides, found {first.shape[0]} and {second.shape[0]}")
    width = first.shape[1]

    def difference(sums: np.ndarray) -> np.ndarray:
        return np.asarray(value(sums[..., :width]) - value(sums[..., width:]))

    values = _resampled(np.concatenate([first, second], axis=1), difference, generator, draws)
    return _middle(values, level), values


def _resampled(statistics: np.ndarray, value: Callable[[np.ndarray], np.ndarray], generator: np.random.Generator, draws: int) -> np.ndarray:
    """The metric of `draws` resamplings of n examples with replacement. A resampling is how often each example is in it."""
    n = len(statistics)
    if n == 0:
        raise UserError("no examples to resample; evaluate on at least one")
    if draws < 1:
        raise UserError(f"draws is {draws}; at least one resampling is needed")
    shares = np.full(n, 1.0 / n)
    chunk = max(1, _CHUNK_VALUES // n)
    values = []
    for start in range(0, draws, chunk):
        counts = generator.multinomial(n, shares, size=min(chunk, draws - start))  # (chunk, n)
        with np.errstate(invalid="ignore"):  # an example of infinite loss that is drawn 0 times makes not-a-number, which is what the interval then says
            values.append(value(counts @ statistics))  # (chunk,)
    return np.concatenate(values)


def _middle(values: np.ndarray, level: float) -> Interval:
    if not 0 < level < 1:
        raise UserError(f"the level of an interval is {level}; expected a number between 0 and 1, such as 0.95")
    with np.errstate(invalid="ignore"):  # between two infinite values
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level)
