"""Card of the BERT family."""

from __future__ import annotations

from polyadapt.families.card import Attention, ExportRecipe, FamilyCard, Op, Span, Stream

SOFTMAX = "a shift of a key adds one number to all scores of a query, and softmax does not see that"


def _in(path: str) -> tuple[str, str]:
    """A module inside the encoder, which a class with a head keeps under `bert`."""
    return f"bert.{path}", path


def _layer(path: str) -> Op:
    return Op(_in(f"encoder.layer.{{n}}.{path}"))


RECIPE = ExportRecipe(trace={"batch": 2, "tokens": 6}, check=({"batch": 1, "tokens": 9}, {"batch": 3, "tokens": 4}))

CARD = FamilyCard(
    id="bert",
    title="BERT encoder (post-norm), MiniLM",
    media=("text",),
    architecture="encoder",
    libraries={"transformers": ">=5.0"},
    classes=("transformers.BertModel", "transformers.BertForSequenceClassification"),
    tasks=("features", "classification"),
    sites={
        "embed": Op(_in("embeddings.word_embeddings")),
        "pos": Op(_in("embeddings.position_embeddings")),
        "types": Op(_in("embeddings.token_type_embeddings")),
        "embed.norm": Op(_in("embeddings.LayerNorm")),
        "block.{n}.attn.q": _layer("attention.self.query"),
        "block.{n}.attn.k": _layer("attention.self.key"),
        "block.{n}.attn.v": _layer("attention.self.value"),
        "block.{n}.attn.o": _layer("attention.output.dense"),
        "block.{n}.norm1": _layer("attention.output.LayerNorm"),
        "block.{n}.ffn.up": _layer("intermediate.dense"),
        "block.{n}.ffn.down": _layer("output.dense"),
        "block.{n}.norm2": _layer("output.LayerNorm"),
        # Without a class head the pooler's output is not used, so that model has no such site.
        "pool": Op("bert.pooler.dense"),
    },
    spans={
        "block.{n}.attn": Span("block.{n}.attn.q", "block.{n}.attn.o"),
        "block.{n}.ffn": Span("block.{n}.ffn.up", "block.{n}.ffn.down"),
    },
    attention={"block.{n}.attn": Attention(_in("encoder.layer.{n}.attention.self"), "num_attention_heads", "attention_head_size")},
    streams={"tokens": Stream("embeds", ("bert", ""), "embeddings.word_embeddings")},
    blocks=_in("encoder.layer.{n}"),
    stem=_in("embeddings"),
    no_effect={"*.attn.k:shift": SOFTMAX},
    implementation="polyadapt.families.bert.model:Bert",
    export={"features": RECIPE, "classification": RECIPE},
    extra="transformers",
    notes="Features are the mean over real tokens; a class with its own head uses the pooled first token instead. `Task.details['token_types']` adds the input `token_type_ids`.",
)
