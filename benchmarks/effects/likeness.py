"""How alike two voices are, by an encoder that no voice here was trained with: resemblyzer's weights in a network of our own.

Generalized end-to-end loss for speaker verification, Wan et al., arXiv 1710.10467: mel frames, three LSTM layers, a linear
layer, ReLU, length 1. Windows of 1.6 s, 1.3 of them a second, are averaged. resemblyzer 0.1.4 (Apache-2.0) also leaves
silence out by webrtcvad; here quiet ends are cut off instead, so figures differ a little from that package's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from polyadapt.sources.card import PackagedFile, WeightPackage
from polyadapt.sources.fetch import fetch
from polyadapt.sources.logmel import dft_basis, mel_filters
from polyadapt_runtime.resampling import resample

REFERENCE, FILE = "data:resemblyzer", "pretrained.pt"
PACKAGE = WeightPackage(
    requirements=("resemblyzer==0.1.4",),
    wheel_sha256=("8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f",),
    files=(PackagedFile(f"resemblyzer/{FILE}", "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e", FILE, 17090379),),
    size_bytes=15747704,
    licence="Apache-2.0",
)
RATE_HZ, WINDOW, HOP, BANDS, SIZE = 16000, 400, 160, 40, 256
FRAMES, STEP, LEAST_COVER = 160, 77, 0.75  # of a window; 77 frames of 10 ms are 1.3 windows a second
LOUDNESS = 10 ** (-30 / 20)  # root mean square to which quiet clips are raised
QUIET = 10 ** (-40 / 20)  # of the loudest frame: less at the ends is cut off


class Likeness(nn.Module):
    """Sounds to vectors of length 1.

    Shape:
        mel [windows, 160, 40] -> [windows, 256].
    """

    basis: torch.Tensor
    filters: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(BANDS, SIZE, 3, batch_first=True)
        self.linear = nn.Linear(SIZE, SIZE)
        self.register_buffer("basis", torch.from_numpy(dft_basis(WINDOW)), persistent=False)
        self.register_buffer("filters", torch.from_numpy(mel_filters(BANDS, RATE_HZ, WINDOW)), persistent=False)

    @classmethod
    def fetched(cls) -> Likeness:
        """With the published weights, from the cache or the package index."""
        model = cls()
        state = torch.load(Path(fetch(REFERENCE, PACKAGE)) / FILE, map_location="cpu", weights_only=True)["model_state"]
        model.load_state_dict({name: value for name, value in state.items() if name.startswith(("lstm.", "linear."))})
        return model.eval()

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        _, (hidden, _) = self.lstm(mel)
        return F.normalize(self.linear(hidden[-1]).relu(), dim=-1)

    def mel(self, samples: np.ndarray) -> torch.Tensor:
        """Power in mel bands, [frames, 40]; frame i is centred on sample 160 i."""
        padded = F.pad(torch.from_numpy(samples)[None, None], (WINDOW // 2, WINDOW // 2))
        real, imaginary = F.conv1d(padded, self.basis, stride=HOP).chunk(2, 1)  # (1, F, frames) each
        return (self.filters @ (real.square() + imaginary.square())[0]).T  # (frames, bands)

    @torch.no_grad()
    def embed(self, samples: np.ndarray, rate_hz: int) -> np.ndarray:
        """The vector of one sound, [256]."""
        sound = prepared(resample(np.asarray(samples, np.float32), rate_hz, RATE_HZ))
        starts = windows_of(len(sound))
        sound = np.pad(sound, (0, max(0, (starts[-1] + FRAMES) * HOP - len(sound))))
        mel = self.mel(sound)
        mean = self(torch.stack([mel[start : start + FRAMES] for start in starts])).mean(0)
        return F.normalize(mean, dim=0).numpy()

    def centre(self, sounds: Sequence[np.ndarray], rate_hz: int) -> np.ndarray:
        """The vector of a voice: the mean of its sounds', of length 1."""
        mean = np.mean([self.embed(samples, rate_hz) for samples in sounds], axis=0)
        return mean / np.linalg.norm(mean)


def prepared(samples: np.ndarray) -> np.ndarray:
    """Quiet ends cut off, and raised to the usual loudness where it is softer."""
    frames = np.abs(samples[: len(samples) // HOP * HOP].reshape(-1, HOP)).max(1)
    loud = np.flatnonzero(frames > QUIET * frames.max(initial=0.0))
    if loud.size:
        samples = samples[loud[0] * HOP : (loud[-1] + 1) * HOP]
    level = float(np.sqrt(np.mean(np.square(samples)))) if samples.size else 0.0
    return np.asarray(samples * max(1.0, LOUDNESS / max(level, 1e-9)), np.float32)


def windows_of(samples: int) -> list[int]:
    """First frames of the windows; the last counts where sound covers three quarters of it."""
    frames = samples // HOP + 1
    starts = list(range(0, max(1, frames - FRAMES + STEP + 1), STEP))
    cover = (samples - starts[-1] * HOP) / (FRAMES * HOP)
    return starts[:-1] if len(starts) > 1 and cover < LEAST_COVER else starts
