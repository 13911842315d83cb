"""The contract is honest: every hook is documented, the argument list is what the docstring says, and it is in one file."""

from __future__ import annotations

import inspect

import pytest

from polyadapt import hookspecs
from polyadapt.host.checks import known_hooks

ARGUMENTS = {
    "polyadapt_register_models": ("register",),
    "polyadapt_register_families": ("register",),
    "polyadapt_register_methods": ("register",),
    "polyadapt_register_data": ("register",),
    "polyadapt_register_commands": ("cli",),
    "polyadapt_load_model": ("reference", "options"),
    "polyadapt_adapt": ("model", "method", "data", "options"),
    "polyadapt_infer": ("model", "inputs", "artifact", "options"),
    "polyadapt_export": ("model", "artifacts", "target", "directory", "options"),
    "polyadapt_event": ("event",),
}


def test_the_hooks_are_these_and_no_others() -> None:
    assert known_hooks() == ARGUMENTS


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_hook_says_when_it_is_called_what_it_gets_and_since_when(name: str) -> None:
    text = inspect.getdoc(getattr(hookspecs, name)) or ""
    assert "Called " in text and "Returns:" in text and "Since:" in text
    described = text.partition("Args:")[2].partition("Returns:")[0]
    for argument in ARGUMENTS[name]:
        assert f"{argument}:" in described
