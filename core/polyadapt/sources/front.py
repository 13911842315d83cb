"""Pre-processing that belongs into the graph: pictures and waveforms normalised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from polyadapt.errors import UserError
from polyadapt.signature import Signature, TensorSpec


class ImageNormalize(nn.Module):
    """Subtract the mean and divide by the deviation of every channel; other inputs pass unchanged.

    Args:
        mean: of each channel, in the unit of pictures whose values lie in 0..1.
        deviation: of each channel, above zero.
        name: the input that is normalised.

    Shape:
        float32 [batch, channel, height, width] -> the same.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, mean: Sequence[float], deviation: Sequence[float], name: str = "image") -> None:
        super().__init__()
        if len(mean) != len(deviation) or min(deviation) <= 0:
            raise UserError(f"mean {tuple(mean)} and deviation {tuple(deviation)} need one value a channel, deviations above zero")
        self.name = name
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {**inputs, self.name: (inputs[self.name] - self.mean) / self.deviation}

    def signature(self, inner: Signature) -> Signature:
        """The family's signature, saying that values lie in 0..1."""
        return Signature(
            tuple(TensorSpec(spec.name, spec.shape, spec.dtype, "picture, RGB, values from 0 to 1", "full scale = 1") if spec.name == self.name else spec for spec in inner.inputs),
            inner.outputs,
        )


class WaveNormalize(nn.Module):
    """Bring every waveform to mean 0 and variance 1, as wav2vec 2.0 checkpoints expect it.

    Zeros at the end of a row count as padding: they enter neither mean nor variance and stay zero, so a clip in a
    padded batch is normalised as it is alone.

    Shape:
        audio float32 [batch, samples] -> the same.

    Source: `transformers.Wav2Vec2FeatureExtractor` with `do_normalize` (its 1e-7 under the root).
    """

    def forward(self, audio: torch.Tensor, **others: torch.Tensor) -> dict[str, torch.Tensor]:
        heard = (audio != 0).to(audio.dtype).flip(1).cumsum(1).flip(1)  # (batch, samples): how many nonzero samples follow
        real = (heard > 0).to(audio.dtype)
        count = real.sum(1, keepdim=True).clamp_min(1.0)  # (batch, 1)
        mean = audio.sum(1, keepdim=True) / count  # (batch, 1)
        centred = (audio - mean) * real
        variance = centred.square().sum(1, keepdim=True) / count  # (batch, 1)
        return {**others, "audio": centred / (variance + 1e-7).sqrt()}

    def signature(self, inner: Signature) -> Signature:
        """The family's signature with a waveform of any loudness."""
        audio = TensorSpec("audio", ("batch", "samples"), "float32", "mono waveform at 16 kHz, zeros behind its end", "full scale = 1")
        return Signature(tuple(audio if spec.name == "audio" else spec for spec in inner.inputs), inner.outputs)
