"""Card of the Llama family: Llama and Qwen2, with grouped key/value heads."""

from __future__ import annotations

from polyadapt.families.card import Attention, ExportRecipe, FamilyCard, Op, Span, Stream


def _in(path: str) -> tuple[str, str]:
    """A module of the tower, which a class with a head keeps under `model`."""
    return f"model.{path}", path


def _layer(path: str) -> Op:
    return Op(_in(f"layers.{{n}}.{path}"))


CARD = FamilyCard(
    id="llama",
    title="Llama and Qwen2 decoders",
    media=("text",),
    architecture="decoder",
    libraries={"transformers": ">=5.0"},
    classes=(
        "transformers.LlamaForCausalLM",
        "transformers.LlamaModel",
        "transformers.LlamaForSequenceClassification",
        "transformers.Qwen2ForCausalLM",
        "transformers.Qwen2Model",
        "transformers.Qwen2ForSequenceClassification",
    ),
    tasks=("causal-lm", "classification"),
    sites={
        "embed": Op(_in("embed_tokens")),
        "block.{n}.norm1": _layer("input_layernorm"),
        "block.{n}.attn.q": _layer("self_attn.q_proj"),
        "block.{n}.attn.k": _layer("self_attn.k_proj"),
        "block.{n}.attn.v": _layer("self_attn.v_proj"),
        "block.{n}.attn.o": _layer("self_attn.o_proj"),
        "block.{n}.norm2": _layer("post_attention_layernorm"),
        "block.{n}.ffn.gate": _layer("mlp.gate_proj"),
        "block.{n}.ffn.up": _layer("mlp.up_proj"),
        "block.{n}.ffn.down": _layer("mlp.down_proj"),
        "norm": Op(_in("norm")),
        "head": Op("lm_head"),
    },
    spans={
        "block.{n}.attn": Span("block.{n}.attn.q", "block.{n}.attn.o"),
        "block.{n}.ffn": Span("block.{n}.ffn.up", "block.{n}.ffn.down"),
    },
    attention={"block.{n}.attn": Attention(_in("layers.{n}.self_attn"), "config.num_key_value_heads", "head_dim", causal=True)},
    streams={"tokens": Stream("embeds", ("model", ""), "embed_tokens")},
    blocks=_in("layers.{n}"),
    stem=_in("embed_tokens"),
    # No `attn.k:shift` here: rotary positions turn the shift differently at every key, so softmax sees it.
    no_effect={},
    unreached={"classification": ("head",)},
    implementation="polyadapt.families.llama.model:Llama",
    export={
        "causal-lm": ExportRecipe(
            trace={"batch": 2, "tokens": 3, "past": 5},
            check=({"batch": 1, "tokens": 1, "past": 7}, {"batch": 3, "tokens": 4, "past": 2}, {"batch": 1, "tokens": 6, "past": 0}),
            tolerance=3e-5,
            cause="rounding grows with depth: keys that the upper of thirty blocks cache differ by 1e-5 of the largest, scores by less",
        ),
        "classification": ExportRecipe(trace={"batch": 2, "tokens": 6}, check=({"batch": 1, "tokens": 9}, {"batch": 3, "tokens": 4})),
    },
    extra="transformers",
    notes="Classification does not run the output projection; its features are the last real token's vector. Sliding-window attention is refused.",
)
