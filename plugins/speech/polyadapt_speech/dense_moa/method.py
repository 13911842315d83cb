"""Dense-MoA: sum over i of softmax(W u)_i A_i(u) for every token u, with n bottlenecks A_i.

Paper: arXiv 2402.00828. Official code: umbertocappellazzo/PETL_AST, which adds what the mixture makes twice when it stands
at attention; here it is added once, as the text says.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from polyadapt.edits import Edit, Form
from polyadapt.errors import UserError
from polyadapt.methods.base import Method
from polyadapt.model import Model
from polyadapt_speech.dense_moa.card import DenseMoaOptions
from polyadapt_speech.experts import Experts, rank_of
from polyadapt_speech.span_modules import span_modules


class DenseMixture(nn.Module):
    """The mixture of one site.

    Args:
        count: adapters n.
        n_in, n_out: widths of what is read and made.
        rank: inner width of each adapter.

    Shape:
        u [batch, tokens, n_in] -> [batch, tokens, n_out]; router W [n, n_in].
    """

    def __init__(self, count: int, n_in: int, n_out: int, rank: int) -> None:
        super().__init__()
        self.router = nn.Parameter(torch.zeros(count, n_in))
        self.experts = Experts(count, n_in, n_out, rank)

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> DenseMixture:
        """Starting values: the router as torch starts a linear layer (ours), the adapters as they say."""
        bound = 1 / math.sqrt(self.router.shape[1])
        nn.init.uniform_(self.router, -bound, bound, generator=generator)
        self.experts.start(generator)
        return self

    def lowered(self) -> DenseMixture:
        """Itself: nothing of it is needed for training only."""
        return self

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return self.experts.weighed(u, (u @ self.router.T).softmax(-1))


class DenseMoa(Method):
    """The method `dense-moa`."""

    def form(self, model: Model, options: DenseMoaOptions, generator: torch.Generator) -> Form:
        """A fresh form.

        Raises:
            UserError: no site, or only sites of decoders.
        """

        def make(n_in: int, n_out: int) -> DenseMixture:
            return DenseMixture(options.experts, n_in, n_out, rank_of(n_in, options.reduction)).start(generator)

        return span_modules(self.card.id, model, options, make)

    def structure(self, edit: Edit, options: DenseMoaOptions) -> nn.Module:
        """A mixture of the sizes of an edit's tensors.

        Raises:
            UserError: they are not those of a mixture.
        """
        try:
            (count, n_in, rank), n_out = edit.tensors["experts-down"].shape, edit.tensors["experts-up"].shape[2]
        except (KeyError, ValueError, IndexError) as error:
            raise UserError(f"{edit.key}: expected tensors of a dense-moa mixture (experts-down, experts-up, router), found {', '.join(sorted(edit.tensors))}") from error
        return DenseMixture(count, n_in, n_out, rank)
