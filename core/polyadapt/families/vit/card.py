"""ViT of timm. Paper: An Image is Worth 16x16 Words (2010.11929); DeiT: 2012.12877."""

from __future__ import annotations

from polyadapt.families.card import Attention, ExportRecipe, FamilyCard, Op, Span, Stream

_RECIPE = ExportRecipe(trace={"batch": 2}, check=({"batch": 1}, {"batch": 3}))

CARD = FamilyCard(
    id="vit",
    title="Vision transformer (ViT, DeiT)",
    media=("image",),
    architecture="encoder",
    libraries={"timm": ">=1.0.20"},
    classes=("timm.VisionTransformer", "timm.VisionTransformerDistilled"),
    tasks=("classification", "features"),
    implementation="polyadapt.families.vit.model:VitFamily",
    sites={
        "embed": Op("patch_embed.proj"),
        "embed.norm": Op("norm_pre"),
        "block.{n}.norm1": Op("blocks.{n}.norm1"),
        "block.{n}.attn.q": Op("blocks.{n}.attn.qkv", rows=(0, 3)),
        "block.{n}.attn.k": Op("blocks.{n}.attn.qkv", rows=(1, 3)),
        "block.{n}.attn.v": Op("blocks.{n}.attn.qkv", rows=(2, 3)),
        "block.{n}.attn.o": Op("blocks.{n}.attn.proj"),
        "block.{n}.norm2": Op("blocks.{n}.norm2"),
        "block.{n}.ffn.gate": Op("blocks.{n}.mlp.fc1_g"),
        "block.{n}.ffn.up": Op(("blocks.{n}.mlp.fc1", "blocks.{n}.mlp.fc1_x")),
        "block.{n}.ffn.down": Op("blocks.{n}.mlp.fc2"),
        "norm": Op(("norm", "fc_norm")),
    },
    spans={
        "block.{n}.attn": Span("block.{n}.attn.q", "block.{n}.attn.o"),
        "block.{n}.ffn": Span("block.{n}.ffn.up", "block.{n}.ffn.down"),
    },
    attention={"block.{n}.attn": Attention("blocks.{n}.attn", heads="num_heads", head_size="head_dim")},
    streams={"tokens": Stream("blocks", "blocks.{n}", embed="embed_dim", offset="num_prefix_tokens", first="tokens", deep="block.{n}.tokens")},
    blocks=("blocks.{n}",),
    stem=("patch_embed", "norm_pre"),
    norms={"block.{n}.attn": "block.{n}.norm1", "block.{n}.ffn": "block.{n}.norm2"},
    no_effect={"*.attn.k:shift": "softmax is invariant to a shift of all scores of a query"},
    export={"classification": _RECIPE, "features": _RECIPE},
    extra="timm",
    notes="A distilled DeiT averages two heads: its features are the class and distillation tokens side by side, so that one head gives the same scores.",
)
