"""Entry point of the vision plugin: what it registers. Imports cards only, so that a listing stays light."""

from __future__ import annotations

from collections.abc import Callable

from polyadapt.hookspecs import hookimpl
from polyadapt.methods.card import MethodCard
from polyadapt_vision.prototypes.card import CARD as PROTOTYPES

HOOK_API_RANGE = (1, 1)


@hookimpl
def polyadapt_register_methods(register: Callable[[MethodCard], None]) -> None:
    """Few-shot and class-incremental methods."""
    register(PROTOTYPES)
