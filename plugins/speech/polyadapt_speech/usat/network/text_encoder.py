"""Text encoder of VITS: a transformer that gives every token the mean and the deviation of its frames' prior.

Paper: arXiv 2106.06103 section 2.2.1 and appendix A; post-norm blocks, feed-forward by convolutions as in Glow-TTS.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt_speech.usat.network.attention import RelativeAttention
from polyadapt_speech.usat.network.config import VoiceConfig


class FeedForward(nn.Module):
    """Two convolutions along the text with a ReLU between.

    Shape:
        x [batch, tokens, width], mask [batch, tokens] -> [batch, tokens, width].
    """

    def __init__(self, width: int, inner: int, kernel: int) -> None:
        super().__init__()
        self.up = nn.Conv1d(width, inner, kernel, padding=kernel // 2)
        self.down = nn.Conv1d(inner, width, kernel, padding=kernel // 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        counts = mask[:, None, :]  # (B, 1, T)
        inner = F.relu(self.up(x.transpose(1, 2) * counts))  # (B, inner, T)
        result: torch.Tensor = self.down(inner * counts).transpose(1, 2)  # (B, T, D)
        return result


class EncoderBlock(nn.Module):
    """Attention and feed-forward, each followed by a residual and a norm. Same shapes as `FeedForward`."""

    def __init__(self, config: VoiceConfig) -> None:
        super().__init__()
        self.attention = RelativeAttention(config.width, config.heads, config.window)
        self.norm1 = nn.LayerNorm(config.width)
        self.feed_forward = FeedForward(config.width, config.ffn_width, config.ffn_kernel)
        self.norm2 = nn.LayerNorm(config.width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.attention(x, mask))
        result: torch.Tensor = self.norm2(x + self.feed_forward(x, mask))
        return result


class TextEncoder(nn.Module):
    """Ids to hidden states and the prior.

    Shape:
        ids int64 [batch, tokens], mask float [batch, tokens] -> hidden [batch, width, tokens], mean and log deviation
        [batch, latent, tokens], all 0 where the mask is.
    """

    def __init__(self, config: VoiceConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.blocks))
        self.out = nn.Linear(config.width, 2 * config.latent)
        nn.init.normal_(self.embed.weight, std=config.width**-0.5)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.embed(ids) * math.sqrt(self.embed.embedding_dim)  # (B, T, D)
        for block in self.blocks:
            x = block(x, mask)
        counts = mask[..., None]  # (B, T, 1)
        x = x * counts
        mean, log_deviation = (self.out(x) * counts).transpose(1, 2).chunk(2, 1)  # (B, C, T) each
        return x.transpose(1, 2), mean, log_deviation
