"""Whisper's log-mel front end as two matrix products, so that it becomes part of an exported graph.

A windowed DFT is a convolution with cosine and sine waves; |.|^2 and the mel filters follow. The result equals
`transformers.WhisperFeatureExtractor` on a clip of that length (no padding to 30 s). Reflection at both ends is written
with flips of slices, as the clip's length is only known at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from polyadapt.errors import UserError
from polyadapt.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from polyadapt.families.base import Family
    from polyadapt.signature import Task

SAMPLE_RATE_HZ = 16000
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
MINIMUM_SAMPLES = WINDOW_SAMPLES // 2 + 1
_FLOOR = 1e-10
_RANGE = 8.0


class LogMel(nn.Module):
    """Waveform to Whisper's log-mel spectrogram.

    Args:
        bands: mel bands, 80 (or 128 for large-v3).
        output: name of the tensor that the family wants.

    Shape:
        audio float32 [batch, samples] at 16 kHz, at least 201 samples -> [batch, bands, samples // 160].

    Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", section 2.2 (25 ms windows,
    10 ms hop, log10, at most 8 below the loudest, (x + 4) / 4).
    """

    basis: torch.Tensor
    filters: torch.Tensor
    frequency_axis = 1

    def __init__(self, bands: int = 80, output: str = "mel") -> None:
        super().__init__()
        self.bands, self.output = bands, output
        self.register_buffer("basis", torch.from_numpy(dft_basis(WINDOW_SAMPLES)), persistent=False)  # (2F, 1, window)
        self.register_buffer("filters", torch.from_numpy(mel_filters(bands)), persistent=False)  # (bands, F)

    def forward(self, audio: torch.Tensor, **others: torch.Tensor) -> dict[str, torch.Tensor]:
        half = WINDOW_SAMPLES // 2
        # `narrow` states the length; a slice of a clip of unknown length has an unknown one, and cannot be traced.
        left = audio.narrow(1, 1, half).flip(1)  # (batch, 200)
        right = audio.narrow(1, audio.shape[1] - half - 1, half).flip(1)  # (batch, 200)
        padded = torch.cat([left, audio, right], dim=1).unsqueeze(1)  # (batch, 1, samples + 400)
        waves = nn.functional.conv1d(padded, self.basis, stride=HOP_SAMPLES)[..., :-1]  # (batch, 2F, frames)
        power = waves.square()
        count = self.filters.shape[1]
        power = power[:, :count] + power[:, count:]  # (batch, F, frames)
        levels = torch.matmul(self.filters, power).clamp_min(_FLOOR).log10()  # (batch, bands, frames)
        loudest = levels.amax(dim=(1, 2), keepdim=True)  # (batch, 1, 1)
        levels = torch.maximum(levels, loudest - _RANGE)
        return {**others, self.output: (levels + 4.0) / 4.0}

    def output_lengths(self, lengths: torch.Tensor) -> torch.Tensor:
        """Frames of sounds of so many samples."""
        return torch.div(lengths, HOP_SAMPLES, rounding_mode="floor")

    def signature(self, inner: Signature) -> Signature:
        """The family's signature with the waveform in place of the spectrogram."""
        audio = TensorSpec("audio", ("batch", "samples"), "float32", "mono waveform at 16 kHz, at least 201 samples", "full scale = 1")
        return Signature(tuple(audio if spec.name == self.output else spec for spec in inner.inputs), inner.outputs)

    def example(self, sizes: Mapping[str, int], generator: torch.Generator, family: Family, backbone: nn.Module, task: Task) -> dict[str, torch.Tensor]:
        """Seeded noise of `sizes["samples"]` samples (or `frames` times the hop) beside the family's other inputs."""
        samples = sizes.get("samples", HOP_SAMPLES * sizes.get("frames", 100))
        if samples < MINIMUM_SAMPLES:
            raise UserError(f"{samples} samples are too few for a spectrogram; give at least {MINIMUM_SAMPLES}")
        inner: dict[str, Any] = family.example(backbone, task, {**sizes, "frames": samples // HOP_SAMPLES}, generator)
        batch = inner[self.output].shape[0]
        others = {name: value for name, value in inner.items() if name != self.output}
        return {"audio": 0.1 * torch.randn(batch, samples, generator=generator), **others}


def dft_basis(window: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Cosine and sine waves under a periodic Hann window, float32 [2 * (window // 2 + 1), 1, window]."""
    time = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * time / window)
    # The product of indices is reduced first: cos of a large angle would lose digits.
    angle = 2 * np.pi * (np.outer(np.arange(window // 2 + 1), time) % window) / window  # (F, window)
    waves = np.concatenate([np.cos(angle), np.sin(angle)]) * hann  # (2F, window)
    return waves[:, None, :].astype(np.float32)


def mel_filters(bands: int, sample_rate_hz: int = SAMPLE_RATE_HZ, window: int = WINDOW_SAMPLES) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Triangles of equal area on Slaney's mel scale, from 0 Hz to half the rate, float32 [bands, window // 2 + 1].

    Source: Slaney, "Auditory Toolbox" (1998): linear below 1 kHz, then 27 steps for a factor 6.4.
    """
    edges_hz = _mel_to_hz(np.linspace(0.0, _hz_to_mel(sample_rate_hz / 2), bands + 2))
    bins_hz = np.linspace(0.0, sample_rate_hz / 2, window // 2 + 1)
    rise = (bins_hz - edges_hz[:-2, None]) / np.diff(edges_hz)[:-1, None]  # (bands, F)
    fall = (edges_hz[2:, None] - bins_hz) / np.diff(edges_hz)[1:, None]  # (bands, F)
    area = 2.0 / (edges_hz[2:] - edges_hz[:-2])
    return (np.maximum(0.0, np.minimum(rise, fall)) * area[:, None]).astype(np.float32)


_LINEAR_HZ = 200.0 / 3.0
_KNEE_HZ = 1000.0
_LOG_STEP = np.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    if hz < _KNEE_HZ:
        return hz / _LINEAR_HZ
    return float(_KNEE_HZ / _LINEAR_HZ + np.log(hz / _KNEE_HZ) / _LOG_STEP)


def _mel_to_hz(mel: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    knee = _KNEE_HZ / _LINEAR_HZ
    return np.where(mel < knee, mel * _LINEAR_HZ, _KNEE_HZ * np.exp((mel - knee) * _LOG_STEP))
