"""Soft-MoA: n bottlenecks with p slots each; a slot is a mean of all tokens, and a token gets a mean of all slots.

    logits = u phi                 [tokens, n p]
    slots  = softmax(logits over tokens)^T u
    out    = softmax(logits over slots) A(slots)

Paper: arXiv 2402.00828, after Soft MoE (2308.00951). Official code: umbertocappellazzo/PETL_AST, which adds what the mixture
makes twice when it stands at attention; here it is added once, as the text says.
Ours: a span sees no mask, so padding of a padded batch takes part in the means. Training and bundles do not pad sounds;
only `audio_lengths` of wav2vec 2.0 brings padding here.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt.edits import Edit, Form
from polyadapt.errors import UserError
from polyadapt.methods.base import Method
from polyadapt.model import Model
from polyadapt_speech.experts import Experts, rank_of
from polyadapt_speech.soft_moa.card import SoftMoaOptions
from polyadapt_speech.span_modules import span_modules


class SoftMixture(nn.Module):
    """The mixture of one site.

    Args:
        count: adapters n.
        slots: of each adapter, p.
        n_in, n_out: widths of what is read and made.
        rank: inner width of each adapter.
        is_normalized: scores are cosines times a trained `scale`.

    Shape:
        u [batch, tokens, n_in] -> [batch, tokens, n_out]; phi [n_in, n p], scale [1].
    """

    def __init__(self, count: int, slots: int, n_in: int, n_out: int, rank: int, is_normalized: bool) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.zeros(n_in, count * slots))
        self.experts = Experts(count, n_in, n_out, rank)
        self.scale = nn.Parameter(torch.ones(1)) if is_normalized else None

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> SoftMixture:
        """Starting values: phi as Xavier has it (the paper's), the adapters as they say."""
        nn.init.xavier_uniform_(self.phi, generator=generator)
        self.experts.start(generator)
        return self

    def lowered(self) -> SoftMixture:
        """Itself: nothing of it is needed for training only."""
        return self

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        if self.scale is None:
            logits = u @ self.phi  # (B, T, n p)
        else:
            logits = F.normalize(u, dim=-1) @ (self.scale * F.normalize(self.phi, dim=0))
        slots = logits.softmax(dim=1).transpose(1, 2) @ u  # (B, n p, n_in)
        count = self.experts.down.shape[0]
        made = self.experts.of_slots(slots.reshape(slots.shape[0], count, -1, slots.shape[2])).flatten(1, 2)  # (B, n p, n_out)
        return logits.softmax(dim=2) @ made  # (B, T, n_out)


class SoftMoa(Method):
    """The method `soft-moa`."""

    def form(self, model: Model, options: SoftMoaOptions, generator: torch.Generator) -> Form:
        """A fresh form.

        Raises:
            UserError: no site, or only sites of decoders.
        """

        def make(n_in: int, n_out: int) -> SoftMixture:
            return SoftMixture(options.experts, options.slots, n_in, n_out, rank_of(n_in, options.reduction), options.normalize).start(generator)

        return span_modules(self.card.id, model, options, make)

    def structure(self, edit: Edit, options: SoftMoaOptions) -> nn.Module:
        """A mixture of the sizes of an edit's tensors.

        Raises:
            UserError: they are not those of a mixture.
        """
        try:
            (count, n_in, rank), n_out, columns = edit.tensors["experts-down"].shape, edit.tensors["experts-up"].shape[2], edit.tensors["phi"].shape[1]
        except (KeyError, ValueError, IndexError) as error:
            raise UserError(f"{edit.key}: expected tensors of a soft-moa mixture (experts-down, experts-up, phi), found {', '.join(sorted(edit.tensors))}") from error
        if columns % count:
            raise UserError(f"{edit.key}: phi has {columns} columns for {count} adapters, expected as many slots for each; copy the artifact again")
        return SoftMixture(count, columns // count, n_in, n_out, rank, "scale" in edit.tensors)
