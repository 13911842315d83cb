"""Monotonic alignment search: the most likely way to lay a text along its recording.

Paper: Kim et al., Glow-TTS, arXiv 2005.11129, section 3.2 and algorithm 1. Every token lasts one frame at least, in order.
The recursion over frames runs for all tokens and rows of a batch at once.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from polyadapt.errors import UserError
from polyadapt_speech.usat.network.precision import in_float32


def log_likelihood(z: torch.Tensor, mean: torch.Tensor, log_deviation: torch.Tensor) -> torch.Tensor:
    """Log density of every frame under every token's normal prior, with the square multiplied out into matrix products.

    Shape:
        z [batch, channels, frames], mean and log deviation [batch, channels, tokens] -> [batch, tokens, frames].
    """
    with in_float32(z.device):
        z, mean, log_deviation = z.float(), mean.float(), log_deviation.float()
        precision = (-2 * log_deviation).exp()  # (B, C, T)
        constant = (-0.5 * math.log(2 * math.pi) - log_deviation - 0.5 * mean.square() * precision).sum(1)  # (B, T)
        linear = (mean * precision).transpose(1, 2) @ z  # (B, T, F)
        square = -0.5 * precision.transpose(1, 2) @ z.square()  # (B, T, F)
        return constant[:, :, None] + linear + square


@torch.no_grad()
def durations_by_search(scores: torch.Tensor, tokens: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Frames of every token on the best monotonic path.

    Args:
        scores: how well each frame fits each token.
        tokens: real tokens of each row.
        frames: real frames of each row.

    Shape:
        scores [batch, tokens, frames], tokens and frames int64 [batch] -> int64 [batch, tokens], of sum `frames`.

    Raises:
        UserError: a recording has fewer frames than its text has tokens, so that no path exists.
    """
    short = (frames < tokens).nonzero().flatten().tolist()
    if short:
        row = short[0]
        raise UserError(f"row {row} has {int(frames[row])} frames for {int(tokens[row])} tokens; a token lasts one frame at least: the text does not belong to the recording")
    # A loop over frames of small operations, which NumPy starts soonest; on a GPU their launches alone would take ten times as long.
    laid = _laid(scores.permute(2, 0, 1).float().cpu().numpy(), tokens.cpu().numpy(), frames.cpu().numpy())
    return torch.from_numpy(laid).to(scores.device)


def _laid(scores: NDArray[np.float32], tokens: NDArray[np.int64], frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """Frames of every token; scores [frames, batch, tokens] -> [batch, tokens]."""
    stays = _stays(scores)
    rows, token = np.arange(len(tokens)), tokens - 1  # (B,) where the path stands, from its end on
    counts = np.zeros(scores.shape[1:], np.int64)  # (B, T)
    for frame in reversed(range(len(scores))):
        real = frame < frames  # (B,)
        counts[rows, token] += real
        token = token - (real & ~stays[frame, rows, token])
    return counts


def _stays(scores: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether the best path to (frame, token) comes from the same token, bool [frames, batch, tokens]; else from the one before."""
    count, batch, tokens = scores.shape
    best = np.full((count, batch, tokens + 1), -np.inf, np.float32)  # before the first token stands one that no path reaches
    best[0, :, 1] = scores[0, :, 0]
    for frame in range(1, count):
        np.maximum(best[frame - 1, :, 1:], best[frame - 1, :, :-1], out=best[frame, :, 1:])
        best[frame, :, 1:] += scores[frame]
    stays = np.ones(scores.shape, np.bool_)
    # A token that no path has reached yet is entered from the one before.
    stays[1:] = (best[:-1, :, 1:] >= best[:-1, :, :-1]) & (best[:-1, :, 1:] > -np.inf)
    stays[:, :, 0] = True
    return stays
