"""Artifacts that hold several of one kind, such as a language each: told apart by a column of the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyadapt.artifact import Artifact
    from polyadapt.model import Model


@dataclass(frozen=True)
class Separated:
    """What an artifact of several comes to.

    Attributes:
        column: of the data, and the option of a call, that says which.
        base: what they stand on; a model of its own, so that the one it was made from stays as it is.
        artifacts: one for each value of the column.
    """

    column: str
    base: Model
    artifacts: Mapping[str, Artifact]
