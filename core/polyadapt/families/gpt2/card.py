"""Card of the GPT-2 family: q, k and v are thirds of one transposed projection."""

from __future__ import annotations

from polyadapt.families.card import Attention, ExportRecipe, FamilyCard, Op, Span, Stream

SOFTMAX = "a shift of a key adds one number to all scores of a query, and softmax does not see that"


def _in(path: str) -> tuple[str, str]:
    """A module of the tower, which a class with a head keeps under `transformer`."""
    return f"transformer.{path}", path


def _block(path: str, rows: tuple[int, int] | None = None) -> Op:
    return Op(_in(f"h.{{n}}.{path}"), rows)


CARD = FamilyCard(
    id="gpt2",
    title="GPT-2 decoder",
    media=("text",),
    architecture="decoder",
    libraries={"transformers": ">=5.0"},
    classes=("transformers.GPT2LMHeadModel", "transformers.GPT2Model", "transformers.GPT2ForSequenceClassification"),
    tasks=("causal-lm", "classification"),
    sites={
        "embed": Op(_in("wte")),
        "pos": Op(_in("wpe")),
        "block.{n}.norm1": _block("ln_1"),
        "block.{n}.attn.q": _block("attn.c_attn", (0, 3)),
        "block.{n}.attn.k": _block("attn.c_attn", (1, 3)),
        "block.{n}.attn.v": _block("attn.c_attn", (2, 3)),
        "block.{n}.attn.o": _block("attn.c_proj"),
        "block.{n}.norm2": _block("ln_2"),
        "block.{n}.ffn.up": _block("mlp.c_fc"),
        "block.{n}.ffn.down": _block("mlp.c_proj"),
        "norm": Op(_in("ln_f")),
        "head": Op("lm_head"),
    },
    spans={
        "block.{n}.attn": Span("block.{n}.attn.q", "block.{n}.attn.o"),
        "block.{n}.ffn": Span("block.{n}.ffn.up", "block.{n}.ffn.down"),
    },
    attention={"block.{n}.attn": Attention(_in("h.{n}.attn"), "num_heads", "head_dim", causal=True)},
    streams={"tokens": Stream("embeds", ("transformer", ""), "wte")},
    blocks=_in("h.{n}"),
    stem=(*_in("wte"), *_in("wpe")),
    no_effect={"*.attn.k:shift": SOFTMAX},
    unreached={"classification": ("head",)},
    implementation="polyadapt.families.gpt2.model:Gpt2",
    export={
        "causal-lm": ExportRecipe(
            trace={"batch": 2, "tokens": 3, "past": 5},
            check=({"batch": 1, "tokens": 1, "past": 7}, {"batch": 3, "tokens": 4, "past": 2}, {"batch": 1, "tokens": 6, "past": 0}),
        ),
        "classification": ExportRecipe(trace={"batch": 2, "tokens": 6}, check=({"batch": 1, "tokens": 9}, {"batch": 3, "tokens": 4})),
    },
    extra="transformers",
    notes="Classification does not run the output projection; its features are the last real token's vector.",
)
