"""GPT-2: Radford et al., Language Models are Unsupervised Multitask Learners, 2019."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from polyadapt.families import causal
from polyadapt.families.base import Family
from polyadapt.families.shared import enliven
from polyadapt.families.text import activation_name
from polyadapt.signature import Signature, Task


class Gpt2(Family):
    """Token ids to scores of the next token, or to one vector a text."""

    def tiny(self, task: Task) -> nn.Module:
        from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

        config = GPT2Config(
            vocab_size=128,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=1,
            attn_implementation="sdpa",
        )
        return enliven(GPT2LMHeadModel(config) if task.kind == "causal-lm" else GPT2Model(config))

    def config(self, backbone: nn.Module) -> dict[str, Any]:
        config: Any = backbone.config
        return {
            "blocks": config.n_layer,
            "width": config.n_embd,
            "heads": config.n_head,
            "ffn": config.n_inner or 4 * config.n_embd,
            "vocabulary": config.vocab_size,
            "positions": config.n_positions,
            "activation": activation_name(config.activation_function),
            "norm_epsilon": config.layer_norm_epsilon,
            "scaled": [config.scale_attn_weights, config.scale_attn_by_inverse_layer_idx],
        }

    def signature(self, backbone: nn.Module, task: Task) -> Signature:
        config: Any = backbone.config
        return causal.signature(task, config.vocab_size, config.n_embd)

    def forward(self, backbone: nn.Module, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return causal.forward(_tower(backbone), self._output(backbone, task), task, inputs)

    def cached_forward(
        self, backbone: nn.Module, inputs: Mapping[str, torch.Tensor], past: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        return causal.cached_forward(_tower(backbone), backbone.get_submodule("lm_head"), inputs, past)

    def positions(self, backbone: nn.Module) -> int:
        config: Any = backbone.config
        return int(config.n_positions)

    def cache_shape(self, backbone: nn.Module) -> tuple[int, int, int]:
        config: Any = backbone.config
        return int(config.n_layer), int(config.n_head), int(config.n_embd // config.n_head)

    def feature_size(self, backbone: nn.Module) -> int:
        config: Any = backbone.config
        return int(config.n_embd)

    def example(self, backbone: nn.Module, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        config: Any = backbone.config
        return causal.example(config.vocab_size, sizes, generator)

    def default_head(self, backbone: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | None:
        return causal.score_head(backbone)

    def head_parameters(self, backbone: nn.Module) -> tuple[str, ...]:
        return ("score.weight",) if hasattr(backbone, "score") else ()

    def _output(self, backbone: nn.Module, task: Task) -> nn.Module | None:
        return backbone.get_submodule("lm_head") if task.kind == "causal-lm" else None


def _tower(backbone: nn.Module) -> Any:
    return getattr(backbone, "transformer", backbone)
