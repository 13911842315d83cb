"""A small policy for states: observation to action, normalisation statistics inside.

Ours. Residual blocks with the norm first: He et al., Identity Mappings in Deep Residual Networks,
arXiv 1603.05027. Statistics are buffers, so they travel with the weights and stand in the exported graph.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

SMALLEST_DEVIATION = 1e-6  # a constant entry of the observation is left as it is


class Block(nn.Module):
    """x + down(gelu(up(norm(x)))), width kept: [batch, width] -> [batch, width]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch: torch.Tensor = self.down(F.gelu(self.up(self.norm(x))))
        return x + branch


class MlpPolicy(nn.Module):
    """Observation to action.

    Args:
        observation_size: entries of an observation.
        action_size: entries of an action.
        width: width of the residual stream.
        hidden: width inside a block; twice `width` by default.
        blocks: number of blocks.

    Shape:
        observation [batch, observation_size] -> action [batch, action_size], both in the units of the recordings.
    """

    observation_mean: torch.Tensor
    observation_deviation: torch.Tensor
    action_mean: torch.Tensor
    action_deviation: torch.Tensor

    def __init__(self, observation_size: int, action_size: int, width: int = 128, hidden: int | None = None, blocks: int = 2) -> None:
        super().__init__()
        self.sizes = {"observation_size": observation_size, "action_size": action_size, "width": width, "hidden": hidden or 2 * width, "blocks": blocks}
        self.register_buffer("observation_mean", torch.zeros(observation_size))
        self.register_buffer("observation_deviation", torch.ones(observation_size))
        self.register_buffer("action_mean", torch.zeros(action_size))
        self.register_buffer("action_deviation", torch.ones(action_size))
        self.embed = nn.Linear(observation_size, width)
        self.blocks = nn.ModuleList(Block(width, self.sizes["hidden"]) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, action_size)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        x = self.embed((observation - self.observation_mean) / self.observation_deviation)  # (B, width)
        for block in self.blocks:
            x = block(x)
        action: torch.Tensor = self.head(self.norm(x)) * self.action_deviation + self.action_mean  # (B, action)
        return action

    @torch.no_grad()
    def fit_statistics(self, observations: torch.Tensor, actions: torch.Tensor) -> None:
        """Take means and standard deviations from recordings: [n, observation_size] and [n, action_size]."""
        for name, values in (("observation", observations), ("action", actions)):
            deviation = values.to(torch.float32).std(0, unbiased=False)  # (entries,)
            getattr(self, f"{name}_mean").copy_(values.to(torch.float32).mean(0))
            getattr(self, f"{name}_deviation").copy_(torch.where(deviation > SMALLEST_DEVIATION, deviation, torch.ones_like(deviation)))
