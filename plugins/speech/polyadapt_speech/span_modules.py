"""What the adapters of this plugin share: one module at each span that is seen whole, at the place that the options name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import nn

from polyadapt.edits import Edit, Form
from polyadapt.edits.form import detached
from polyadapt.edits.kinds.module import module_variant, tensors_of
from polyadapt.edits.kinds.place import SKIP, is_before, reads_output
from polyadapt.errors import UserError
from polyadapt.methods.norms import with_feeding_norms
from polyadapt.methods.placing import PLACEMENTS, PlacedOptions, placing_of
from polyadapt.model import Model
from polyadapt.sites import SpanPort, module_name


class SpanModule(Protocol):
    """A trained module, and what of it an artifact keeps."""

    def lowered(self) -> nn.Module:
        """A module that answers alike in evaluation mode, without what only training needs."""


class SpanModuleForm(Form):
    """One module a span.

    Args:
        method: id, which becomes the variant of the edits.
        spans: where they stand.
        make: (width that is read, width that is made) -> a fresh module.
        options: the place.
    """

    def __init__(self, method: str, spans: list[SpanPort], make: Callable[[int, int], nn.Module], options: PlacedOptions) -> None:
        super().__init__()
        placing = placing_of(options)
        self.moves_at_start = placing.moves
        self._sites = [span.site for span in spans]
        self._variant, self._skip = module_variant(method, placing.place), placing.skip
        self.adapters = nn.ModuleDict()
        for span in spans:
            n_in = span.out_features if reads_output(placing.place) else span.in_features
            n_out = span.in_features if is_before(placing.place) else span.out_features
            self.adapters[module_name(span.site)] = make(n_in, n_out)

    def edits(self) -> list[Edit]:
        return [self._edit(site, self.adapters[module_name(site)]) for site in self._sites]

    def lower(self) -> list[Edit]:
        with torch.no_grad():
            return [detached(self._edit(site, cast(SpanModule, self.adapters[module_name(site)]).lowered())) for site in self._sites]

    def _edit(self, site: str, adapter: nn.Module) -> Edit:
        tensors = tensors_of(adapter)
        if self._skip is not None:
            tensors[SKIP] = next(iter(tensors.values())).new_full((1,), self._skip)
        return Edit(site, "module", tensors, self._variant, structure=adapter)


def span_modules(method: str, model: Model, options: PlacedOptions, make: Callable[[int, int], nn.Module]) -> Form:
    """Modules at the chosen spans of blocks that see their sequence whole, with the norms before them where the options say so.

    Raises:
        UserError: no site, or only sites of decoders.
    """
    sites = model.ports.select("span", options.sites or PLACEMENTS[options.placement])
    seeing_ahead = [site for site in sites if _is_causal(model, site)]
    if options.sites and seeing_ahead:
        raise UserError(f"{method} stands in blocks that see their sequence whole, and {seeing_ahead[0]} is in a decoder; leave decoders out of sites")
    spans = [model.ports.spans[site] for site in sites if site not in seeing_ahead]
    if not spans:
        raise UserError(f"{method} fits sequences that are seen whole; {model.reference} has decoders only")
    form = SpanModuleForm(method, spans, make, options)
    return with_feeding_norms(form, model, spans) if options.train_norm else form


def _is_causal(model: Model, site: str) -> bool:
    """Whether the block that a span belongs to must not see later tokens."""
    block = site.rpartition(".")[0]
    return any(port.causal for name, port in model.ports.attention.items() if name.startswith(f"{block}."))
