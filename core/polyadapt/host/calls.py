"""Calling hooks: the owner only, inside everybody's wrappers, and with the guilty plugin named on failure."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pluggy

from polyadapt import hookspecs
from polyadapt.errors import PluginError, PolyadaptError, UserError
from polyadapt.hookspecs import PROJECT, Event
from polyadapt.host import checks
from polyadapt.host.plugin import Plugin
from polyadapt.host.trace import attach_trace

logger = logging.getLogger(__name__)


class Calls:
    """Registered implementations and the ways to call them.

    Args:
        is_traced: whether every call is printed on standard error.
    """

    def __init__(self, is_traced: bool = False) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._plugins: list[Plugin] = []
        self._default: object | None = None
        self._deaf: set[str] = set()
        if is_traced:
            attach_trace(self._manager)

    def add(self, plugin: Plugin) -> None:
        """Register a plugin.

        Raises:
            PluginError: it breaks the contract of hooks; nothing of it was registered.
        """
        assert plugin.module is not None
        checks.register(self._manager, plugin.name, plugin.module)
        self._plugins.append(plugin)

    def remove(self, plugin: Plugin) -> None:
        """Forget a plugin."""
        self._manager.unregister(plugin.module)
        self._plugins.remove(plugin)

    def set_default(self, default: object) -> None:
        """Register the host's own answers, which come last."""
        self._manager.register(default, "polyadapt defaults")
        self._default = default

    def implementing(self, hook: str) -> list[Plugin]:
        """Plugins that implement a hook themselves, wrappers left out."""
        modules = [item.plugin for item in self._implementations(hook) if not _is_wrapper(item)]
        return [plugin for plugin in self._plugins if any(plugin.module is module for module in modules)]

    def one(self, hook: str, plugin: Plugin, **arguments: Any) -> None:
        """Call one plugin's implementation of a registering hook, if it has one."""
        others = [item.plugin for item in self._implementations(hook) if item.plugin is not plugin.module]
        self._manager.subset_hook_caller(hook, others)(**arguments)

    def owner(self, hook: str, owner: Plugin | None, **arguments: Any) -> Any:
        """Call the owner's implementation, then the host's default, inside the wrappers of everybody.

        Raises:
            PolyadaptError: what an implementation raised on purpose, as it is.
            PluginError: anything else, with the plugin named in which it arose.
        """
        return self.owners(hook, [] if owner is None else [owner], **arguments)

    def owners(self, hook: str, owners: Sequence[Plugin], **arguments: Any) -> Any:
        """Ask one owner after another until an answer is not None, then the host's default, inside the wrappers of everybody.

        Raises:
            PolyadaptError: what an implementation raised on purpose, as it is.
            PluginError: anything else, with the plugin named in which it arose.
        """
        implementations = [item for item in self._implementations(hook) if not _is_wrapper(item)]
        # pluggy asks plugins in the order of their registration. Several owners have an order of their own, so their functions are given along: the last one is asked first.
        along = [item.function for owner in reversed(owners) for item in implementations if item.plugin is owner.module] if len(owners) > 1 else []
        kept = [self._default] if along else [self._default, *(owner.module for owner in owners)]
        others = [item.plugin for item in implementations if not any(item.plugin is module for module in kept)]
        caller = self._manager.subset_hook_caller(hook, others)
        try:
            return caller.call_extra(along, arguments)
        except PolyadaptError:
            raise
        except (Exception, SystemExit) as error:
            if is_bundle_error(error):
                raise UserError(str(error)) from error
            raise self._blame(hook, owners[0] if owners else None, error) from error

    @contextlib.contextmanager
    def blaming(self, owner: Plugin, what: str) -> Iterator[None]:
        """What a plugin raises within the block is its failure, but for what it raised on purpose and for files that cannot be read."""
        try:
            yield
        except PolyadaptError:
            raise
        except OSError as error:
            raise UserError(f"{what}: {error.strerror or error}; check the path and the rights to read it") from error
        except Exception as error:
            if is_bundle_error(error):
                raise UserError(str(error)) from error
            raise PluginError(f"plugin {owner.described} failed in {what}: {type(error).__name__}: {error}") from error

    def event(self, event: Event) -> None:
        """Tell every plugin. One that raises is logged once and does not stop the others."""
        for item in self._implementations("polyadapt_event"):
            values = {"event": event}
            try:
                item.function(*(values[name] for name in item.argnames))
            except (Exception, SystemExit):
                if item.plugin_name not in self._deaf:
                    self._deaf.add(item.plugin_name)
                    logger.exception("plugin %r failed in polyadapt_event; the work goes on, its later failures are not logged", item.plugin_name)

    def _implementations(self, hook: str) -> list[pluggy.HookImpl]:
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        return caller.get_hookimpls()

    def _blame(self, hook: str, owner: Plugin | None, error: BaseException) -> PluginError:
        """Name the plugin in whose implementation an error arose: the innermost one of the traceback."""
        modules = {item.function.__code__: item.plugin for item in self._implementations(hook) if hasattr(item.function, "__code__")}
        guilty = owner
        trace = error.__traceback__
        while trace is not None:
            module = modules.get(trace.tb_frame.f_code)
            guilty = next((plugin for plugin in self._plugins if plugin.module is module), guilty)
            trace = trace.tb_next
        name = f"plugin {guilty.described}" if guilty is not None else "the host"
        return PluginError(f"{name} failed in {hook}: {type(error).__name__}: {error}")


def is_bundle_error(error: BaseException) -> bool:
    """Whether the runtime package says that the user's input or bundle is wrong. It knows nothing of our errors."""
    runtime = sys.modules.get("polyadapt_runtime.errors")
    return runtime is not None and isinstance(error, runtime.BundleError)


def _is_wrapper(implementation: pluggy.HookImpl) -> bool:
    return bool(implementation.wrapper or implementation.hookwrapper)
