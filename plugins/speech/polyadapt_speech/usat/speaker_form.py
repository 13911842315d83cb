"""The adaptive speaker vector of USAT, as shifts of the flow's convolutions.

A voice adds W s + c to every gated convolution of its flow, s being the speaker vector that is fed. A trained d beside it
adds W d: a shift of that convolution's output. So an exported graph needs no further input, and the shifts fold.
The duration predictor keeps to the vector that is fed: no loss would train it to do otherwise.
"""

from __future__ import annotations

import torch
from torch import nn

from polyadapt.edits import Edit, Form
from polyadapt_speech.usat.network.flow import Flow


class SpeakerForm(Form):
    """One vector, 0 at the start."""

    def __init__(self, flow: Flow, size: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(size))
        self._weights: list[tuple[str, torch.Tensor]] = []
        for block, coupling in enumerate(flow.couplings):
            wavenet = coupling.wavenet
            parts = wavenet.speaker.weight.detach()[:, :, 0].chunk(len(wavenet.dilated))  # type: ignore[operator,union-attr,arg-type]  # (2W, size) each
            self._weights += [(f"flow.block.{block}.layer.{layer}.conv.0", part) for layer, part in enumerate(parts)]

    def edits(self) -> list[Edit]:
        return [Edit(site, "shift", {"b": weight @ self.vector}) for site, weight in self._weights]
