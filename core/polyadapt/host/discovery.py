"""Finding plugins: the entries of the group `polyadapt` of every installed distribution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points

from polyadapt.errors import UserError, nearest
from polyadapt.hookspecs import PROJECT
from polyadapt.host.plugin import Plugin

LIMIT = "POLYADAPT_PLUGINS"
STRICT = "POLYADAPT_STRICT"
TRACE = "POLYADAPT_TRACE"
HOME = "polyadapt"


def find(environment: Mapping[str, str]) -> list[tuple[Plugin, EntryPoint | None]]:
    """Every entry with its entry point; None where it must not be loaded (left out, or claimed twice).

    `POLYADAPT_PLUGINS=a,b` leaves only these and what the distribution `polyadapt` itself brings.

    Raises:
        UserError: `POLYADAPT_PLUGINS` names a plugin that is not installed.
    """
    found = [(_plugin(entry), entry) for entry in _unique(entry_points(group=PROJECT))]
    found.sort(key=lambda pair: (pair[0].distribution != HOME, pair[0].name, pair[0].distribution))
    limit = _limit(environment, [plugin.name for plugin, _ in found])
    result: list[tuple[Plugin, EntryPoint | None]] = []
    for plugin, entry in found:
        if limit is not None and plugin.name not in limit and plugin.distribution != HOME:
            plugin.state, plugin.error = "skipped", f"not in {LIMIT}"
        result.append((plugin, entry))
    _refuse_namesakes([plugin for plugin, _ in result if plugin.state == "ok"])
    return [(plugin, entry if plugin.state == "ok" else None) for plugin, entry in result]


def is_set(environment: Mapping[str, str], name: str) -> bool:
    """Whether a switch is on: set, and neither empty nor 0."""
    return environment.get(name, "") not in ("", "0")


def _unique(entries: Iterable[EntryPoint]) -> list[EntryPoint]:
    """Entries without repeats: one distribution can be seen twice on the import path."""
    seen: dict[tuple[str, str, str], EntryPoint] = {}
    for entry in entries:
        seen.setdefault((entry.name, entry.value, entry.dist.name if entry.dist else ""), entry)
    return list(seen.values())


def _plugin(entry: EntryPoint) -> Plugin:
    distribution = entry.dist
    return Plugin(entry.name, distribution.name if distribution else "", distribution.version if distribution else "", entry.value)


def _limit(environment: Mapping[str, str], names: list[str]) -> set[str] | None:
    given = environment.get(LIMIT)
    if given is None:
        return None
    wanted = {name.strip() for name in given.split(",") if name.strip()}
    for name in sorted(wanted):
        if name not in names:
            raise UserError(f"{LIMIT} names the plugin {name!r}, which is not installed{nearest(name, names)}")
    return wanted


def _refuse_namesakes(plugins: list[Plugin]) -> None:
    """Two distributions that use one plugin name are both left out: neither can own commands and targets."""
    by_name: dict[str, list[Plugin]] = {}
    for plugin in plugins:
        by_name.setdefault(plugin.name, []).append(plugin)
    for name, namesakes in by_name.items():
        if len(namesakes) > 1:
            owners = " and ".join(plugin.described for plugin in namesakes)
            for plugin in namesakes:
                plugin.fail(f"the plugin name {name!r} is claimed twice: {owners}; uninstall one")
