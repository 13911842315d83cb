"""Conformer adapter: W_2 silu(BN(conv(glu(W_1 LN(u) + b_1)))) + b_2, u [tokens, d], conv one filter a channel along the tokens.

Paper: arXiv 2312.03694, section 3. Official code: umbertocappellazzo/PETL_AST, which throws the output of its LayerNorm
away on spectrogram transformers; here it is used, as the text says.
Ours: an artifact holds no norm. What LayerNorm learns is folded into W_1 and BatchNorm with its running statistics into
the convolution, so what runs is half as much; sequences are taken as they come, class tokens and all.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt.edits import Edit, Form
from polyadapt.errors import UserError
from polyadapt.methods.base import Method
from polyadapt.model import Model
from polyadapt_speech.conformer.card import ConformerOptions
from polyadapt_speech.span_modules import span_modules


class GatedConvolution(nn.Module):
    """What an artifact keeps of an adapter.

    Args:
        n_in, n_out: widths of what is read and made.
        rank: inner width r.
        kernel: width of the convolution; of an even one the longer half lies behind the token, as torch's "same" has it.

    Shape:
        u [batch, tokens, n_in] -> [batch, tokens, n_out].
    """

    def __init__(self, n_in: int, n_out: int, rank: int, kernel: int) -> None:
        super().__init__()
        # Values come from `ConformerAdapter` or from a file; on the meta device torch draws none from the global generator.
        self.expand = nn.Linear(n_in, 2 * rank, device="meta").to_empty(device="cpu")
        self.conv = nn.Conv1d(rank, rank, kernel, groups=rank, device="meta").to_empty(device="cpu")
        self.project = nn.Linear(rank, n_out, device="meta").to_empty(device="cpu")

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        inner = F.glu(self.expand(F.layer_norm(u, u.shape[-1:])), dim=-1).transpose(1, 2)  # (B, r, T)
        inner = F.silu(along_tokens(self.conv, inner)).transpose(1, 2)  # (B, T, r)
        result: torch.Tensor = self.project(inner)  # (B, T, n_out)
        return result


class ConformerAdapter(nn.Module):
    """The adapter as it trains: with a LayerNorm and a BatchNorm of its own.

    Args:
        n_in, n_out: widths of what is read and made.
        rank: inner width r.
        kernel: width of the convolution.
        generator: of the starting values: torch's own for its layers, zeros in the last.

    Shape:
        u [batch, tokens, n_in] -> [batch, tokens, n_out].
    """

    def __init__(self, n_in: int, n_out: int, rank: int, kernel: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n_in)
        self.expand = nn.Linear(n_in, 2 * rank, device="meta").to_empty(device="cpu")
        self.conv = nn.Conv1d(rank, rank, kernel, groups=rank, device="meta").to_empty(device="cpu")
        self.batch_norm = nn.BatchNorm1d(rank)
        self.project = nn.Linear(rank, n_out, device="meta").to_empty(device="cpu")
        for layer, inputs in ((self.expand, n_in), (self.conv, kernel)):
            for value in layer.parameters():
                nn.init.uniform_(value, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
        for value in self.project.parameters():
            nn.init.zeros_(value)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        inner = F.glu(self.expand(self.norm(u)), dim=-1).transpose(1, 2)  # (B, r, T)
        inner = F.silu(self._normed(along_tokens(self.conv, inner))).transpose(1, 2)  # (B, T, r)
        result: torch.Tensor = self.project(inner)  # (B, T, n_out)
        return result

    def _normed(self, inner: torch.Tensor) -> torch.Tensor:
        """BatchNorm; a clip of one frame that runs alone has no statistics, and takes those of the others."""
        norm = self.batch_norm
        if not self.training or inner.shape[0] * inner.shape[2] > 1:
            found: torch.Tensor = norm(inner)
            return found
        return F.batch_norm(inner, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps)

    @torch.no_grad()
    def lowered(self) -> GatedConvolution:
        """The same function of evaluation mode, norms folded into the layers behind and before them."""
        folded = GatedConvolution(self.expand.in_features, self.project.out_features, self.conv.out_channels, self.conv.kernel_size[0]).to(self.expand.weight.device)
        factor = self.batch_norm.weight / (_given(self.batch_norm.running_var) + self.batch_norm.eps).sqrt()  # (r,)
        values = {
            "expand.weight": self.expand.weight * self.norm.weight,
            "expand.bias": self.expand.bias + self.expand.weight @ self.norm.bias,
            "conv.weight": self.conv.weight * factor[:, None, None],
            "conv.bias": (_given(self.conv.bias) - _given(self.batch_norm.running_mean)) * factor + self.batch_norm.bias,
            "project.weight": self.project.weight,
            "project.bias": self.project.bias,
        }
        folded.load_state_dict(values)
        return folded


class Conformer(Method):
    """The method `conformer`."""

    def form(self, model: Model, options: ConformerOptions, generator: torch.Generator) -> Form:
        """A fresh form.

        Raises:
            UserError: no site, or only sites of decoders.
        """
        return span_modules(self.card.id, model, options, lambda n_in, n_out: ConformerAdapter(n_in, n_out, options.rank, options.kernel, generator))

    def structure(self, edit: Edit, options: ConformerOptions) -> nn.Module:
        """An adapter of the sizes of an edit's tensors.

        Raises:
            UserError: they are not those of an adapter.
        """
        try:
            n_in, (rank, _, kernel), n_out = edit.tensors["expand-weight"].shape[1], edit.tensors["conv-weight"].shape, edit.tensors["project-weight"].shape[0]
        except (KeyError, ValueError, IndexError) as error:
            raise UserError(f"{edit.key}: expected tensors of a conformer adapter (expand-, conv-, project-weight), found {', '.join(sorted(edit.tensors))}") from error
        return GatedConvolution(n_in, n_out, rank, kernel)


def along_tokens(conv: nn.Conv1d, inner: torch.Tensor) -> torch.Tensor:
    """A convolution whose output is as long as its input [batch, channels, tokens]: of what it sees the smaller half lies before."""
    before = (conv.kernel_size[0] - 1) // 2
    result: torch.Tensor = conv(F.pad(inner, (before, conv.kernel_size[0] - 1 - before)))
    return result


def _given(value: torch.Tensor | None) -> torch.Tensor:
    assert value is not None
    return value
