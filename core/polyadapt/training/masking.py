"""SpecAugment: stretches of bands and of frames are blanked in the spectrograms that training sees, anew in every epoch.

Paper: Park et al., "SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition", arXiv 1904.08779,
section 2 without time warping; one mask of each sort, as the recipes of spectrogram transformers have it. Masks are 0, as
both of our front ends give values around 0. A frame mask is at most half of the clip (the paper's bound p; 0.5 is ours).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from polyadapt.errors import UserError
from polyadapt.model import Model
from polyadapt.training.settings import TrainSettings

GREATEST_SHARE = 0.5


class Masking:
    """Masks behind a spectrogram front. Draws follow from (seed, epoch, row) alone, so that a resumed run sees the same.

    Args:
        front: gives the spectrogram under `front.output`: its bands lie at `front.frequency_axis`, which is one of the last two, and
            its frames at the other. Channels of a picture are masked alike.
        bands: most bands of a mask.
        frames: most frames of a mask.
        seed: of the run.
    """

    def __init__(self, front: Any, bands: int, frames: int, seed: int) -> None:
        self._output: str = front.output
        self._frequency: int = front.frequency_axis
        self._bands, self._frames, self._seed = bands, frames, seed

    def __call__(self, inputs: Mapping[str, torch.Tensor], rows: Sequence[int], epoch: int) -> dict[str, torch.Tensor]:
        """What the front gave, with the spectrogram masked.

        Shape:
            [batch, bands, frames], [batch, frames, bands] or [batch, channels, bands, frames] -> the same.
        """
        spectrogram = inputs[self._output]
        bands_last = self._frequency == spectrogram.ndim - 1
        frames, bands = spectrogram.shape[-2:] if bands_last else spectrogram.shape[:-3:-1]
        kept = np.ones((len(spectrogram), *[1] * (spectrogram.ndim - 3), *spectrogram.shape[-2:]), dtype=np.bool_)
        for place, row in enumerate(rows):
            draws = np.random.default_rng([self._seed, epoch, row])
            clip = kept[place].reshape(kept.shape[-2:])
            clip = clip.T if bands_last else clip  # (bands, frames), a view
            clip[_stretch(draws, bands, self._bands)] = False
            clip[:, _stretch(draws, frames, min(self._frames, int(frames * GREATEST_SHARE)))] = False
        return {**inputs, self._output: spectrogram * torch.from_numpy(kept).to(spectrogram.device, spectrogram.dtype)}


def find_masking(model: Model, settings: TrainSettings, seed: int) -> Masking | None:
    """The masks that the settings ask for.

    Raises:
        UserError: they ask for masks, and the model has no spectrogram in its front.
    """
    if not settings.mask_bands and not settings.mask_frames:
        return None
    front: Any = model.module.front
    if not hasattr(front, "frequency_axis"):
        raise UserError(f"train.mask_bands and mask_frames need a spectrogram, and {model.reference} computes none from its input; set both to 0")
    return Masking(front, settings.mask_bands, settings.mask_frames, seed)


def _stretch(draws: np.random.Generator, size: int, most: int) -> slice:
    """A stretch of at most so many places, none included."""
    width = int(draws.integers(min(most, size) + 1))
    start = int(draws.integers(size - width + 1))
    return slice(start, start + width)
