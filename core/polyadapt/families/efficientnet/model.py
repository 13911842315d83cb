"""EfficientNet and MobileNetV3 of timm behind the family interface."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from polyadapt.families.base import Family
from polyadapt.families.shared import convolutions, enliven, features_spec, image_spec, library, linear_head, norm_epsilons, normal, picture_size
from polyadapt.signature import Signature, Task

if TYPE_CHECKING:
    from torch import nn

_TINY = (("cn_r1_k3_s1_c8",), ("ds_r1_k3_s1_e1_c8_se1",), ("ir_r2_k3_s2_e2_c16_se1",), ("er_r1_k3_s2_e2_c16",))
"""One stage of each class of blocks, in timm's notation."""


class EfficientNetFamily(Family):
    """Nets made of timm's EfficientNet blocks."""

    def tiny(self, task: Task) -> nn.Module:
        nets = library("timm.models.efficientnet", self.card.extra, self.card.id)
        builder = library("timm.models._efficientnet_builder", self.card.extra, self.card.id)
        backbone: Any = nets.EfficientNet(
            builder.decode_arch_def([list(stage) for stage in _TINY]),
            num_classes=(len(task.labels) or 5) if task.kind == "classification" else 0,
            num_features=32,
            stem_size=8,
            act_layer=torch.nn.SiLU,
            round_chs_fn=partial(builder.round_channels, multiplier=1.0, divisor=8),
        )
        backbone.pretrained_cfg = {"input_size": (3, 48, 48)}
        return enliven(backbone)

    def config(self, backbone: Any) -> dict[str, Any]:
        return {
            "convolutions": convolutions(backbone),
            "norm_epsilons": norm_epsilons(backbone),
            "stages": [[type(block).__name__.lower() for block in stage] for stage in backbone.blocks],
            "activations": [type(module).__name__.lower() for name, module in backbone.named_modules() if name.rpartition(".")[2].startswith("act")],
            "pooling": str(backbone.global_pool.pool_type),
            "pools_before_neck": not hasattr(backbone, "bn2"),
        }

    def signature(self, backbone: Any, task: Task) -> Signature:
        return Signature((image_spec(*picture_size(backbone)),), (features_spec(self.feature_size(backbone)),))

    def forward(self, backbone: Any, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        maps = backbone.forward_features(inputs["image"])  # (batch, channels, height', width')
        return {"features": backbone.forward_head(maps, pre_logits=True)}  # (batch, feature)

    def feature_size(self, backbone: Any) -> int:
        return int(backbone.head_hidden_size)

    def example(self, backbone: Any, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"image": normal((sizes["batch"], *picture_size(backbone)), generator)}

    def default_head(self, backbone: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        return linear_head(backbone.classifier)

    def head_parameters(self, backbone: Any) -> tuple[str, ...]:
        return tuple(name for name, _ in backbone.named_parameters() if name.startswith("classifier."))
