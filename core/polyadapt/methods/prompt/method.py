"""Prompt tuning: P learned tokens [P, width] in the stream; deep prompts overwrite them before later blocks.

Papers: Lester et al. (arXiv 2104.08691), Visual Prompt Tuning (2203.12119, official code KMnP/vpt); in the place of the
distillation token 2312.03694.
Start: uniform +-sqrt(6 / (fan_in + width)) as in VPT, but with fan_in = width for every stream (ours; VPT's 3 x 16 x 16 of a
patch is the width of a base model); or rows of the embedding table.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from polyadapt.edits import Edit, Form
from polyadapt.edits.kinds.prepend import INSTEAD
from polyadapt.errors import UserError
from polyadapt.methods.base import Method
from polyadapt.methods.prompt.card import PromptOptions
from polyadapt.model import Model
from polyadapt.sites import StreamPort, module_name


class PromptForm(Form):
    """Tokens per stream; with `instead` the first of them replaces the base's token in front of the others."""

    def __init__(self, ports: list[StreamPort], options: PromptOptions, generator: torch.Generator) -> None:
        super().__init__()
        self._sites = [port.site for port in ports]
        self._instead = options.place == "distillation"
        self.tokens = nn.ParameterDict({module_name(port.site): nn.Parameter(start(port, options, generator)) for port in ports})

    def edits(self) -> list[Edit]:
        return [Edit(site, "prepend", self._tensors(self.tokens[module_name(site)]), INSTEAD if self._instead else "") for site in self._sites]

    def _tensors(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"tokens": tokens[1:], "first": tokens[0], "keep": tokens.new_zeros(1)} if self._instead else {"tokens": tokens}


class Prompt(Method):
    """The method `prompt`."""

    def form(self, model: Model, options: PromptOptions, generator: torch.Generator) -> Form:
        """A fresh form.

        Raises:
            UserError: no such tower, no streams for deep prompts, or no distillation token to stand in for.
        """
        family = model.family.card.id
        streams = [port for site, port in model.ports.streams.items() if not options.tower or site.startswith(f"{options.tower}.")]
        if not streams:
            raise UserError(f"no stream of tower {options.tower!r} in family {family}; streams: {', '.join(model.ports.streams)}")
        if options.deep and len(streams) == 1:
            raise UserError(f"family {family!r} has no streams behind its first block, so no deep prompts; use prefix, which acts in every block")
        if options.place == "distillation" and streams[0].offset != 2:
            raise UserError(f"this model of family {family!r} has no distillation token behind its class token, whose place a prompt could take; use place='behind'")
        return PromptForm(streams if options.deep else [port for port in streams if port.index == 0], options, generator)


def start(port: StreamPort, options: PromptOptions, generator: torch.Generator) -> torch.Tensor:
    """First values of a prompt [P, width]."""
    if options.init == "vocabulary" or (options.init == "auto" and port.embed is not None):
        if port.embed is None:
            raise UserError(f"the stream {port.site} has no word embeddings to start from; use init='uniform'")
        table = port.embed.weight
        assert isinstance(table, torch.Tensor)
        rows = torch.randint(table.shape[0], (options.length,), generator=generator)
        return table.detach()[rows].clone().float()
    bound = math.sqrt(6.0 / (2 * port.width))
    return (torch.rand(options.length, port.width, generator=generator) * 2 - 1) * bound
