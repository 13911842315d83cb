"""ViT and DeiT of timm behind the family interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from polyadapt.families.base import Family
from polyadapt.families.shared import enliven, features_spec, image_spec, library, linear_head, normal
from polyadapt.signature import Signature, Task

if TYPE_CHECKING:
    from torch import nn


class VitFamily(Family):
    """timm's VisionTransformer and VisionTransformerDistilled."""

    def tiny(self, task: Task) -> nn.Module:
        timm = library("timm.models.vision_transformer", self.card.extra, self.card.id)
        classes = (len(task.labels) or 5) if task.kind == "classification" else 0
        backbone: nn.Module = timm.VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=classes)
        return enliven(backbone)

    def config(self, backbone: Any) -> dict[str, Any]:
        block = backbone.blocks[0]
        return {
            "width": backbone.embed_dim,
            "depth": len(backbone.blocks),
            "heads": block.attn.num_heads,
            "head_size": block.attn.head_dim,
            "patch_px": list(backbone.patch_embed.patch_size),
            "grid": list(backbone.patch_embed.grid_size),
            "prefix_tokens": backbone.num_prefix_tokens,
            "pooling": backbone.global_pool,
            "pools_prefix": bool(backbone.pool_include_prefix),
            "class_token_has_position": not backbone.no_embed_class,
            "is_distilled": _is_distilled(backbone),
            "block": type(block).__name__.lower(),
            "activation": type(block.mlp.act).__name__.lower(),
            "norm_epsilon": getattr(block.norm1, "eps", None),
        }

    def signature(self, backbone: Any, task: Task) -> Signature:
        height, width = backbone.patch_embed.img_size or (224, 224)
        return Signature((image_spec(backbone.in_chans, height, width),), (features_spec(self.feature_size(backbone)),))

    def forward(self, backbone: Any, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tokens = backbone.forward_features(inputs["image"])  # (batch, prefix + patches, width)
        if _is_distilled(backbone):
            return {"features": backbone.head_drop(tokens[:, :2].flatten(1))}  # (batch, 2 * width)
        return {"features": backbone.forward_head(tokens, pre_logits=True)}  # (batch, width)

    def feature_size(self, backbone: Any) -> int:
        return int(backbone.embed_dim) * (2 if _is_distilled(backbone) else 1)

    def example(self, backbone: Any, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        channels, height, width = self.signature(backbone, task).inputs[0].shape[1:]
        return {"image": normal((sizes["batch"], int(channels), int(height), int(width)), generator)}

    def default_head(self, backbone: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        head = linear_head(backbone.head)
        if head is None or not _is_distilled(backbone):
            return head
        other = linear_head(backbone.head_dist)
        assert other is not None, "timm sizes both heads alike"
        return torch.cat([head[0], other[0]]) / 2, (head[1] + other[1]) / 2  # (2 * width, class), (class,)

    def head_parameters(self, backbone: Any) -> tuple[str, ...]:
        return tuple(name for name, _ in backbone.named_parameters() if name.startswith(("head.", "head_dist.")))

    def no_effect(self, backbone: Any) -> Mapping[str, str]:
        # A norm of the keys (qk_norm) comes between the shift and the scores: then it is felt.
        keys_are_normed = any(name.endswith("attn.k_norm.weight") for name, _ in backbone.named_parameters())
        return {} if keys_are_normed else self.card.no_effect


def _is_distilled(backbone: Any) -> bool:
    return hasattr(backbone, "head_dist")
