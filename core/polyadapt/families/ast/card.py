"""AST of transformers. Paper: AST: Audio Spectrogram Transformer (2104.01778)."""

from __future__ import annotations

from polyadapt.families.card import Attention, ExportRecipe, FamilyCard, Op, Span, Stream, under

_ROOTS = ("", "audio_spectrogram_transformer.")
_RECIPE = ExportRecipe(trace={"batch": 2}, check=({"batch": 1}, {"batch": 3}))


def _in_block(five: str, four: str) -> tuple[str, ...]:
    """Places of one module of a block in transformers 5 and 4."""
    return under(_ROOTS, f"layers.{{n}}.{five}", f"encoder.layer.{{n}}.{four}")


CARD = FamilyCard(
    id="ast",
    title="Audio spectrogram transformer (AST)",
    media=("audio",),
    architecture="encoder",
    libraries={"transformers": ">=5.0"},
    classes=("transformers.ASTModel", "transformers.ASTForAudioClassification"),
    tasks=("classification", "features"),
    implementation="polyadapt.families.ast.model:AstFamily",
    sites={
        "embed": Op(under(_ROOTS, "embeddings.patch_embeddings.projection")),
        "block.{n}.norm1": Op(_in_block("layernorm_before", "layernorm_before")),
        "block.{n}.attn.q": Op(_in_block("attention.q_proj", "attention.attention.query")),
        "block.{n}.attn.k": Op(_in_block("attention.k_proj", "attention.attention.key")),
        "block.{n}.attn.v": Op(_in_block("attention.v_proj", "attention.attention.value")),
        "block.{n}.attn.o": Op(_in_block("attention.o_proj", "attention.output.dense")),
        "block.{n}.norm2": Op(_in_block("layernorm_after", "layernorm_after")),
        "block.{n}.ffn.up": Op(_in_block("mlp.fc1", "intermediate.dense")),
        "block.{n}.ffn.down": Op(_in_block("mlp.fc2", "output.dense")),
        "norm": Op(under(_ROOTS, "layernorm")),
        "neck": Op("classifier.layernorm"),
    },
    spans={
        "block.{n}.attn": Span("block.{n}.attn.q", "block.{n}.attn.o"),
        "block.{n}.ffn": Span("block.{n}.ffn.up", "block.{n}.ffn.down"),
    },
    attention={
        "block.{n}.attn": Attention(
            under(_ROOTS, "layers.{n}.attention", "encoder.layer.{n}.attention.attention"), heads="num_attention_heads", head_size=("head_dim", "attention_head_size")
        )
    },
    streams={
        "tokens": Stream("blocks", under(_ROOTS, "layers.{n}", "encoder.layer.{n}"), embed="config.hidden_size", offset=2, first="tokens", deep="block.{n}.tokens"),
    },
    blocks=under(_ROOTS, "layers.{n}", "encoder.layer.{n}"),
    stem=under(_ROOTS, "embeddings"),
    norms={"block.{n}.attn": "block.{n}.norm1", "block.{n}.ffn": "block.{n}.norm2"},
    no_effect={"*.attn.k:shift": "softmax is invariant to a shift of all scores of a query"},
    export={"classification": _RECIPE, "features": _RECIPE},
    extra="transformers",
    notes="The number of frames is fixed: every patch has a learned position. Features are the mean of two prefix tokens, class and distillation, or of all (pooling=tokens).",
)
