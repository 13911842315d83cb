"""AST of transformers behind the family interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from polyadapt.families.base import Family
from polyadapt.families.shared import enliven, features_spec, library, linear_head, normal, spectrogram_spec
from polyadapt.signature import Signature, Task

if TYPE_CHECKING:
    from torch import nn


class AstFamily(Family):
    """ASTModel, and ASTForAudioClassification whose head's norm is part of the features."""

    def tiny(self, task: Task) -> nn.Module:
        transformers = library("transformers", self.card.extra, self.card.id)
        config = transformers.ASTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_length=32,
            num_mel_bins=16,
            patch_size=8,
            frequency_stride=4,
            time_stride=4,
            num_labels=len(task.labels) or 5,
            attn_implementation="sdpa",
        )
        cls = transformers.ASTForAudioClassification if task.kind == "classification" else transformers.ASTModel
        return enliven(cls(config))

    def config(self, backbone: Any) -> dict[str, Any]:
        config = backbone.config
        return {
            "width": config.hidden_size,
            "depth": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "ffn": config.intermediate_size,
            "frames": config.max_length,
            "mels": config.num_mel_bins,
            "patch": config.patch_size,
            "strides": [config.frequency_stride, config.time_stride],
            "activation": str(config.hidden_act),
            "norm_epsilon": config.layer_norm_eps,
            **({"pooling": config.pooling} if _pools_tokens(backbone) else {}),
        }

    def signature(self, backbone: Any, task: Task) -> Signature:
        spectrogram = spectrogram_spec("input_values", ("batch", backbone.config.max_length, backbone.config.num_mel_bins))
        return Signature((spectrogram,), (features_spec(self.feature_size(backbone)),))

    def forward(self, backbone: Any, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        encoder = getattr(backbone, "audio_spectrogram_transformer", backbone)
        outputs = encoder(inputs["input_values"])
        if _pools_tokens(backbone):
            return {"features": outputs.last_hidden_state.mean(dim=1)}  # (batch, width)
        pooled = outputs.pooler_output  # (batch, width)
        return {"features": backbone.classifier.layernorm(pooled) if encoder is not backbone else pooled}

    def feature_size(self, backbone: Any) -> int:
        return int(backbone.config.hidden_size)

    def example(self, backbone: Any, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"input_values": normal((sizes["batch"], backbone.config.max_length, backbone.config.num_mel_bins), generator)}

    def default_head(self, backbone: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        return linear_head(backbone.classifier.dense) if hasattr(backbone, "classifier") else None

    def head_parameters(self, backbone: Any) -> tuple[str, ...]:
        return tuple(name for name, _ in backbone.named_parameters() if name.startswith("classifier.dense."))


def _pools_tokens(backbone: Any) -> bool:
    """Whether features are the mean over all tokens, class and distillation tokens included; a setting that sources make."""
    return getattr(backbone.config, "pooling", "") == "tokens"
