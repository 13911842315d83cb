"""What a host makes of an artifact by its method: modules that a file cannot hold, and the several that one may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polyadapt.errors import UserError, unknown

if TYPE_CHECKING:
    from polyadapt.artifact import Artifact
    from polyadapt.host.registry import Registry
    from polyadapt.methods.separated import Separated
    from polyadapt.model import Model


def restored(registry: Registry, artifact: Artifact) -> Artifact:
    """An artifact that was read from a file, ready to be attached.

    Raises:
        UserError: nobody registered the method, or the tensors are not those of its modules.
        PluginError: the method failed.
    """
    if all(edit.kind != "module" or edit.structure is not None for edit in artifact.edits):
        return artifact
    from polyadapt.methods.base import load_method

    return load_method(registry.methods.get(artifact.method).card).restored(artifact)


def separated(registry: Registry, model: Model, artifact: Artifact | None) -> Separated | None:
    """What an artifact that holds several, such as a language each, comes to on a model; None for any other.

    Raises:
        UserError: it stands on another base.
    """
    if artifact is None or artifact.method not in registry.methods.ids():
        return None
    card = registry.methods.get(artifact.method).card
    if not card.separates:
        return None
    from polyadapt.methods.base import load_method

    return load_method(card).separated(artifact, model)


def chosen_of(apart: Separated, options: Mapping[str, Any]) -> tuple[Artifact, dict[str, Any]]:
    """The one that a call's option of the column's name asks for, and the call's other options.

    Raises:
        UserError: the option is not there, or names none.
    """
    rest = dict(options)
    value = rest.pop(apart.column, None)
    if value is None:
        raise UserError(f"this artifact holds {', '.join(apart.artifacts)}; say which by {apart.column} = one of them")
    if str(value) not in apart.artifacts:
        raise unknown(f"{apart.column} of this artifact", str(value), apart.artifacts)
    return apart.artifacts[str(value)], rest


def spread(registry: Registry, model: Model, artifacts: Mapping[str, Artifact]) -> tuple[Model, Mapping[str, Artifact]]:
    """What is exported: of an artifact that holds several, the base they stand on with each of them under its own name.

    Raises:
        UserError: others are to go into the same bundle, which stand on another base.
    """
    found = {name: apart for name, artifact in artifacts.items() if (apart := separated(registry, model, artifact)) is not None}
    if not found:
        return model, artifacts
    if len(artifacts) > 1:
        name = next(iter(found))
        raise UserError(f"artifact {name!r} holds several ({', '.join(found[name].artifacts)}) on a base of their own; export it alone, they get these names")
    [apart] = found.values()
    return apart.base, apart.artifacts
