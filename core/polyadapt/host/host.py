"""The `Host`: an object that holds plugins, their registry and the calls to their owners."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from polyadapt.errors import PluginError, PolyadaptError, UserError, nearest
from polyadapt.hookspecs import AdaptOptions, Event
from polyadapt.host import discovery
from polyadapt.host.artifacts import chosen_of, restored, separated, spread
from polyadapt.host.calls import Calls
from polyadapt.host.defaults import Defaults
from polyadapt.host.plugin import Plugin
from polyadapt.host.registry import Registry
from polyadapt.options import read_options
from polyadapt.sources.reference import parse_reference

if TYPE_CHECKING:
    import click

    from polyadapt.artifact import Artifact
    from polyadapt.data.dataset import Dataset
    from polyadapt.methods.separated import Separated
    from polyadapt.model import Model


class Host:
    """Plugins and the table of who owns what.

    Args:
        plugins: modules or objects to use besides the discovered ones; a pair (name, module) names one.
        discover: whether to look for installed plugins. Tests pass False and the plugins they need.
        environment: where `POLYADAPT_PLUGINS`, `POLYADAPT_STRICT` and `POLYADAPT_TRACE` are read.

    Raises:
        PluginError: a plugin failed and `POLYADAPT_STRICT` is set.
        UserError: `POLYADAPT_PLUGINS` names a plugin that is not installed.
    """

    def __init__(self, plugins: Iterable[object] = (), *, discover: bool = True, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._is_strict = discovery.is_set(environment, discovery.STRICT)
        self._calls = Calls(discovery.is_set(environment, discovery.TRACE))
        self._registry: Registry | None = None
        self._plugins: list[Plugin] = []
        for plugin, entry in discovery.find(environment) if discover else []:
            self._admit(plugin, entry)
        for given in plugins:
            name, module = given if isinstance(given, tuple) else (_own_name(given), given)
            self._admit(Plugin(str(name), value=_own_name(module), module=module), None)

    @property
    def registry(self) -> Registry:
        """Models, families, methods and readers of all plugins; filled at first use."""
        if self._registry is None:
            registry = Registry()
            for plugin in self._plugins:
                if plugin.state == "ok":
                    self._collect(plugin, registry)
            self._calls.set_default(Defaults(registry))
            self._registry = registry
        return self._registry

    def plugins(self) -> list[Plugin]:
        """Every plugin that was found, with what became of it."""
        _ = self.registry
        return list(self._plugins)

    def load(self, reference: str, options: Mapping[str, Any] | None = None) -> Model:
        """Load a model by its reference; the part behind `?` gives options too, and `options` win over it.

        Raises:
            UserError: nobody knows the reference, or an option does not fit.
            PluginError: its owner failed.
        """
        claim = self.registry.model(reference)
        parsed = parse_reference(reference)
        validated = read_options(claim.card.options, {**parsed.options, **(options or {})}, f"model {parsed.base!r}")
        return cast("Model", self._calls.owner("polyadapt_load_model", claim.plugin, reference=parsed.base, options=validated))

    def open_dataset(self, uri: str, options: Mapping[str, Any] | None = None) -> Dataset:
        """Read a data set by its URI; the part behind `?` gives options too.

        Raises:
            UserError: nobody reads the scheme, an option does not fit, a row is broken (with file and line), or a file cannot be read.
            PluginError: its owner failed.
        """
        from polyadapt.data.dataset import open_data

        claim = self.registry.reader(uri)
        with self._calls.blaming(claim.plugin, f"reading {uri[:80]!r}"):
            return open_data(uri, {claim.card.scheme: claim.card}, options)

    def adapt(self, model: Model, method: str, data: Any, options: AdaptOptions) -> Artifact:
        """Adapt a model by a registered method; `options.emit` and every plugin hear the events.

        Raises:
            UserError: nobody knows the method, or it does not fit the model or the data.
            PluginError: its owner failed.
        """
        claim = self.registry.methods.get(method)

        def emit(event: Event) -> None:
            options.emit(event)
            self.event(event)

        return cast("Artifact", self._calls.owner("polyadapt_adapt", claim.plugin, model=model, method=method, data=data, options=replace(options, emit=emit)))

    def infer(self, model: Model, inputs: list[Any], artifact: Artifact | None = None, options: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """One answer for each raw input.

        Raises:
            UserError: an input does not fit the model, or the artifact belongs to another base.
            PluginError: the owner failed.
        """
        if apart := self.separated(model, artifact):
            return self.infer(apart.base, inputs, *chosen_of(apart, options or {}))
        owners = self._inference_owners(model, artifact)
        artifact = None if artifact is None else self.restore(artifact)
        answers: list[dict[str, Any]] = self._calls.owners("polyadapt_infer", owners, model=model, inputs=inputs, artifact=artifact, options=dict(options or {}))
        return answers

    def answers_itself(self, model: Model, artifact: Artifact | None) -> bool:
        """Whether a plugin, and not the host's default, answers for this model with this artifact."""
        return bool(self._inference_owners(model, artifact))

    def export(self, model: Model, artifacts: Mapping[str, Artifact], directory: Path, target: str = "onnx", options: Mapping[str, Any] | None = None) -> Any:
        """Export by the plugin whose name is `target`.

        Raises:
            UserError: no such target.
            PluginError: the exporter failed.
            ExportError: the exported graph did not pass the gate; nothing was kept.
        """
        targets = self.targets()
        if target not in targets:
            raise UserError(f"unknown export target {target!r}{nearest(target, targets)}")
        owner = targets[target]
        model, artifacts = spread(self.registry, model, artifacts)
        whole = {name: self.restore(artifact) for name, artifact in artifacts.items()}
        bundle = self._calls.owner("polyadapt_export", owner, model=model, artifacts=whole, target=target, directory=Path(directory), options=dict(options or {}))
        if bundle is None:
            raise PluginError(f"plugin {owner.described} exported nothing for target {target!r}")
        return bundle

    def restore(self, artifact: Artifact) -> Artifact:
        """An artifact that was read from a file, ready to be attached: its method rebuilds modules of its own, if it has any."""
        return restored(self.registry, artifact)

    def separated(self, model: Model, artifact: Artifact | None) -> Separated | None:
        """What an artifact that holds several, such as a language each, comes to on a model; None for any other."""
        return separated(self.registry, model, artifact)

    def targets(self) -> dict[str, Plugin]:
        """Export targets with the plugins that own them."""
        _ = self.registry
        return {plugin.name: plugin for plugin in self._calls.implementing("polyadapt_export")}

    def event(self, event: Event) -> None:
        """Tell every plugin. One that raises is logged once and does not stop the others."""
        self._calls.event(event)

    def command_owners(self) -> list[Plugin]:
        """Plugins that bring commands. Does not fill the registry, so that help stays quick."""
        return self._calls.implementing("polyadapt_register_commands")

    def commands(self, plugin: Plugin, group: click.Group) -> None:
        """Let one plugin fill the group that carries its name.

        Raises:
            PluginError: the plugin failed.
        """
        try:
            self._calls.one("polyadapt_register_commands", plugin, cli=group)
        except (Exception, SystemExit) as error:
            raise PluginError(f"plugin {plugin.described} failed in polyadapt_register_commands: {type(error).__name__}: {error}") from error

    def _admit(self, plugin: Plugin, entry: EntryPoint | None) -> None:
        """Import and register one plugin; what goes wrong stays with it."""
        self._plugins.append(plugin)
        if plugin.state == "failed":
            self._complain(plugin, None)
        if plugin.state != "ok":
            return
        try:
            if entry is not None:
                plugin.module = entry.load()
            self._calls.add(plugin)
        except (Exception, SystemExit) as error:
            self._reject(plugin, error)

    def _collect(self, plugin: Plugin, registry: Registry) -> None:
        """Enter all cards of one plugin, or none of them."""
        cards: dict[str, list[Any]] = {}
        try:
            for hook, table in registry.tables().items():
                cards[hook] = []
                self._calls.one(hook, plugin, register=cards[hook].append)
                table.check(cards[hook])
        except (Exception, SystemExit) as error:
            self._calls.remove(plugin)
            self._reject(plugin, error)
            return
        for hook, table in registry.tables().items():
            table.add(plugin, cards[hook])

    def _reject(self, plugin: Plugin, error: BaseException) -> None:
        plugin.fail(str(error) if isinstance(error, PolyadaptError) else f"{type(error).__name__}: {error}")
        self._complain(plugin, error)

    def _complain(self, plugin: Plugin, error: BaseException | None) -> None:
        if self._is_strict:
            raise PluginError(f"plugin {plugin.described} failed: {plugin.error}") from error

    def _inference_owners(self, model: Model, artifact: Artifact | None) -> list[Plugin]:
        """The owner of the artifact's method, then that of the reference, where they implement inference; one that is both stands there once."""
        registry = self.registry
        candidates = []
        if artifact is not None and artifact.method in registry.methods:
            candidates.append(registry.methods.get(artifact.method).plugin)
        if not model.reference.startswith("module:"):
            candidates.append(registry.model(model.reference).plugin)
        implementing = self._calls.implementing("polyadapt_infer")
        return list({id(plugin): plugin for plugin in candidates if any(plugin is other for other in implementing)}.values())


def _own_name(module: object) -> str:
    return str(getattr(module, "__name__", type(module).__name__)).rsplit(".", 1)[-1]
