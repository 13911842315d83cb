"""The host's own answers, which come last: load by the card, adapt by the method, infer by the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from polyadapt.hookspecs import AdaptOptions, hookimpl

if TYPE_CHECKING:
    from polyadapt.artifact import Artifact
    from polyadapt.host.registry import Registry
    from polyadapt.model import Model
    from polyadapt.options import Options


class Defaults:
    """Implements the working hooks for owners that do not.

    Args:
        registry: where cards are looked up.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @hookimpl(trylast=True)
    def polyadapt_load_model(self, reference: str, options: Options) -> Model:
        """Call the implementation that the card names."""
        from polyadapt.sources.load import load

        families = [claim.card for claim in self._registry.families.claims()]
        return load(self._registry.model(reference).card, reference.partition(":")[2], options, families)

    @hookimpl(trylast=True)
    def polyadapt_adapt(self, model: Model, method: str, data: Any, options: AdaptOptions) -> Artifact:
        """Run the method's own `fit`, or the common training loop."""
        from polyadapt.methods.base import load_method
        from polyadapt.training import fit

        loaded = load_method(self._registry.methods.get(method).card)
        return fit(model, loaded, options.options, data, options.settings, options.emit, options.directory, options.resume)

    @hookimpl(trylast=True)
    def polyadapt_infer(self, model: Model, inputs: list[Any], artifact: Artifact | None, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Forward passes, and the answer that fits the model's task."""
        from polyadapt.host.inference import answer

        return answer(model, inputs, artifact, options)
