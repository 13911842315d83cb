"""`POLYADAPT_TRACE=1`: every hook call on standard error, with its arguments, result and time."""

from __future__ import annotations

import sys
import time
from typing import Any

import pluggy

LONGEST = 60


def attach_trace(manager: pluggy.PluginManager) -> None:
    """Print each call before and after it runs."""
    started: list[float] = []

    def before(name: str, implementations: Any, arguments: Any) -> None:
        started.append(time.perf_counter())
        shown = ", ".join(f"{key}={_short(value)}" for key, value in arguments.items())
        owners = ", ".join(map(_name, implementations)) or "nobody"
        sys.stderr.write(f"polyadapt trace: {name}({shown}) -> {owners}\n")

    def after(outcome: Any, name: str, implementations: Any, arguments: Any) -> None:
        elapsed_s = time.perf_counter() - started.pop()
        end = f"raised {outcome.exception!r}" if outcome.exception is not None else f"= {_short(outcome.get_result())}"
        sys.stderr.write(f"polyadapt trace: {name} {end} ({elapsed_s:.3f} s)\n")

    manager.add_hookcall_monitoring(before, after)


def _name(implementation: pluggy.HookImpl) -> str:
    """The plugin of an implementation; one that was given along with the call has none, and is told by its module."""
    return implementation.plugin_name if implementation.plugin is not None else str(implementation.function.__module__)


def _short(value: Any) -> str:
    """A value in one short word: arrays and models by their type, texts cut."""
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None), dict, list, tuple)) else f"<{type(value).__name__}>"
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
