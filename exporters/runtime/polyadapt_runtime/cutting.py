"""Inputs that a limit cuts: what is left out is told of, and a data set of them does not drown everything else."""

from __future__ import annotations

import logging
import math

TOLD_AT_MOST = 3  # inputs that one limit cut, each with a warning of its own

_log = logging.getLogger(__name__)
_TOLD: dict[tuple[str, float], int] = {}


def tell_cut(name: str, setting: str, limit: float, remedy: str) -> None:
    """A warning for the first inputs that a limit cuts; a data set may have a thousand of them, and the others go into the log.

    Args:
        name: of the input.
        setting: whose limit it is.
        limit: its value.
        remedy: what to do.
    """
    told = _TOLD[setting, limit] = _TOLD.get((setting, limit), 0) + 1
    level = logging.WARNING if told <= TOLD_AT_MOST or math.log10(told).is_integer() else logging.INFO
    further = f" ({told} so far; of further ones the 10th, the 100th and so on are told of)" if told >= TOLD_AT_MOST else ""
    _log.log(level, "%s was cut to %s = %g; %s%s", name, setting, limit, remedy, further)
