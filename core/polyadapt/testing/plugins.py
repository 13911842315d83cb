"""`check_plugin`: does a plugin keep the contract? For plugin authors and for our own tests."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from polyadapt.errors import PluginError, nearest

HEAVY = ("torch", "numpy", "transformers", "timm", "diffusers", "torchaudio", "torchvision", "accelerate", "onnx", "onnxruntime", "scipy", "sklearn", "pandas", "matplotlib")
"""Libraries that an entry point must not import, and neither may what it imports."""

# Runs in a process of its own: this one may have imported torch long ago. A finder in front of all others
# sees the first import of each heavy library and notes the line it comes from.
_PROBE = """
import importlib, json, sys, traceback
heavy, name, entry = json.loads(sys.argv[1])
found = {}
class Watch:
    def find_spec(self, module, path=None, target=None):
        top = module.partition(".")[0]
        if top in heavy and top not in found:
            frames = [f for f in traceback.extract_stack()[:-1] if "importlib" not in f.filename]
            found[top] = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        return None
sys.meta_path.insert(0, Watch())
result = {"error": "", "registered": {}, "states_range": False}
try:
    module = importlib.import_module(entry)
    from polyadapt.host import Host
    host = Host(plugins=[(name, module)], discover=False, environment={})
    plugin = host.plugins()[0]
    result["error"] = plugin.error
    tables = host.registry
    result["registered"] = {"models": tables.models.ids(), "families": tables.families.ids(), "methods": tables.methods.ids(), "readers": tables.readers.ids()}
    result["states_range"] = hasattr(module, "HOOK_API_RANGE")
    if not plugin.error and host.command_owners():
        import click
        host.commands(plugin, click.Group(name))
except BaseException as error:
    result["error"] = f"{type(error).__name__}: {error}"
result["heavy"] = found
sys.stdout.write("\\n" + json.dumps(result))
"""


@dataclass(frozen=True)
class PluginReport:
    """What a plugin registers, after it passed.

    Attributes:
        entry: the module of the entry point.
        registered: ids by sort: `models`, `families`, `methods`, `readers`.
    """

    entry: str
    registered: dict[str, list[str]]


def check_plugin(target: str) -> PluginReport:
    """Check that a plugin keeps the contract of the host.

    The entry point is imported and registered in a fresh process; then every implementation that its cards
    name is imported here.

    Args:
        target: name of an installed plugin, or the module of its entry point (`polyadapt_demo.entry`).

    Returns:
        What the plugin registers.

    Raises:
        PluginError: it cannot be imported, breaks a hook's contract, imports a heavy library, does not state
            the range of hook versions, or names an implementation that is not there.
    """
    name, entry = _entry(target)
    result = _probe(name, entry)
    if result["error"]:
        raise PluginError(f"plugin {name!r}: {result['error']}")
    if result["heavy"]:
        places = ", ".join(f"{library} at {place}" for library, place in sorted(result["heavy"].items()))
        raise PluginError(f"plugin {name!r}: its entry point {entry} imports {places}; import it inside the function that needs it, and keep cards in a module of their own")
    if not result["states_range"]:
        raise PluginError(f"plugin {name!r}: {entry} does not state HOOK_API_RANGE; add for instance HOOK_API_RANGE = (1, 1)")
    _check_implementations(name, entry)
    return PluginReport(entry, result["registered"])


def _entry(target: str) -> tuple[str, str]:
    """Name and module of a plugin."""
    installed = {entry.name: entry.value for entry in entry_points(group="polyadapt")}
    if target in installed:
        return target, installed[target]
    if "." not in target:
        raise PluginError(f"no installed plugin is called {target!r}{nearest(target, installed)}")
    names = [name for name, value in installed.items() if value == target]
    return (names[0] if names else target.partition(".")[0].removeprefix("polyadapt_").replace("_", "-")), target


def _probe(name: str, entry: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", _PROBE, json.dumps([HEAVY, name, entry])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    try:
        result: dict[str, Any] = json.loads(done.stdout.rpartition("\n")[2])
    except json.JSONDecodeError as error:
        raise PluginError(f"plugin {name!r}: importing {entry} ended the process with status {done.returncode}: {done.stderr.strip()[-300:]}") from error
    return result


def _check_implementations(name: str, entry: str) -> None:
    from polyadapt.host import Host

    host = Host(plugins=[(name, importlib.import_module(entry))], discover=False, environment={})
    for table in host.registry.tables().values():
        for claim in table.claims():
            try:
                _import_object(claim.card.implementation)
            except (ImportError, PluginError) as error:
                raise PluginError(f"plugin {name!r}: {table.sort} {table.key(claim.card)!r}: {error}") from error


def _import_object(path: str) -> Any:
    """What `"package.module:name"` names."""
    module_name, _, name = path.partition(":")
    module = importlib.import_module(module_name)
    if not hasattr(module, name):
        raise PluginError(f"it names {path!r}, and {module_name} has no {name!r}")
    return getattr(module, name)
