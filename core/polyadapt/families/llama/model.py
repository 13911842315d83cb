"""Llama: Touvron et al., LLaMA, arXiv 2302.13971; Qwen2: arXiv 2407.10671; grouped heads: Ainslie et al., arXiv 2305.13245."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from polyadapt.errors import UserError
from polyadapt.families import causal
from polyadapt.families.base import Family
from polyadapt.families.shared import enliven
from polyadapt.families.text import activation_name
from polyadapt.signature import Signature, Task


class Llama(Family):
    """Token ids to scores of the next token, or to one vector a text."""

    def tiny(self, task: Task) -> nn.Module:
        from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

        config = LlamaConfig(
            vocab_size=128,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
        )
        return enliven(LlamaForCausalLM(config) if task.kind == "causal-lm" else LlamaModel(config))

    def config(self, backbone: nn.Module) -> dict[str, Any]:
        config: Any = backbone.config
        return {
            "blocks": config.num_hidden_layers,
            "width": config.hidden_size,
            "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads,
            "head_size": _head_size(config),
            "ffn": config.intermediate_size,
            "vocabulary": config.vocab_size,
            "activation": activation_name(config.hidden_act),
            "norm_epsilon": config.rms_norm_eps,
            "rotary": {str(name): value for name, value in sorted((config.rope_parameters or {}).items())},
        }

    def signature(self, backbone: nn.Module, task: Task) -> Signature:
        config: Any = backbone.config
        if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
            raise UserError(
                "this model uses sliding-window attention, which family 'llama' does not do; set use_sliding_window to false in its config if texts stay within the window"
            )
        return causal.signature(task, config.vocab_size, config.hidden_size)

    def forward(self, backbone: nn.Module, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        head = backbone.get_submodule("lm_head") if task.kind == "causal-lm" else None
        return causal.forward(_tower(backbone), head, task, inputs)

    def cached_forward(
        self, backbone: nn.Module, inputs: Mapping[str, torch.Tensor], past: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        return causal.cached_forward(_tower(backbone), backbone.get_submodule("lm_head"), inputs, past)

    def cache_shape(self, backbone: nn.Module) -> tuple[int, int, int]:
        config: Any = backbone.config
        return int(config.num_hidden_layers), int(config.num_key_value_heads), _head_size(config)

    def feature_size(self, backbone: nn.Module) -> int:
        config: Any = backbone.config
        return int(config.hidden_size)

    def example(self, backbone: nn.Module, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        config: Any = backbone.config
        return causal.example(config.vocab_size, sizes, generator)

    def default_head(self, backbone: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | None:
        return causal.score_head(backbone)

    def head_parameters(self, backbone: nn.Module) -> tuple[str, ...]:
        return ("score.weight",) if hasattr(backbone, "score") else ()


def _tower(backbone: nn.Module) -> Any:
    return getattr(backbone, "model", backbone)


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
