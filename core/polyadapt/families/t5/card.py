"""Card of the T5 family: two towers, cross attention in the decoder's blocks."""

from __future__ import annotations

from polyadapt.families.card import Attention, ExportRecipe, FamilyCard, Op, Span, Stream

SOFTMAX = "a shift of a key adds one number to all scores of a query, and softmax does not see that"
BIAS = "the same number for every distance adds one number to all scores of a query, and softmax does not see that"


def _attention(tower: str, name: str, path: str) -> dict[str, Op]:
    return {f"{tower}.block.{{n}}.{name}.{part}": Op(f"{tower}.block.{{n}}.{path}.{part}") for part in "qkvo"}


def _tower(tower: str, last: int) -> dict[str, Op]:
    """Sites of one tower, whose FFN is layer `last` of a block. The plain FFN has `wi`, the gated one `wi_0` (gate) and `wi_1`."""
    block, ffn = f"{tower}.block.{{n}}", f"{tower}.block.{{n}}.layer.{last}.DenseReluDense"
    return {
        f"{tower}.embed": Op(f"{tower}.embed_tokens"),
        f"{tower}.pos": Op(f"{tower}.block.0.layer.0.SelfAttention.relative_attention_bias"),
        f"{block}.norm1": Op(f"{block}.layer.0.layer_norm"),
        **_attention(tower, "attn", "layer.0.SelfAttention"),
        f"{block}.norm{last + 1}": Op(f"{block}.layer.{last}.layer_norm"),
        f"{block}.ffn.gate": Op(f"{ffn}.wi_0"),
        f"{block}.ffn.up": Op((f"{ffn}.wi_1", f"{ffn}.wi")),
        f"{block}.ffn.down": Op(f"{ffn}.wo"),
        f"{tower}.norm": Op(f"{tower}.final_layer_norm"),
    }


def _span(block: str, part: str, start: str, end: str) -> dict[str, Span]:
    return {f"{block}.{part}": Span(f"{block}.{part}.{start}", f"{block}.{part}.{end}")}


CARD = FamilyCard(
    id="t5",
    title="T5 encoder and decoder",
    media=("text",),
    architecture="encoder-decoder",
    libraries={"transformers": ">=5.0"},
    classes=("transformers.T5ForConditionalGeneration",),
    tasks=("seq2seq-lm",),
    sites={
        **_tower("encoder", 1),
        **_tower("decoder", 2),
        "decoder.block.{n}.norm2": Op("decoder.block.{n}.layer.1.layer_norm"),
        **_attention("decoder", "cross", "layer.1.EncDecAttention"),
        "head": Op("lm_head"),
    },
    spans={
        **_span("encoder.block.{n}", "attn", "q", "o"),
        **_span("encoder.block.{n}", "ffn", "up", "down"),
        **_span("decoder.block.{n}", "attn", "q", "o"),
        **_span("decoder.block.{n}", "cross", "q", "o"),
        **_span("decoder.block.{n}", "ffn", "up", "down"),
    },
    attention={
        "encoder.block.{n}.attn": Attention("encoder.block.{n}.layer.0.SelfAttention", "n_heads", "key_value_proj_dim"),
        "decoder.block.{n}.attn": Attention("decoder.block.{n}.layer.0.SelfAttention", "n_heads", "key_value_proj_dim", causal=True),
        "decoder.block.{n}.cross": Attention("decoder.block.{n}.layer.1.EncDecAttention", "n_heads", "key_value_proj_dim", cross=True),
    },
    streams={
        "encoder.tokens": Stream("embeds", "encoder", "embed_tokens", first="encoder.tokens"),
        "decoder.tokens": Stream("embeds", "decoder", "embed_tokens", first="decoder.tokens"),
    },
    # No blocks to bypass: block 0 makes the position bias that all later blocks of its tower are given.
    blocks=(),
    stem=("encoder.embed_tokens", "decoder.embed_tokens"),
    no_effect={"*.attn.k:shift": SOFTMAX, "*.cross.k:shift": SOFTMAX, "*.pos:shift": BIAS},
    implementation="polyadapt.families.t5.model:T5",
    export={
        "seq2seq-lm": ExportRecipe(
            trace={"batch": 2, "source": 6, "target": 4, "past": 5},
            check=({"batch": 1, "source": 9, "target": 7, "past": 0}, {"batch": 3, "source": 4, "target": 1, "past": 6}),
            explicit_attention=True,
        )
    },
    extra="transformers",
    notes="Two graphs, encoder and decoder with caches; the fused attention call cannot be decomposed with a position bias, so it is spelt out while tracing.",
)
