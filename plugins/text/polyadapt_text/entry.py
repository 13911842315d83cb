"""Entry point of the text plugin: what it registers. Imports cards only, so that a listing stays light."""

from __future__ import annotations

from collections.abc import Callable

from polyadapt.hookspecs import hookimpl
from polyadapt.methods.card import MethodCard
from polyadapt_text.norm_tuning.card import CARD as NORM_TUNING

HOOK_API_RANGE = (1, 1)


@hookimpl
def polyadapt_register_methods(register: Callable[[MethodCard], None]) -> None:
    """Tuning of language models and encoders."""
    register(NORM_TUNING)
