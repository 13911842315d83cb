"""ResNet of timm behind the family interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from polyadapt.families.base import Family
from polyadapt.families.shared import convolutions, enliven, features_spec, image_spec, library, linear_head, norm_epsilons, normal, picture_size
from polyadapt.signature import Signature, Task

if TYPE_CHECKING:
    from torch import nn


class ResNetFamily(Family):
    """timm's ResNet."""

    def tiny(self, task: Task) -> nn.Module:
        nets = library("timm.models.resnet", self.card.extra, self.card.id)
        classes = (len(task.labels) or 5) if task.kind == "classification" else 0
        backbone: Any = nets.ResNet(nets.BasicBlock, (1, 2, 1, 1), channels=(8, 8, 16, 16), num_classes=classes)
        backbone.pretrained_cfg = {"input_size": (3, 64, 64)}
        return enliven(backbone)

    def config(self, backbone: Any) -> dict[str, Any]:
        return {
            "convolutions": convolutions(backbone),
            "norm_epsilons": norm_epsilons(backbone),
            "stages": [[type(block).__name__.lower() for block in stage] for stage in _stages(backbone)],
            "activation": type(backbone.act1).__name__.lower(),
            "pooling": str(backbone.global_pool.pool_type),
        }

    def signature(self, backbone: Any, task: Task) -> Signature:
        return Signature((image_spec(*picture_size(backbone)),), (features_spec(self.feature_size(backbone)),))

    def forward(self, backbone: Any, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        maps = backbone.forward_features(inputs["image"])  # (batch, channels, height / 32, width / 32)
        return {"features": backbone.forward_head(maps, pre_logits=True)}  # (batch, feature)

    def feature_size(self, backbone: Any) -> int:
        return int(backbone.head_hidden_size)

    def example(self, backbone: Any, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"image": normal((sizes["batch"], *picture_size(backbone)), generator)}

    def default_head(self, backbone: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        return linear_head(backbone.fc)

    def head_parameters(self, backbone: Any) -> tuple[str, ...]:
        return tuple(name for name, _ in backbone.named_parameters() if name.startswith("fc."))


def _stages(backbone: Any) -> list[Any]:
    return [stage for name, stage in backbone.named_children() if name.startswith("layer")]
