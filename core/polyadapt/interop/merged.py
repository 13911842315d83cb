"""`merged:FOLDER`: a base with an artifact folded into its weights, as a base of its own for what is learned next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from polyadapt.artifact import Artifact
from polyadapt.sources.card import ModelCard
from polyadapt.sources.load import open_reference
from polyadapt.sources.options import MergedOptions
from polyadapt.sources.reference import parse_reference

if TYPE_CHECKING:
    from polyadapt.families.card import FamilyCard
    from polyadapt.model import Model


def load(card: ModelCard, name: str, options: MergedOptions, families: Iterable[FamilyCard] | None = None) -> Model:
    """Load the base and fold the artifact in; what results has an identity of its own and keeps the base's reference.

    Args:
        card: of the scheme.
        name: the artifact's folder.
        options: names the base.
        families: cards of families to recognise the base by; core's own by default.

    Raises:
        UserError: no artifact in the folder, an artifact of another base, or an edit that cannot be folded.
    """
    artifact = Artifact.load(name)
    task = options.task or ("" if "task" in parse_reference(options.base).options else artifact.task)
    return artifact.merge(open_reference(options.base, given={"task": task} if task else {}, families=families))
