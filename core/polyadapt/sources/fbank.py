"""Kaldi's log-mel filter banks as one convolution and one matrix product, for spectrogram transformers (AST).

Everything that Kaldi does to a frame before |.|^2 is linear: taking its mean off, pre-emphasis, the window, the DFT. So
it is one matrix, applied with a stride. Equal to `torchaudio.compliance.kaldi.fbank` with the settings that
`transformers.ASTFeatureExtractor` uses (25 ms Hann windows, 10 ms hop, no dither, 20 Hz to half the rate).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from polyadapt.errors import UserError
from polyadapt.signature import Signature, TensorSpec
from polyadapt.sources.processors import LONGEST_S, audio_spec

if TYPE_CHECKING:
    from polyadapt.families.base import Family
    from polyadapt.signature import Task

SAMPLE_RATE_HZ = 16000
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
_DFT_SAMPLES = 512
_PRE_EMPHASIS = 0.97
_LOW_HZ = 20.0
_FLOOR = float(np.finfo(np.float32).eps)


class KaldiFbank(nn.Module):
    """Waveform to normalised log-mel frames of a fixed number.

    Args:
        bands: mel bands.
        frames: frames that the family wants: shorter clips get zeros before normalisation, longer ones are cut.
        mean: of the training data.
        deviation: of the training data; values are divided by twice this.
        output: name of the tensor that the family wants.

    Shape:
        audio float32 [batch, samples] at 16 kHz, at least 400 samples -> [batch, frames, bands].

    Source: Gong et al., "AST: Audio Spectrogram Transformer", arXiv 2104.01778, section 2.
    """

    basis: torch.Tensor
    filters: torch.Tensor
    frequency_axis = 2

    def __init__(self, bands: int, frames: int, mean: float, deviation: float, output: str = "input_values") -> None:
        super().__init__()
        self.bands, self.frames, self.mean, self.deviation, self.output = bands, frames, mean, deviation, output
        self.register_buffer("basis", torch.from_numpy(frame_basis()), persistent=False)  # (2F, 1, window)
        self.register_buffer("filters", torch.from_numpy(kaldi_filters(bands)), persistent=False)  # (F, bands)

    def forward(self, audio: torch.Tensor, **others: torch.Tensor) -> dict[str, torch.Tensor]:
        waves = nn.functional.conv1d(audio.unsqueeze(1), self.basis, stride=HOP_SAMPLES).square()  # (batch, 2F, heard)
        count = self.filters.shape[0]
        power = (waves[:, :count] + waves[:, count:]).transpose(1, 2)  # (batch, heard, F)
        levels = torch.matmul(power, self.filters).clamp_min(_FLOOR).log()  # (batch, heard, bands)
        silence = levels.new_zeros(levels.shape[0], self.frames, self.bands)
        levels = torch.cat([levels, silence], dim=1)[:, : self.frames]  # (batch, frames, bands)
        return {**others, self.output: (levels - self.mean) / (2.0 * self.deviation)}

    def signature(self, inner: Signature) -> Signature:
        """The family's signature with the waveform in place of the spectrogram."""
        audio = TensorSpec("audio", ("batch", "samples"), "float32", "mono waveform at 16 kHz, at least 400 samples", "full scale = 1")
        return Signature(tuple(audio if spec.name == self.output else spec for spec in inner.inputs), inner.outputs)

    def example(self, sizes: Mapping[str, int], generator: torch.Generator, family: Family, backbone: nn.Module, task: Task) -> dict[str, torch.Tensor]:
        """Seeded noise of `sizes["samples"]` samples (by default half a second more for each row, so that sizes differ) beside the family's other inputs."""
        samples = sizes.get("samples", SAMPLE_RATE_HZ // 2 * (1 + sizes["batch"]))
        if samples < WINDOW_SAMPLES:
            raise UserError(f"{samples} samples are too few for a spectrogram; give at least {WINDOW_SAMPLES}")
        inner: dict[str, Any] = family.example(backbone, task, sizes, generator)
        batch = inner[self.output].shape[0]
        others = {name: value for name, value in inner.items() if name != self.output}
        return {"audio": 0.1 * torch.randn(batch, samples, generator=generator), **others}


def heard_spec(frames: int, maximum_seconds: float = LONGEST_S) -> dict[str, Any]:
    """Recordings for so many frames, which hear no further than to the end of the last one's window.

    Args:
        frames: of `KaldiFbank`.
        maximum_seconds: what was asked for; the frames may hear less.
    """
    return audio_spec(sample_rate_hz=SAMPLE_RATE_HZ, maximum_seconds=min(maximum_seconds, ((frames - 1) * HOP_SAMPLES + WINDOW_SAMPLES) / SAMPLE_RATE_HZ))


def frame_basis() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Mean removal, pre-emphasis, symmetric Hann window and DFT of one frame, float32 [2F, 1, window], F = 256.

    The DFT's last bin (half the rate) has no weight in any mel band, so it is left out.
    """
    window = WINDOW_SAMPLES
    time = np.arange(window)
    centre = np.eye(window) - 1.0 / window
    emphasis = np.eye(window) - _PRE_EMPHASIS * np.eye(window, k=-1)
    emphasis[0, 0] = 1.0 - _PRE_EMPHASIS  # the sample before the first is the first itself
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * time / (window - 1))
    angle = 2 * np.pi * (np.outer(np.arange(_DFT_SAMPLES // 2), time) % _DFT_SAMPLES) / _DFT_SAMPLES  # (F, window)
    waves = np.concatenate([np.cos(angle), np.sin(angle)])  # (2F, window)
    basis = (waves * hann) @ emphasis @ centre  # (2F, window)
    return basis[:, None, :].astype(np.float32)


def kaldi_filters(bands: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Triangles of height 1, straight on the mel scale 1127 ln(1 + f / 700), float32 [F, bands]."""
    edges = np.linspace(_mel(np.array(_LOW_HZ)), _mel(np.array(SAMPLE_RATE_HZ / 2)), bands + 2)
    bins = _mel(np.arange(_DFT_SAMPLES // 2) * SAMPLE_RATE_HZ / _DFT_SAMPLES)[:, None]  # (F, 1)
    rise = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])  # (F, bands)
    fall = (edges[2:] - bins) / (edges[2:] - edges[1:-1])  # (F, bands)
    filters: np.ndarray[Any, np.dtype[np.float32]] = np.maximum(0.0, np.minimum(rise, fall)).astype(np.float32)
    return filters


def _mel(hz: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return 1127.0 * np.log1p(hz / 700.0)
