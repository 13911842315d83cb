"""Errors. Every message says what was asked, what was found and what to do.

`UserError` is the user's input (exit code 1); `PluginError` is a plugin's fault (exit code 2).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PolyadaptError(Exception):
    """Base of everything this project raises on purpose."""

    exit_code = 1


class UserError(PolyadaptError):
    """The user's input cannot be used as it stands."""


class MissingExtraError(UserError):
    """A library that an optional part needs is not installed."""

    def __init__(self, library: str, extra: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs {library}, which is not installed; run: pip install 'polyadapt[{extra}]'")


class PluginError(PolyadaptError):
    """A plugin failed, or two plugins contradict each other."""

    exit_code = 2


class ExportError(PolyadaptError):
    """An exported graph did not pass the gate; nothing was kept."""

    exit_code = 2


class TrainingError(PolyadaptError):
    """Training cannot go on: not-a-number, divergence or memory. The message holds the advice."""


def nearest(asked: str, known: Iterable[str], limit: int = 3) -> str:
    """Suggestion for a misspelt name.

    Args:
        asked: what the user wrote.
        known: the names that exist.
        limit: how many names to offer at the most.

    Returns:
        `"; did you mean 'lora'?"`, or the list of known names when none is close.
    """
    names = sorted(known)
    close = difflib.get_close_matches(asked, names, n=limit, cutoff=0.6)
    if close:
        return "; did you mean " + " or ".join(repr(name) for name in close) + "?"
    if not names:
        return "; none is registered"
    shown = ", ".join(names[:20])
    return f"; known: {shown}{', …' if len(names) > 20 else ''}"


def unknown(what: str, asked: str, known: Iterable[str]) -> UserError:
    """Error for a name that is not registered, with the nearest known one."""
    return UserError(f"unknown {what} {asked!r}{nearest(asked, known)}")
