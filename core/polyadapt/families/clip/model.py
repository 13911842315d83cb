"""CLIP of transformers behind the family interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from polyadapt.families.base import Family
from polyadapt.families.shared import enliven, image_spec, integers, library, normal
from polyadapt.signature import Signature, Task, TensorSpec

if TYPE_CHECKING:
    from torch import nn


class ClipFamily(Family):
    """CLIPModel: features of pictures and texts in one space, and their scaled cosines."""

    def tiny(self, task: Task) -> nn.Module:
        transformers = library("transformers", self.card.extra, self.card.id)
        tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16}
        config = transformers.CLIPConfig(
            text_config=tower | {"vocab_size": 40, "max_position_embeddings": 77, "pad_token_id": 0, "bos_token_id": 38, "eos_token_id": 39},
            vision_config=tower | {"image_size": 32, "patch_size": 8},
            projection_dim=16,
            attn_implementation="sdpa",
        )
        return enliven(transformers.CLIPModel(config))

    def config(self, backbone: Any) -> dict[str, Any]:
        text, image = backbone.config.text_config, backbone.config.vision_config
        return {
            "text": [text.hidden_size, text.num_hidden_layers, text.num_attention_heads, text.intermediate_size, text.max_position_embeddings, text.vocab_size],
            "image": [image.hidden_size, image.num_hidden_layers, image.num_attention_heads, image.intermediate_size, image.image_size, image.patch_size],
            "projection": backbone.config.projection_dim,
            "end_token": _end_token(backbone),
            "activations": [str(text.hidden_act), str(image.hidden_act)],
            "norm_epsilon": [text.layer_norm_eps, image.layer_norm_eps],
        }

    def positions(self, backbone: Any) -> int:
        return int(backbone.config.text_config.max_position_embeddings)

    def signature(self, backbone: Any, task: Task) -> Signature:
        image, size = backbone.config.vision_config, backbone.config.projection_dim
        return Signature(
            (
                image_spec(image.num_channels, image.image_size, image.image_size),
                TensorSpec("input_ids", ("texts", "tokens"), "int64", "texts, each with its end token", "token ids"),
                TensorSpec("attention_mask", ("texts", "tokens"), "int64", "1 for tokens of the text, 0 for padding"),
            ),
            (
                TensorSpec("logits", ("batch", "texts"), "float32", "scaled cosine of each picture with each text"),
                TensorSpec("image_features", ("batch", size), "float32", "pictures as vectors of length 1"),
                TensorSpec("text_features", ("texts", size), "float32", "texts as vectors of length 1"),
            ),
        )

    def forward(self, backbone: Any, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = backbone(input_ids=inputs["input_ids"], pixel_values=inputs["image"], attention_mask=inputs["attention_mask"])
        return {"logits": outputs.logits_per_image, "image_features": outputs.image_embeds, "text_features": outputs.text_embeds}

    def feature_size(self, backbone: Any) -> int:
        return int(backbone.config.projection_dim)

    def example(self, backbone: Any, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Texts of different lengths where there is room, padded on the right."""
        text, image = backbone.config.text_config, backbone.config.vision_config
        texts, tokens = sizes["texts"], sizes["tokens"]
        end = _end_token(backbone)
        ids = integers(1, end, (texts, tokens), generator)  # below the end token: checkpoints of old read the feature at the largest id
        lengths = tokens - torch.arange(texts) % max(tokens - 1, 1)  # at least two tokens where there are two
        places = torch.arange(tokens)[None, :]
        ids = torch.where(places == lengths[:, None] - 1, torch.tensor(end), ids)
        mask = (places < lengths[:, None]).long()
        ids = torch.where(mask == 1, ids, torch.tensor(text.pad_token_id if text.pad_token_id is not None else 0))
        picture = normal((sizes["batch"], image.num_channels, image.image_size, image.image_size), generator)
        return {"image": picture, "input_ids": ids, "attention_mask": mask}


def _end_token(backbone: Any) -> int:
    """Id at which the library reads a text's feature: with the historic setting 2, the largest id."""
    text = backbone.config.text_config
    return int(text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id)
