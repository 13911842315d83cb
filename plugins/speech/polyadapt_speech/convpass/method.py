"""Convpass: h + W_up drop(q(conv(q(W_down u)))) with q = QuickGELU, u the input of FFN or attention, conv along the sequence.

Papers: Convpass (arXiv 2207.07039), on spectrograms arXiv 2312.03694 section 3. Official code of the latter computes its
convolution and does not use the result; here it is used, as the text says.
Ours: sequences are taken as they come, class tokens and all (on spectrogram transformers neighbours are mostly neighbours
in time).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt.edits import Edit, Form
from polyadapt.errors import UserError
from polyadapt.methods.base import Method
from polyadapt.model import Model
from polyadapt_speech.convpass.card import ConvpassOptions
from polyadapt_speech.span_modules import span_modules


class Bypass(nn.Module):
    """The adapter of one site.

    Args:
        n_in, n_out: widths of the site's input and output.
        rank: inner width r.
        kernel: odd width of the convolution.
        dropout: before the last projection, while training.

    Shape:
        u [batch, tokens, n_in] -> [batch, tokens, n_out].
    """

    def __init__(self, n_in: int, n_out: int, rank: int, kernel: int, dropout: float) -> None:
        super().__init__()
        # Values come from `start` or from a file; on the meta device torch draws none from the global generator.
        self.down = nn.Linear(n_in, rank, device="meta").to_empty(device="cpu")
        self.conv = nn.Conv1d(rank, rank, kernel, padding=kernel // 2, device="meta").to_empty(device="cpu")
        self.up = nn.Linear(rank, n_out, device="meta").to_empty(device="cpu")
        self.dropout = nn.Dropout(dropout)

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> Bypass:
        """Starting values of the official code: Xavier, the identity in the middle of the convolution, zeros at the end."""
        nn.init.xavier_uniform_(self.down.weight, generator=generator)
        nn.init.zeros_(self.conv.weight)
        middle = self.conv.kernel_size[0] // 2
        self.conv.weight[:, :, middle] = torch.eye(self.conv.out_channels)
        for zero in (self.down.bias, self.conv.bias, self.up.weight, self.up.bias):
            assert zero is not None
            nn.init.zeros_(zero)
        return self

    def lowered(self) -> Bypass:
        """Itself: nothing of it is needed for training only."""
        return self

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        inner = quick_gelu(self.down(u))  # (B, T, r)
        inner = self.conv(inner.transpose(1, 2)).transpose(1, 2)  # (B, T, r)
        result: torch.Tensor = self.up(self.dropout(quick_gelu(inner)))  # (B, T, n_out)
        return result


def quick_gelu(u: torch.Tensor) -> torch.Tensor:
    """u sigmoid(1.702 u), the approximation that CLIP uses."""
    return u * F.sigmoid(1.702 * u)


class Convpass(Method):
    """The method `convpass`."""

    def form(self, model: Model, options: ConvpassOptions, generator: torch.Generator) -> Form:
        """A fresh form.

        Raises:
            UserError: no site, or only sites of decoders.
        """
        return span_modules(self.card.id, model, options, lambda n_in, n_out: Bypass(n_in, n_out, options.rank, options.kernel, options.dropout).start(generator))

    def structure(self, edit: Edit, options: ConvpassOptions) -> nn.Module:
        """An adapter of the sizes of an edit's tensors.

        Raises:
            UserError: they are not those of an adapter.
        """
        try:
            (rank, n_in), (n_out, _), kernel = edit.tensors["down-weight"].shape, edit.tensors["up-weight"].shape, edit.tensors["conv-weight"].shape[2]
        except (KeyError, ValueError, IndexError) as error:
            raise UserError(f"{edit.key}: expected tensors of a convpass adapter (down-weight, conv-weight, up-weight), found {', '.join(sorted(edit.tensors))}") from error
        return Bypass(n_in, n_out, rank, kernel, options.dropout)
