"""Monotonic alignment search: the most likely way to lay a text along its recording.

Paper: Kim et al., Glow-TTS, arXiv 2005.11129, section 3.2 and algorithm 1. Every token lasts one frame at least, in order.
The recursion over frames runs for all tokens and rows of a batch at once.

By sound alone it cannot tell a phoneme from the blank beside it in a voice that the flow does not know: two of three tokens
then last a single frame, whatever they are. Ours: told how long tokens usually last, the search finds what is likeliest with
the durations' density in it, so the recursion runs over tokens and all durations that one may have.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from polyadapt.errors import UserError
from polyadapt_speech.usat.network.precision import in_float32

SPREAD = 0.15  # deviation of log durations from what is usual,
SILENT_TOKENS, SILENT_SPREAD = 2, 0.7  # and of so many tokens at each end, where a recording's silence lies
LONGEST_FRAMES = 64  # of a token, where a recording has no more of them


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
def durations_by_search(scores: torch.Tensor, tokens: torch.Tensor, frames: torch.Tensor, usual: torch.Tensor | None = None) -> torch.Tensor:
    """Frames of every token on the best monotonic path.

    Args:
        scores: how well each frame fits each token.
        tokens: real tokens of each row.
        frames: real frames of each row.
        usual: how long tokens last usually, at whatever pace; by sound alone when None.

    Shape:
        scores [batch, tokens, frames], tokens and frames int64 [batch], usual [batch, tokens] -> int64 [batch, tokens], of sum `frames`.

    Raises:
        UserError: a recording has fewer frames than its text has tokens, so that no path exists.
    """
    short = (frames < tokens).nonzero().flatten().tolist()
    if short:
        row = short[0]
        raise UserError(f"row {row} has {int(frames[row])} frames for {int(tokens[row])} tokens; a token lasts one frame at least: the text does not belong to the recording")
    # Loops of small operations, which NumPy starts soonest; on a GPU their launches alone would take ten times as long.
    array, sizes = scores.float().cpu().numpy(), (tokens.cpu().numpy(), frames.cpu().numpy())
    laid = _laid(array.transpose(2, 0, 1), *sizes) if usual is None else _laid_as_usual(array, usual.float().cpu().numpy(), *sizes)
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


def _laid_as_usual(scores: NDArray[np.float32], usual: NDArray[np.float32], tokens: NDArray[np.int64], frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same with the density of durations; scores [batch, tokens, frames] and usual [batch, tokens] -> [batch, tokens]."""
    batch, count, length = scores.shape
    longest = min(length, max(LONGEST_FRAMES, int((-(-2 * frames // tokens)).max())))
    densities = _densities(usual, tokens, frames, longest)  # (B, T, D)
    sums = np.concatenate([np.zeros((batch, count, 1), np.float32), scores.cumsum(2)], 2)  # (B, T, F + 1) up to each frame
    best = np.full((batch, length + 1), -np.inf, np.float32)  # of all tokens so far, by the frame where they end
    best[:, 0] = 0.0
    lasted = np.zeros((count, batch, length + 1), np.int64)
    for token in range(count):
        begun = np.pad(best - sums[:, token], ((0, 0), (longest, 0)), constant_values=-np.inf)
        ways = sliding_window_view(begun, longest, 1)[:, :-1] + densities[:, token, None, ::-1]  # (B, F + 1, D), the longest first
        chosen = ways.argmax(2)
        lasted[token] = longest - chosen
        best = np.take_along_axis(ways, chosen[..., None], 2)[..., 0] + sums[:, token]
    counts, rows, end = np.zeros((batch, count), np.int64), np.arange(batch), frames.copy()
    for token in reversed(range(count)):
        counts[:, token] = lasted[token, rows, end] * (token < tokens)
        end = end - counts[:, token]
    return counts


def _densities(usual: NDArray[np.float32], tokens: NDArray[np.int64], frames: NDArray[np.int64], longest: int) -> NDArray[np.float32]:
    """Log densities, up to a constant, of every duration from 1 to `longest`: normal in its logarithm, around what is usual at the recording's own pace."""
    place = np.arange(usual.shape[1])
    real = place < tokens[:, None]  # (B, T)
    paced = usual * (frames / (usual * real).sum(1).clip(1e-6))[:, None]
    is_silent = (place < SILENT_TOKENS) | (place >= tokens[:, None] - SILENT_TOKENS)
    away = np.log(np.arange(1, longest + 1))[None, None] - np.log(paced.clip(1.0))[..., None]  # (B, T, D)
    return np.asarray(-0.5 * (away / np.where(is_silent, SILENT_SPREAD, SPREAD)[..., None]) ** 2, np.float32)
