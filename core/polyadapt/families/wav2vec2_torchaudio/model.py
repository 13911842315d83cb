"""wav2vec 2.0 of torchaudio behind the family interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from polyadapt.families.base import Family
from polyadapt.families.shared import convolved_lengths, enliven, frames_spec, library, mean_over_frames, norm_behind, normal, waveform_signature
from polyadapt.signature import Signature, Task

if TYPE_CHECKING:
    from torch import nn


class Wav2Vec2TorchaudioFamily(Family):
    """torchaudio.models.Wav2Vec2Model; `aux` is its head for CTC."""

    def tiny(self, task: Task) -> nn.Module:
        models = library("torchaudio.models", self.card.extra, self.card.id)
        backbone: nn.Module = models.wav2vec2_model(
            extractor_mode="group_norm",
            extractor_conv_layer_config=[(16, 10, 5), (16, 8, 8), (16, 8, 8)],
            extractor_conv_bias=False,
            encoder_embed_dim=32,
            encoder_projection_dropout=0.0,
            encoder_pos_conv_kernel=16,
            encoder_pos_conv_groups=4,
            encoder_num_layers=2,
            encoder_num_heads=2,
            encoder_attention_dropout=0.0,
            encoder_ff_interm_features=64,
            encoder_ff_interm_dropout=0.0,
            encoder_dropout=0.0,
            encoder_layer_norm_first=False,
            encoder_layer_drop=0.0,
            aux_num_out=12 if task.kind == "ctc" else None,
        )
        return enliven(backbone)

    def config(self, backbone: Any) -> dict[str, Any]:
        transformer = backbone.encoder.transformer
        layer = transformer.layers[0]
        return {
            "width": transformer.pos_conv_embed.embed_dim,
            "depth": len(transformer.layers),
            "heads": layer.attention.num_heads,
            "ffn": layer.feed_forward.intermediate_dense.out_features,
            "kernels": [kernel for kernel, _ in _geometry(backbone)],
            "strides": [stride for _, stride in _geometry(backbone)],
            "extractor_norm": "group" if _has_group_norm(backbone) else "layer",
            "positions": [transformer.pos_conv_embed.kernel_size, transformer.pos_conv_embed.conv.groups],
            "norms_first": bool(layer.layer_norm_first),
            "norm_epsilon": layer.layer_norm.eps,
        }

    def signature(self, backbone: Any, task: Task) -> Signature:
        if task.kind == "ctc" and backbone.aux is not None:
            return waveform_signature(self.feature_size(backbone), backbone.aux.out_features)
        plain = waveform_signature(self.feature_size(backbone), None)
        return Signature(plain.inputs, (frames_spec(self.feature_size(backbone)),)) if task.kind == "ctc" else plain

    def forward(self, backbone: Any, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`inputs` may hold `audio_lengths` [batch], the samples of each row that are not padding."""
        hidden, lengths = backbone.feature_extractor(inputs["audio"], inputs.get("audio_lengths"))  # (batch, frames, channels), (batch,)
        hidden = backbone.encoder(hidden, lengths)  # (batch, frames, width)
        if task.kind == "ctc" and backbone.aux is not None:
            return {"logits": backbone.aux(hidden)}  # (batch, frames, vocabulary)
        if task.kind == "ctc":
            return {"features": hidden}  # (batch, frames, width)
        return {"features": mean_over_frames(hidden, lengths)}  # (batch, width)

    def feature_size(self, backbone: Any) -> int:
        return int(backbone.encoder.transformer.pos_conv_embed.embed_dim)

    def example(self, backbone: Any, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"audio": normal((sizes["batch"], sizes["samples"]), generator)}

    def output_lengths(self, backbone: Any, lengths: torch.Tensor) -> torch.Tensor:
        return convolved_lengths(lengths, _geometry(backbone))

    def no_effect(self, backbone: Any) -> Mapping[str, str]:
        if _has_group_norm(backbone):
            return self.card.no_effect
        # A norm over channels feels a constant in one of them.
        return {pattern: reason for pattern, reason in self.card.no_effect.items() if not pattern.startswith("stage.")}

    def feeding_norm(self, backbone: Any, span: str) -> str:
        return super().feeding_norm(backbone, span) if backbone.encoder.transformer.layers[0].layer_norm_first else norm_behind(span)

    def stem(self, backbone: Any) -> tuple[str, ...]:
        if backbone.encoder.transformer.layer_norm_first:
            return self.card.stem
        # With norms first in the layers, the encoder's own norm runs behind the last block (the flag of the stack is the opposite of the layers').
        return tuple(path for path in self.card.stem if not path.endswith("transformer.layer_norm"))


def _geometry(backbone: Any) -> list[tuple[int, int]]:
    return [(block.kernel_size, block.stride) for block in backbone.feature_extractor.conv_layers]


def _has_group_norm(backbone: Any) -> bool:
    return isinstance(backbone.feature_extractor.conv_layers[0].layer_norm, torch.nn.GroupNorm)
