"""Options of spectrogram transformers: another length than the checkpoint's, and the mean over all tokens as features.

Source: Gong et al., AST, arXiv 2104.01778, section 2.2: a shorter position table is cut from the middle of the longer one,
a longer one is interpolated bilinearly over (frequency, time). The mean over tokens is that of arXiv 2312.03694.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt.errors import UserError
from polyadapt.sources.options import HfOptions

PREFIX = 2  # class and distillation token stand before the patches
MODEL_TYPE = "audio-spectrogram-transformer"


def adjusted(backbone: Any, options: HfOptions, reference: str) -> nn.Module:
    """The backbone as `frames` and `pooling` ask for it, changed in place; as it is where they ask for nothing.

    Raises:
        UserError: it is no spectrogram transformer, or the frames are fewer than a patch is long.
    """
    if options.frames is not None or options.pooling:
        if backbone.config.model_type != MODEL_TYPE:
            raise UserError(f"{reference} is of type {backbone.config.model_type!r}, and the options frames and pooling are for spectrogram transformers; leave them out")
        if options.pooling:
            backbone.config.pooling = options.pooling
        if options.frames is not None and options.frames != backbone.config.max_length:
            _resize(backbone, options.frames, reference)
    made: nn.Module = backbone
    return made


def _resize(backbone: Any, frames: int, reference: str) -> None:
    config = backbone.config
    if frames < config.patch_size:
        raise UserError(f"{reference}: {frames} frames are fewer than the {config.patch_size} of one patch; ask for more")
    embeddings = getattr(backbone, "audio_spectrogram_transformer", backbone).embeddings
    grid = embeddings.get_shape(config)
    config.max_length = frames
    table = fitted(embeddings.position_embeddings.detach(), grid, embeddings.get_shape(config)[1])
    embeddings.position_embeddings = nn.Parameter(table, requires_grad=embeddings.position_embeddings.requires_grad)


def fitted(table: torch.Tensor, grid: tuple[int, int], columns: int) -> torch.Tensor:
    """Learned positions for another number of patches along time.

    Args:
        table: of the checkpoint.
        grid: its patches along frequency and time.
        columns: patches along time that are wanted.

    Shape:
        table [1, 2 + rows * grid columns, width] -> [1, 2 + rows * columns, width]; patches run along time first.
    """
    rows, known = grid
    patches = table[:, PREFIX:].reshape(1, rows, known, -1).permute(0, 3, 1, 2)  # (1, width, rows, known)
    if columns <= known:
        start = known // 2 - columns // 2
        patches = patches[..., start : start + columns]
    else:
        patches = F.interpolate(patches, size=(rows, columns), mode="bilinear")
    return torch.cat([table[:, :PREFIX], patches.flatten(2).transpose(1, 2)], dim=1)  # (1, 2 + rows * columns, width)
