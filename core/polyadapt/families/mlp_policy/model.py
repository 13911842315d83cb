"""The residual policy as a family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from polyadapt.families.base import Family
from polyadapt.families.mlp_policy.network import MlpPolicy
from polyadapt.families.shared import enliven
from polyadapt.signature import Signature, Task, TensorSpec


class MlpPolicyFamily(Family):
    """Observation to action. `Task.details` may give `observation_size` and `action_size` to the tiny one."""

    def tiny(self, task: Task) -> nn.Module:
        observation, action = (int(str(task.details.get(name, size))) for name, size in (("observation_size", 39), ("action_size", 4)))
        policy = enliven(MlpPolicy(observation, action, width=32, blocks=2))
        assert isinstance(policy, MlpPolicy)
        # Statistics other than 0 and 1, so that a graph without them would be seen to differ.
        policy.fit_statistics(torch.randn(64, observation) * 2.0 + 1.0, torch.randn(64, action) * 0.5 - 0.25)
        return policy

    def config(self, backbone: nn.Module) -> dict[str, Any]:
        assert isinstance(backbone, MlpPolicy)
        return dict(backbone.sizes)

    def signature(self, backbone: nn.Module, task: Task) -> Signature:
        sizes = self.config(backbone)
        observation = TensorSpec("observation", ("batch", sizes["observation_size"]), "float32", "state of robot and scene, not normalised", "as recorded")
        action = TensorSpec("action", ("batch", sizes["action_size"]), "float32", "command to the robot, not clipped", "as recorded")
        return Signature((observation,), (action,))

    def forward(self, backbone: nn.Module, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"action": backbone(inputs["observation"])}  # (B, action)

    def feature_size(self, backbone: nn.Module) -> int:
        return int(self.config(backbone)["width"])

    def example(self, backbone: nn.Module, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        assert isinstance(backbone, MlpPolicy)
        noise = torch.randn(sizes["batch"], backbone.sizes["observation_size"], generator=generator)
        return {"observation": noise * backbone.observation_deviation.cpu() + backbone.observation_mean.cpu()}
