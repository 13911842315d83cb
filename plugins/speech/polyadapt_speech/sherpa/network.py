"""A voice with the inputs of Piper's graphs, which sherpa-onnx feeds: ids, their number, and three scales."""

from __future__ import annotations

import torch
from torch import nn

from polyadapt.signature import Signature, TensorSpec
from polyadapt_speech.usat.network.voice import Manner, Voice

SIGNATURE = Signature(
    (
        TensorSpec("input", ("batch", "tokens"), "int64", "ids of phonemes"),
        TensorSpec("input_lengths", ("batch",), "int64", "real tokens of each row"),
        TensorSpec("scales", (3,), "float32", "noise scale, length scale, noise scale of durations"),
    ),
    (TensorSpec("output", ("batch", "channel", "samples"), "float32", "sound, in -1..1"),),
)


class PiperVoice(nn.Module):
    """A voice that draws its noise inside the graph.

    Args:
        voice: of one speaker, or with a speaker vector.
        speaker: its vector [size]; None for a voice without speakers.

    Shape:
        input int64 [batch, tokens], input_lengths int64 [batch], scales [3] -> output [batch, 1, samples].
    """

    def __init__(self, voice: Voice, speaker: torch.Tensor | None) -> None:
        super().__init__()
        self.voice = voice
        self.register_buffer("speaker", speaker)

    def forward(self, input: torch.Tensor, input_lengths: torch.Tensor, scales: torch.Tensor) -> dict[str, torch.Tensor]:
        batch, tokens = input.shape
        noise_scale, length_scale, duration_scale = (scales[index].expand(batch) for index in range(3))  # (B,) each
        mask = (torch.arange(tokens, device=input.device)[None, :] < input_lengths[:, None]).to(torch.int64)  # (B, T)
        speaker = self.speaker
        manner = Manner(
            duration_noise=torch.randn(batch, 2, tokens) * duration_scale[:, None, None],
            length_scale=length_scale,
            speaker=None if speaker is None else speaker.expand(batch, -1),  # type: ignore[operator]
            noise_scale=noise_scale,
        )
        waveform, _, _ = self.voice(input, mask, manner)  # (B, S)
        return {"output": waveform.unsqueeze(1)}  # (B, 1, S)
