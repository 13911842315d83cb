"""Keeps the machine out of reports: no absolute path, and with it no user's name."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

HIDDEN = "…"
_WHOLE = re.compile(r"^(?P<scheme>(?:[A-Za-z][\w+.-]+:)?)(?P<path>(?:/(?!/)|~|[A-Za-z]:[\\/]|\\\\)[^?]*)(?P<query>(?:\?.*)?)$", re.DOTALL)
_WITHIN = re.compile(r"(?<![\w/.~…])(?:~?/(?![/\s])|[A-Za-z]:\\)[^\s?'\",;)\]}]*[\\/][^\s?'\",;)\]}]*|~/[^\s?'\",;)\]}]+")
_HOMES = ("home", "users", "root")


def public(value: Any) -> Any:
    """A copy of JSON-like data in which every absolute path is cut to its last part.

    `folder:/data/mine/birds` becomes `folder:birds`. Relative paths, URLs and everything else stay.
    """
    if isinstance(value, str):
        return public_text(value)
    if isinstance(value, dict):
        return {public_text(str(key)): public(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [public(item) for item in value]
    return value if isinstance(value, (int, float, bool, type(None))) else public_text(str(value))


def public_text(text: str) -> str:
    """A text without absolute paths: one that is a path as a whole (behind a scheme, before a query), or that names some."""
    whole = _WHOLE.match(text)
    if whole and "\n" not in text:
        return f"{whole['scheme']}{_last(whole['path'])}{whole['query']}"
    return _WITHIN.sub(lambda found: _last(found[0]), text)


def _last(path: str) -> str:
    """Last part of a path; a home directory has none that may be shown."""
    pure = PureWindowsPath(path) if "\\" in path or re.match(r"[A-Za-z]:", path) else PurePosixPath(path)
    parts = [part for part in pure.parts if part not in ("/", "~", pure.anchor)]
    is_home = not parts or (len(parts) == 1 and (parts[0].startswith("~") or parts[0].lower() in _HOMES)) or (len(parts) == 2 and parts[0].lower() in _HOMES[:2])
    return HIDDEN if is_home else parts[-1]
