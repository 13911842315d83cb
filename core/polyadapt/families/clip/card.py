"""CLIP of transformers. Paper: Learning Transferable Visual Models From Natural Language Supervision (2103.00020)."""

from __future__ import annotations

from polyadapt.families.card import Attention, ExportRecipe, FamilyCard, Op, Span, Stream

_RECIPE = ExportRecipe(
    trace={"batch": 2, "texts": 3, "tokens": 7},
    check=({"batch": 1, "texts": 2, "tokens": 5}, {"batch": 3, "texts": 4, "tokens": 11}),
    maximum={"tokens": 77},
)
_TOWERS = {"image": "vision_model", "text": "text_model"}


def _blocks(tower: str, root: str) -> dict[str, Op]:
    layer = f"{root}.encoder.layers.{{n}}"
    places = {"norm1": "layer_norm1", "norm2": "layer_norm2", "ffn.up": "mlp.fc1", "ffn.down": "mlp.fc2", "attn.o": "self_attn.out_proj"}
    places |= {f"attn.{letter}": f"self_attn.{letter}_proj" for letter in "qkv"}
    return {f"{tower}.block.{{n}}.{site}": Op(f"{layer}.{path}") for site, path in places.items()}


def _spans(tower: str) -> dict[str, Span]:
    block = f"{tower}.block.{{n}}"
    return {f"{block}.attn": Span(f"{block}.attn.q", f"{block}.attn.o"), f"{block}.ffn": Span(f"{block}.ffn.up", f"{block}.ffn.down")}


CARD = FamilyCard(
    id="clip",
    title="CLIP",
    media=("image", "text"),
    architecture="contrastive-pair",
    libraries={"transformers": ">=5.0"},
    classes=("transformers.CLIPModel",),
    tasks=("image-text",),
    implementation="polyadapt.families.clip.model:ClipFamily",
    sites={
        "image.embed": Op("vision_model.embeddings.patch_embedding"),
        "image.pos": Op("vision_model.embeddings.position_embedding"),
        "image.embed.norm": Op("vision_model.pre_layrnorm"),
        **_blocks("image", _TOWERS["image"]),
        "image.norm": Op("vision_model.post_layernorm"),
        "image.head": Op("visual_projection"),
        "text.embed": Op("text_model.embeddings.token_embedding"),
        "text.pos": Op("text_model.embeddings.position_embedding"),
        **_blocks("text", _TOWERS["text"]),
        "text.norm": Op("text_model.final_layer_norm"),
        "text.head": Op("text_projection"),
    },
    spans=_spans("image") | _spans("text"),
    attention={
        "image.block.{n}.attn": Attention("vision_model.encoder.layers.{n}.self_attn", heads="num_heads", head_size="head_dim"),
        "text.block.{n}.attn": Attention("text_model.encoder.layers.{n}.self_attn", heads="num_heads", head_size="head_dim", causal=True),
    },
    streams={
        "image": Stream("blocks", "vision_model.encoder.layers.{n}", "config.vision_config.hidden_size", offset=1, first="image.tokens", deep="image.block.{n}.tokens"),
        "text": Stream("blocks", "text_model.encoder.layers.{n}", "config.text_config.hidden_size", first="text.tokens", deep="text.block.{n}.tokens"),
    },
    # One tower only: the first block of the other does not read what the last block of this one gives.
    blocks=("vision_model.encoder.layers.{n}",),
    stem=("vision_model.embeddings", "vision_model.pre_layrnorm"),
    no_effect={"*.attn.k:shift": "softmax is invariant to a shift of all scores of a query"},
    export={"image-text": _RECIPE},
    extra="transformers",
    notes="`logits` compare every picture with every text. Each text must hold the end token: the text's feature is read there.",
)
