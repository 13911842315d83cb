"""wav2vec 2.0 of transformers behind the family interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from polyadapt.families.base import Family
from polyadapt.families.shared import convolved_lengths, enliven, frames_spec, library, mean_over_frames, norm_behind, normal, waveform_signature
from polyadapt.signature import Signature, Task

if TYPE_CHECKING:
    from torch import nn


class Wav2Vec2Family(Family):
    """Wav2Vec2Model and Wav2Vec2ForCTC."""

    def tiny(self, task: Task) -> nn.Module:
        transformers = library("transformers", self.card.extra, self.card.id)
        config = transformers.Wav2Vec2Config(
            vocab_size=12,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            conv_dim=(16, 16, 16),
            conv_kernel=(10, 8, 8),
            conv_stride=(5, 8, 8),
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            feat_proj_dropout=0.0,
            final_dropout=0.0,
            layerdrop=0.0,
            apply_spec_augment=False,
            attn_implementation="sdpa",
        )
        return enliven((transformers.Wav2Vec2ForCTC if task.kind == "ctc" else transformers.Wav2Vec2Model)(config))

    def config(self, backbone: Any) -> dict[str, Any]:
        config = backbone.config
        return {
            "width": config.hidden_size,
            "depth": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "ffn": config.intermediate_size,
            "kernels": list(config.conv_kernel),
            "strides": list(config.conv_stride),
            "extractor_norm": str(config.feat_extract_norm),
            "positions": [config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups],
            "norms_first": bool(config.do_stable_layer_norm),
            "reductions": _reductions(config),
            "activations": [str(config.feat_extract_activation), str(config.hidden_act)],
            "norm_epsilon": config.layer_norm_eps,
        }

    def signature(self, backbone: Any, task: Task) -> Signature:
        plain = waveform_signature(self.feature_size(backbone), backbone.config.vocab_size if _has_scores(backbone) and task.kind == "ctc" else None)
        return Signature(plain.inputs, (frames_spec(self.feature_size(backbone)),)) if task.kind == "ctc" and not _has_scores(backbone) else plain

    def forward(self, backbone: Any, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`inputs` may hold `audio_lengths` [batch], the samples of each row that are not padding."""
        audio, lengths = inputs["audio"], inputs.get("audio_lengths")  # (batch, samples), (batch,)
        mask = None if lengths is None else (torch.arange(audio.shape[1], device=audio.device)[None, :] < lengths[:, None]).long()
        if task.kind == "ctc" and _has_scores(backbone):
            return {"logits": backbone(audio, attention_mask=mask).logits}  # (batch, frames, vocabulary)
        hidden = getattr(backbone, "wav2vec2", backbone)(audio, attention_mask=mask).last_hidden_state  # (batch, frames, width)
        if task.kind == "ctc":
            return {"features": hidden}  # (batch, frames, width)
        return {"features": mean_over_frames(hidden, None if lengths is None else self.output_lengths(backbone, lengths))}

    def feature_size(self, backbone: Any) -> int:
        config = backbone.config
        return int(config.output_hidden_size if config.add_adapter else config.hidden_size)

    def example(self, backbone: Any, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"audio": normal((sizes["batch"], sizes["samples"]), generator)}

    def output_lengths(self, backbone: Any, lengths: torch.Tensor) -> torch.Tensor:
        config = backbone.config
        return convolved_lengths(lengths, [*zip(config.conv_kernel, config.conv_stride, strict=True), *((1, stride) for stride in _reductions(config))])

    def no_effect(self, backbone: Any) -> Mapping[str, str]:
        if backbone.config.feat_extract_norm == "group":
            return self.card.no_effect
        # A norm over channels feels a constant in one of them.
        return {pattern: reason for pattern, reason in self.card.no_effect.items() if not pattern.startswith("stage.")}

    def feeding_norm(self, backbone: Any, span: str) -> str:
        return super().feeding_norm(backbone, span) if backbone.config.do_stable_layer_norm else norm_behind(span)

    def stem(self, backbone: Any) -> tuple[str, ...]:
        if not backbone.config.do_stable_layer_norm:
            return self.card.stem
        # With norms first, the encoder's own norm runs behind the last block.
        return tuple(path for path in self.card.stem if not path.endswith("encoder.layer_norm"))


def _has_scores(backbone: Any) -> bool:
    """Whether it brings scores of a vocabulary."""
    return hasattr(backbone, "lm_head")


def _reductions(config: Any) -> list[int]:
    """Strides of the convolutions that some checkpoints have behind the encoder."""
    return [config.adapter_stride] * config.num_adapter_layers if config.add_adapter else []
