"""BERT: Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers, arXiv 1810.04805.

Mean pooling of token vectors: Reimers and Gurevych, Sentence-BERT, arXiv 1908.10084.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from polyadapt.families.base import Family
from polyadapt.families.shared import enliven
from polyadapt.families.text import activation_name, mean_pool, random_ids, random_mask
from polyadapt.signature import Signature, Task, TensorSpec


class Bert(Family):
    """Token ids to one vector a text."""

    def tiny(self, task: Task) -> nn.Module:
        from transformers import BertConfig, BertForSequenceClassification, BertModel

        config = BertConfig(
            vocab_size=128,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
            num_labels=len(task.labels) or 3,
            attn_implementation="sdpa",
        )
        return enliven(BertForSequenceClassification(config) if task.kind == "classification" else BertModel(config))

    def config(self, backbone: nn.Module) -> dict[str, Any]:
        config: Any = backbone.config
        return {
            "blocks": config.num_hidden_layers,
            "width": config.hidden_size,
            "heads": config.num_attention_heads,
            "ffn": config.intermediate_size,
            "vocabulary": config.vocab_size,
            "positions": config.max_position_embeddings,
            "types": config.type_vocab_size,
            "activation": activation_name(config.hidden_act),
            "norm_epsilon": config.layer_norm_eps,
        }

    def positions(self, backbone: nn.Module) -> int:
        config: Any = backbone.config
        return int(config.max_position_embeddings)

    def signature(self, backbone: nn.Module, task: Task) -> Signature:
        inputs = [
            TensorSpec("input_ids", ("batch", "tokens"), "int64", "token ids"),
            TensorSpec("attention_mask", ("batch", "tokens"), "int64", "1 for real tokens, 0 for padding"),
        ]
        if task.details.get("token_types"):
            inputs.append(TensorSpec("token_type_ids", ("batch", "tokens"), "int64", "0 for the first text, 1 for the second"))
        features = TensorSpec("features", ("batch", self.feature_size(backbone)), "float32", "one vector a text")
        return Signature(tuple(inputs), (features,))

    def forward(self, backbone: nn.Module, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tower = _tower(backbone)
        mask = inputs["attention_mask"]
        hidden = tower(input_ids=inputs["input_ids"], attention_mask=mask, token_type_ids=inputs.get("token_type_ids")).last_hidden_state  # (B, T, D)
        # The pooler runs on what the tower returns: a prompt in front of the tokens is cut off by then.
        features = tower.pooler(hidden) if tower is not backbone else mean_pool(hidden, mask)  # (B, D)
        return {"features": features}

    def feature_size(self, backbone: nn.Module) -> int:
        config: Any = backbone.config
        return int(config.hidden_size)

    def example(self, backbone: nn.Module, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        config: Any = backbone.config
        batch, tokens = sizes["batch"], sizes["tokens"]
        made = {"input_ids": random_ids(config.vocab_size, batch, tokens, generator), "attention_mask": random_mask(batch, tokens, generator)}
        if task.details.get("token_types"):
            made["token_type_ids"] = random_ids(config.type_vocab_size, batch, tokens, generator)
        return made

    def default_head(self, backbone: nn.Module) -> tuple[torch.Tensor, torch.Tensor] | None:
        head: Any = getattr(backbone, "classifier", None)
        return None if head is None else (head.weight.detach().T, head.bias.detach())

    def head_parameters(self, backbone: nn.Module) -> tuple[str, ...]:
        return ("classifier.weight", "classifier.bias") if hasattr(backbone, "classifier") else ()


def _tower(backbone: nn.Module) -> Any:
    return getattr(backbone, "bert", backbone)
