"""What the text families share: positions, pooling, seeded token batches, names of activations."""

from __future__ import annotations

import torch

ACTIVATIONS = {"gelu_new": "gelu-tanh", "gelu_pytorch_tanh": "gelu-tanh", "gelu_fast": "gelu-tanh", "gelu_python": "gelu", "swish": "silu"}


def activation_name(name: str) -> str:
    """One name for each function, whatever a library calls it: part of a base's identity."""
    return ACTIVATIONS.get(name, name)


def positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Position of every real token counted from 0, so that padding on the left does not move it.

    Shape:
        mask [batch, tokens] of 0 and 1 -> int64 [batch, tokens]; padding gets the nearest earlier position, or 0.
    """
    return (attention_mask.cumsum(-1) - 1).clamp_min(0)


def mean_pool(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Mean over the real tokens: hidden [batch, tokens, width] -> [batch, width]."""
    weight = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
    return (hidden * weight).sum(1) / weight.sum(1).clamp_min(1.0)  # (B, D)


def last_token(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The last real token's vector, padding being on either side: [batch, tokens, width] -> [batch, width]."""
    places = torch.arange(hidden.shape[1], device=hidden.device)  # (T,)
    last = (places * attention_mask).argmax(-1)  # (B,)
    return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)  # (B, D)


def random_ids(vocabulary: int, batch: int, tokens: int, generator: torch.Generator) -> torch.Tensor:
    """Seeded token ids, int64 [batch, tokens]."""
    return torch.randint(0, vocabulary, (batch, tokens), generator=generator)


def random_mask(batch: int, tokens: int, generator: torch.Generator) -> torch.Tensor:
    """Seeded attention mask with padding on the right, int64 [batch, tokens]: row 0 full, no row below half."""
    lengths = torch.randint((tokens + 1) // 2, tokens + 1, (batch,), generator=generator)  # (B,)
    lengths[0] = tokens
    return (torch.arange(tokens) < lengths[:, None]).to(torch.int64)  # (B, T)
