"""What must hold before a plugin is registered: its hooks exist and its range of versions fits."""

from __future__ import annotations

import inspect
from typing import Any

import pluggy

from polyadapt import hookspecs
from polyadapt.errors import PluginError, nearest
from polyadapt.hookspecs import HOOK_API, PROJECT

RANGE = "HOOK_API_RANGE"


def known_hooks() -> dict[str, tuple[str, ...]]:
    """Every hook with the names of its arguments, in the order of the contract."""
    marker = f"{PROJECT}_spec"
    functions = {name: value for name, value in vars(hookspecs).items() if hasattr(value, marker)}
    return {name: tuple(inspect.signature(function).parameters) for name, function in functions.items()}


def check_hooks(module: object) -> None:
    """Refuse unknown hooks, unknown arguments and hooks whose marker was forgotten.

    Raises:
        PluginError: the hook, and what it should have been.
    """
    hooks = known_hooks()
    for name, function, options in implementations(module):
        hook = (options or {}).get("specname") or name
        if hook not in hooks:
            raise PluginError(f"unknown hook {hook!r}{nearest(hook, hooks)}")
        if options is None:
            raise PluginError(f"{name} is not marked; put @hookimpl (from polyadapt.hookspecs) above it")
        is_wrapper = options.get("wrapper") or options.get("hookwrapper")
        if is_wrapper and hook == "polyadapt_event":
            raise PluginError("polyadapt_event cannot be wrapped; implement it without wrapper=True")
        parameters = inspect.signature(function).parameters
        for argument in (argument for argument in parameters if argument != "self"):
            if argument not in hooks[hook]:
                raise PluginError(f"{hook} has no argument {argument!r}{nearest(argument, hooks[hook])}")


def check_api(module: object) -> None:
    """Refuse a plugin that was written for other versions of the hooks.

    Raises:
        PluginError: the range does not hold the host's `HOOK_API`, or is no pair of integers.
    """
    stated: Any = getattr(module, RANGE, (1, 1))
    is_pair = isinstance(stated, tuple) and len(stated) == 2 and all(isinstance(value, int) for value in stated)
    if not is_pair:
        raise PluginError(f"{RANGE} must be a pair of integers such as (1, {HOOK_API}), found {stated!r}")
    low, high = stated
    if not low <= HOOK_API <= high:
        remedy = "update the plugin" if high < HOOK_API else "update polyadapt"
        raise PluginError(f"it was written for hook versions {low} to {high} and this polyadapt has {HOOK_API}; {remedy}")


def implementations(module: object) -> list[tuple[str, Any, dict[str, Any] | None]]:
    """Functions of a plugin that are hooks or look like one: (name, function, options of the marker or None).

    An unmarked function counts when its name starts with the prefix and it was written in this very module,
    so that an imported helper is not mistaken for a forgotten marker.
    """
    home = getattr(module, "__name__", type(module).__module__)
    found = []
    for name in dir(module):
        if name.startswith("__"):
            continue
        value = getattr(module, name, None)
        options = getattr(value, f"{PROJECT}_impl", None)
        is_own = inspect.isroutine(value) and getattr(value, "__module__", None) == home
        if isinstance(options, dict) or (is_own and name.startswith(f"{PROJECT}_")):
            found.append((name, value, options if isinstance(options, dict) else None))
    return found


def register(manager: pluggy.PluginManager, name: str, module: object) -> None:
    """Check a plugin and register it.

    Raises:
        PluginError: it breaks the contract; nothing of it was registered.
    """
    check_api(module)
    check_hooks(module)
    try:
        manager.register(module, name)
    except (pluggy.PluginValidationError, ValueError) as error:
        raise PluginError(" ".join(str(error).split())) from error
