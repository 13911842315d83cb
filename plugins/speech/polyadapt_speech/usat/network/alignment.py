"""Monotonic alignment search: the most likely way to lay a text along its recording.

Paper: Kim et al., Glow-TTS, arXiv 2005.11129, section 3.2 and algorithm 1. Every token lasts one frame at least, in order.
The recursion over frames runs for all tokens and rows of a batch at once.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from polyadapt.errors import UserError


def log_likelihood(z: torch.Tensor, mean: torch.Tensor, log_deviation: torch.Tensor) -> torch.Tensor:
    """Log density of every frame under every token's normal prior, with the square multiplied out into matrix products.

    Shape:
        z [batch, channels, frames], mean and log deviation [batch, channels, tokens] -> [batch, tokens, frames].
    """
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
    # A loop over frames of small operations: on a GPU their launches alone would take ten times as long.
    device, scores, tokens, frames = scores.device, scores.cpu(), tokens.cpu(), frames.cpu()
    stays = _decide(scores)
    token = tokens - 1  # (B,) where the path stands, from its end on
    counts = torch.zeros(scores.shape[:2], dtype=torch.int64)  # (B, T)
    for frame in reversed(range(scores.shape[2])):
        real = frame < frames  # (B,)
        counts.scatter_add_(1, token[:, None], real.to(torch.int64)[:, None])
        moves = real & ~stays[:, :, frame].gather(1, token[:, None]).squeeze(1)
        token = torch.where(moves, token - 1, token)
    return counts.to(device)


def _decide(scores: torch.Tensor) -> torch.Tensor:
    """Whether the best path to (token, frame) comes from the same token, bool [batch, tokens, frames]; else from the one before."""
    batch, tokens, frames = scores.shape
    best = scores.new_full((batch, tokens), -math.inf)
    best[:, 0] = scores[:, 0, 0]
    stays = torch.ones(batch, tokens, frames, dtype=torch.bool)
    for frame in range(1, frames):
        before = F.pad(best[:, :-1], (1, 0), value=-math.inf)  # (B, T)
        # A token that no path has reached yet is entered from the one before.
        stays[:, :, frame] = (best >= before) & (best > -math.inf)
        stays[:, 0, frame] = True
        best = torch.maximum(best, before) + scores[:, :, frame]
    return stays
