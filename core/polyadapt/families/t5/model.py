"""T5: Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, arXiv 1910.10683."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from polyadapt.families import crossing
from polyadapt.families.base import TARGET, Family
from polyadapt.families.shared import enliven
from polyadapt.families.text import activation_name, random_ids, random_mask
from polyadapt.signature import Signature, Task, TensorSpec


class T5(Family):
    """Source and target tokens to scores of the next target token."""

    def tiny(self, task: Task) -> nn.Module:
        from transformers import T5Config, T5ForConditionalGeneration

        config = T5Config(
            vocab_size=128,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=16,
            decoder_start_token_id=0,
            attn_implementation="sdpa",
        )
        return enliven(T5ForConditionalGeneration(config))

    def config(self, backbone: nn.Module) -> dict[str, Any]:
        config: Any = backbone.config
        return {
            "blocks": [config.num_layers, config.num_decoder_layers],
            "width": config.d_model,
            "heads": config.num_heads,
            "head_size": config.d_kv,
            "ffn": config.d_ff,
            "vocabulary": config.vocab_size,
            "buckets": [config.relative_attention_num_buckets, config.relative_attention_max_distance],
            "activation": activation_name(config.dense_act_fn),
            "gated": config.is_gated_act,
            "norm_epsilon": config.layer_norm_epsilon,
            "scaled_output": config.scale_decoder_outputs,
        }

    def signature(self, backbone: nn.Module, task: Task) -> Signature:
        config: Any = backbone.config
        inputs = (
            TensorSpec("input_ids", ("batch", "source"), "int64", "token ids of the source text"),
            TensorSpec("attention_mask", ("batch", "source"), "int64", "1 for real source tokens, 0 for padding"),
            TensorSpec("decoder_input_ids", ("batch", "target"), "int64", "token ids of the target so far, the start token first, padded on the right"),
        )
        return Signature(inputs, (TensorSpec("logits", ("batch", "target", config.vocab_size), "float32", "scores of the next target token, before softmax"),))

    def forward(self, backbone: nn.Module, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        result = backbone(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            decoder_input_ids=inputs["decoder_input_ids"],
            use_cache=False,
        )
        return {"logits": result.logits}  # (B, target, V)

    def memory(self, backbone: nn.Module) -> tuple[TensorSpec, ...]:
        mask = TensorSpec("cross.mask", ("batch", "source"), "float32", "1 for real source tokens, 0 for padding")
        return (mask, *crossing.specs(*self.cache_shape(backbone), "source"))

    def encode(self, backbone: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        mask = inputs["attention_mask"]
        hidden = backbone.encoder(input_ids=inputs["input_ids"], attention_mask=mask).last_hidden_state  # (B, source, D)
        attentions = [block.layer[1].EncDecAttention for block in backbone.decoder.block]
        crossed = crossing.keys_and_values([(attention.k, attention.v) for attention in attentions], hidden, self.cache_shape(backbone)[1])
        return {"encoder_hidden_states": hidden, "cross.mask": mask.to(hidden.dtype), **crossed}

    def cached_forward(
        self, backbone: Any, inputs: Mapping[str, torch.Tensor], past: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        cache = crossing.cache_of(inputs, past)
        result = backbone.decoder(
            input_ids=inputs[TARGET],
            encoder_hidden_states=crossing.stand_in(inputs),
            encoder_attention_mask=inputs["cross.mask"].to(torch.int64),
            past_key_values=cache,
            use_cache=True,
        )
        hidden = result.last_hidden_state  # (B, T, D)
        if backbone.config.scale_decoder_outputs:
            hidden = hidden * backbone.config.d_model**-0.5
        return backbone.lm_head(hidden), crossing.present(cache)

    def cache_shape(self, backbone: nn.Module) -> tuple[int, int, int]:
        config: Any = backbone.config
        return int(config.num_decoder_layers), int(config.num_heads), int(config.d_kv)

    def feature_size(self, backbone: nn.Module) -> int:
        config: Any = backbone.config
        return int(config.d_model)

    def example(self, backbone: nn.Module, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        config: Any = backbone.config
        batch, source = sizes["batch"], sizes["source"]
        return {
            "input_ids": random_ids(config.vocab_size, batch, source, generator),
            "attention_mask": random_mask(batch, source, generator),
            "decoder_input_ids": random_ids(config.vocab_size, batch, sizes["target"], generator),
        }
