"""What the facade takes for an artifact: one in memory, or the folder that it was saved to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyadapt.artifact import Artifact
from polyadapt.errors import UserError
from polyadapt.host import Host

ArtifactLike = Artifact | Path | str


def as_artifact(given: Any, host: Host) -> Artifact:
    """An artifact, read from its folder where one is given, with the modules that its method makes.

    Args:
        given: an artifact, or the folder of one.
        host: where its method is looked up.

    Raises:
        UserError: something else, no folder, not a whole artifact, or nobody knows its method.
    """
    if isinstance(given, Artifact):
        return host.restore(given)
    if not isinstance(given, str | Path):
        raise UserError(f"an artifact is a polyadapt.Artifact or the folder of one; found {type(given).__name__}; pass what adapt or load_artifact returned, or a folder")
    if not Path(given).is_dir():
        raise UserError(f"artifact {str(given)!r} is no folder here; give a folder that Artifact.save wrote (only a bundle knows artifacts by name)")
    return host.restore(Artifact.load(given))


def as_named_artifacts(given: Any, host: Host) -> dict[str, Artifact]:
    """Artifacts by the names they get in a bundle; a single one is called `adapter`.

    Raises:
        UserError: as `as_artifact`, for any of them.
    """
    named = given if isinstance(given, Mapping) else {"adapter": given}
    return {name: as_artifact(artifact, host) for name, artifact in named.items()}
