"""The method `usat`: adapters of flow and durations, and a speaker vector for fine-grained adaptation (arXiv 2404.18094).

Frozen is everything else. The paper's phoneme adapters, of its linear form, are bottlenecks beside the text encoder's attention,
where `phoneme_rank` asks for them. L_kl then moves the phonemes towards what the flow makes of a strange voice, and not the flow
alone towards the phonemes, which costs words here (docs/methods/usat.md); so they are off unless asked for (ours).
"""

from __future__ import annotations

import torch
from torch import nn

from polyadapt.edits import Edit, Form
from polyadapt.edits.form import Composite
from polyadapt.errors import UserError
from polyadapt.methods.base import Method
from polyadapt.methods.bottleneck.card import BottleneckOptions
from polyadapt.methods.bottleneck.method import BottleneckForm
from polyadapt.model import Model
from polyadapt_speech.usat.adapters import FlowAdapter, FlowForm
from polyadapt_speech.usat.card import DURATION_SITES, PLACEMENTS, UsatOptions
from polyadapt_speech.usat.network.voice import Voice
from polyadapt_speech.usat.speaker_form import SpeakerForm

PHONEME_SITES = ("encoder.block.*.attn",)


class Usat(Method):
    """The method `usat`."""

    def form(self, model: Model, options: UsatOptions, generator: torch.Generator) -> Form:
        """A fresh form.

        Raises:
            UserError: a site is no span of the flow.
        """
        sites = model.ports.select("span", options.sites or PLACEMENTS[options.placement])
        if strange := [site for site in sites if not site.startswith("flow.")]:
            raise UserError(f"usat's flow adapters stand in the flow, {strange[0]} does not; adapters of the text encoder are set by phoneme_rank")
        parts: list[Form] = [FlowForm([model.ports.spans[site] for site in sites], options.rank, options.kernel, generator)]
        if options.durations:
            predictor = [model.ports.spans[site] for site in model.ports.select("span", DURATION_SITES)]
            parts.append(FlowForm(predictor, options.rank, options.kernel, generator, options.duration_dropout))
        if options.phoneme_rank:
            bottlenecks = BottleneckOptions(rank=options.phoneme_rank, norm=True)
            spans = [model.ports.spans[site] for site in model.ports.select("span", PHONEME_SITES)]
            parts.append(BottleneckForm(spans, bottlenecks, generator))
        voice = model.backbone
        if options.speaker and isinstance(voice, Voice) and voice.config.speaker_size:
            parts.append(SpeakerForm(voice.flow, voice.config.speaker_size))
        return Composite(parts)

    def structure(self, edit: Edit, options: UsatOptions) -> nn.Module:
        """An adapter of the sizes of an edit's tensors.

        Raises:
            UserError: they are not those of an adapter.
        """
        try:
            (rank, n_in, kernel), (n_out, _, _) = edit.tensors["down-weight"].shape, edit.tensors["up-weight"].shape
        except (KeyError, ValueError) as error:
            raise UserError(f"{edit.key}: expected tensors of a flow adapter (norm-weight, down-weight, up-weight), found {', '.join(sorted(edit.tensors))}") from error
        return FlowAdapter(n_in, n_out, rank, kernel)
