"""What this plugin registers. It imports the standard library, pydantic and `polyadapt` cards only."""

from __future__ import annotations

from collections.abc import Callable

from polyadapt.families.card import FamilyCard
from polyadapt.hookspecs import hookimpl
from polyadapt.methods.card import MethodCard
from polyadapt.sources.card import ModelCard

from polyadapt_demo.cards import FAMILY, METHOD, MODEL

HOOK_API_RANGE = (1, 1)


@hookimpl
def polyadapt_register_methods(register: Callable[[MethodCard], None]) -> None:
    """One method."""
    register(METHOD)


@hookimpl
def polyadapt_register_families(register: Callable[[FamilyCard], None]) -> None:
    """The family of the model."""
    register(FAMILY)


@hookimpl
def polyadapt_register_models(register: Callable[[ModelCard], None]) -> None:
    """One model reference."""
    register(MODEL)
