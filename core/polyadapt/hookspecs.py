"""The contract between the host and its plugins: every hook, in the order of a plugin's life.

A plugin is a module (or any object) named by an entry point of the group `polyadapt`. It imports the
standard library, pydantic and `polyadapt` cards only, implements any of the hooks below with
`@hookimpl`, and states the range of hook versions it was written for:

    from polyadapt.hookspecs import hookimpl

    HOOK_API_RANGE = (1, 1)

    @hookimpl
    def polyadapt_register_methods(register):
        register(CARD)

Hooks that register are called once for each plugin on its own. Hooks that do work are called for the
*owner* of an id only: the plugin that registered the model reference, the method or the export target.
Other plugins may wrap them (`@hookimpl(wrapper=True)`). The host's own default answers last, so an owner
that returns None, or implements nothing, gets it.

Hooks evolve by added arguments: an implementation takes only those it needs. `HOOK_API` grows when an
argument is added, and a plugin whose range does not hold the host's number is not loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click

    from polyadapt.artifact import Artifact
    from polyadapt.data.card import ReaderCard
    from polyadapt.families.card import FamilyCard
    from polyadapt.methods.card import MethodCard
    from polyadapt.model import Model
    from polyadapt.options import Options
    from polyadapt.sources.card import ModelCard

HOOK_API = 1
"""Version of the hooks in this file."""

PROJECT = "polyadapt"
"""Name of the entry-point group and prefix of every hook."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Event = Mapping[str, Any]
"""One thing that happened: `kind` says what, the other keys are plain values (see `polyadapt_event`)."""


@dataclass(frozen=True)
class AdaptOptions:
    """Everything about one adaptation besides model, method and data.

    Attributes:
        options: of the method, validated against its card.
        settings: training settings (steps, batch size, learning rate, seed, …); None for the defaults.
        directory: where checkpoints go; None for none.
        resume: go on from the checkpoint in `directory`, if there is one.
        emit: called with every event; the host passes it on to `polyadapt_event`.
    """

    options: Options
    settings: Any = None
    directory: Path | None = None
    resume: bool = False
    emit: Callable[[Event], None] = field(default=lambda event: None)


@hookspec
def polyadapt_register_models(register: Callable[[ModelCard], None]) -> None:
    """Register model references.

    Called once for each plugin, when the host first needs its registry.

    Args:
        register: call it with a card for each reference. A card whose reference ends with `:` owns
            every reference that starts with it. A reference registered by two plugins is unusable.

    Returns:
        Nothing; a returned value is ignored.

    Since:
        1
    """


@hookspec
def polyadapt_register_families(register: Callable[[FamilyCard], None]) -> None:
    """Register kinds of backbones.

    Called once for each plugin, when the host first needs its registry.

    Args:
        register: call it with a card for each family; ids are shared by all plugins.

    Returns:
        Nothing; a returned value is ignored.

    Since:
        1
    """


@hookspec
def polyadapt_register_methods(register: Callable[[MethodCard], None]) -> None:
    """Register adaptation methods.

    Called once for each plugin, when the host first needs its registry.

    Args:
        register: call it with a card for each method. The module that the card names is imported
            when the method is first used.

    Returns:
        Nothing; a returned value is ignored.

    Since:
        1
    """


@hookspec
def polyadapt_register_data(register: Callable[[ReaderCard], None]) -> None:
    """Register data readers by the scheme of their URIs.

    Called once for each plugin, when the host first needs its registry.

    Args:
        register: call it with a card for each scheme (`folder` reads `folder:photos`).

    Returns:
        Nothing; a returned value is ignored.

    Since:
        1
    """


@hookspec
def polyadapt_register_commands(cli: click.Group) -> None:
    """Add commands to the command line, under the plugin's own name.

    Called when the command line needs a name that core does not have, and for `polyadapt --help`.

    Args:
        cli: an empty group named like the plugin: a command `play` of plugin `speech` is
            `polyadapt speech play`. The group is left out when nothing was added.

    Returns:
        Nothing; a returned value is ignored.

    Since:
        1
    """


@hookspec(firstresult=True)
def polyadapt_load_model(reference: str, options: Options) -> Model | None:
    """Load a model.

    Called for the owner of the reference. It stops at the first answer that is not None.

    Args:
        reference: what the user asked for, without the part behind `?`.
        options: the options of the reference's card, validated; the part behind `?` is among them.

    Returns:
        The model, or None for the host's default: call the card's `implementation`.

    Since:
        1
    """


@hookspec(firstresult=True)
def polyadapt_adapt(model: Model, method: str, data: Any, options: AdaptOptions) -> Artifact | None:
    """Adapt a model to data.

    Called for the owner of the method. It stops at the first answer that is not None.

    Args:
        model: a loaded model; it must be left as it was found.
        method: id of the method.
        data: a `polyadapt.data.split.Parts` with the parts `train` and `validation`.
        options: the method's options, training settings, directory and the `emit` callback.

    Returns:
        The artifact, or None for the host's default: the method's own `fit`, or the common training loop.

    Since:
        1
    """


@hookspec(firstresult=True)
def polyadapt_infer(model: Model, inputs: list[Any], artifact: Artifact | None, options: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Answer for raw inputs.

    Called for the owner of the artifact's method and the owner of the model's reference, in this
    order; it stops at the first answer that is not None.

    Args:
        model: a loaded model.
        inputs: raw inputs as the model's processor takes them (paths, arrays, texts).
        artifact: what to attach for this call; None for the base alone.
        options: settings of this call, such as `batch_size` or `maximum_new_tokens`.

    Returns:
        One dictionary of named values for each input, or None for the host's default: forward passes and
        the answer that fits the model's task.

    Since:
        1
    """


@hookspec(firstresult=True)
def polyadapt_export(model: Model, artifacts: Mapping[str, Artifact], target: str, directory: Path, options: Mapping[str, Any]) -> Any:
    """Write a model and its artifacts in a form that runs elsewhere.

    Called for the owner of the target. A target is the name of a plugin: `onnx` is exported by the
    plugin of that name. It stops at the first answer that is not None.

    Args:
        model: a loaded model.
        artifacts: artifacts by the name they get in the bundle.
        target: name of the target.
        directory: where the bundle goes; it is written beside and renamed when the gate has passed.
        options: the target's settings; `form` is `slots`, `merged` or `bank`. With `into` true, `directory` is a bundle
            that is there already and takes the artifacts as well; it stays as it was when they do not pass the gate.

    Returns:
        A description of the bundle with `directory` and `to_dict()`. None is an error: there is no default.

    Since:
        1
    """


@hookspec
def polyadapt_event(event: Event) -> None:
    """Hear of progress, metrics and checkpoints.

    Called for every plugin. What it raises is logged once for each plugin and never stops training;
    wrappers are not allowed here.

    Args:
        event: `{"kind": …}` with plain values. Training says `started`, `step`, `epoch`, `checkpoint` and `finished`
            (`polyadapt.training.events` lists their values); a recipe says `arm` (name, state `started`,
            `finished` or `kept`) and `export` (state `started` or `finished`).

    Returns:
        Nothing; a returned value is ignored.

    Since:
        1
    """
