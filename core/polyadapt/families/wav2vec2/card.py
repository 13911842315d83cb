"""wav2vec 2.0 of transformers. Paper: wav2vec 2.0 (2006.11477)."""

from __future__ import annotations

from polyadapt.families.card import Attention, ExportRecipe, FamilyCard, Op, Span, Stream, under

_ROOTS = ("", "wav2vec2.")
# The published nets make a frame of the first 400 samples and one of each further 320: 12, 8 and 19 frames.
_RECIPE = ExportRecipe(trace={"batch": 2, "samples": 4000}, check=({"batch": 1, "samples": 2650}, {"batch": 3, "samples": 6300}))


def _at(path: str) -> Op:
    return Op(under(_ROOTS, path))


CARD = FamilyCard(
    id="wav2vec2",
    title="wav2vec 2.0 (transformers)",
    media=("audio",),
    architecture="encoder",
    libraries={"transformers": ">=5.0"},
    classes=("transformers.Wav2Vec2Model", "transformers.Wav2Vec2ForCTC"),
    tasks=("ctc", "classification", "features"),
    implementation="polyadapt.families.wav2vec2.model:Wav2Vec2Family",
    sites={
        "stage.0.block.{n}.conv.0": _at("feature_extractor.conv_layers.{n}.conv"),
        "stage.0.block.{n}.norm1": _at("feature_extractor.conv_layers.{n}.layer_norm"),
        "embed.norm": _at("feature_projection.layer_norm"),
        "embed": _at("feature_projection.projection"),
        "pos": _at("encoder.pos_conv_embed.conv"),
        "block.{n}.attn.q": _at("encoder.layers.{n}.attention.q_proj"),
        "block.{n}.attn.k": _at("encoder.layers.{n}.attention.k_proj"),
        "block.{n}.attn.v": _at("encoder.layers.{n}.attention.v_proj"),
        "block.{n}.attn.o": _at("encoder.layers.{n}.attention.out_proj"),
        "block.{n}.norm1": _at("encoder.layers.{n}.layer_norm"),
        "block.{n}.ffn.up": _at("encoder.layers.{n}.feed_forward.intermediate_dense"),
        "block.{n}.ffn.down": _at("encoder.layers.{n}.feed_forward.output_dense"),
        "block.{n}.norm2": _at("encoder.layers.{n}.final_layer_norm"),
        "norm": _at("encoder.layer_norm"),
        "head": Op("lm_head"),
    },
    spans={
        "block.{n}.attn": Span("block.{n}.attn.q", "block.{n}.attn.o"),
        "block.{n}.ffn": Span("block.{n}.ffn.up", "block.{n}.ffn.down"),
    },
    attention={"block.{n}.attn": Attention(under(_ROOTS, "encoder.layers.{n}.attention"), heads="num_heads", head_size="head_dim")},
    streams={"tokens": Stream("blocks", under(_ROOTS, "encoder.layers.{n}"), embed="config.hidden_size", first="tokens", deep="block.{n}.tokens")},
    blocks=under(_ROOTS, "encoder.layers.{n}"),
    stem=under(_ROOTS, "feature_extractor", "feature_projection", "encoder.pos_conv_embed", "encoder.layer_norm"),
    norms={"block.{n}.attn": "block.{n}.norm1", "block.{n}.ffn": "block.{n}.norm2"},
    no_effect={
        "*.attn.k:shift": "softmax is invariant to a shift of all scores of a query",
        "stage.0.block.0.conv.0:shift": "the group norm behind it has one channel a group and takes any constant away",
    },
    unreached={"classification": ("head",), "features": ("head",)},
    export={"ctc": _RECIPE, "classification": _RECIPE, "features": _RECIPE},
    extra="transformers",
    notes=(
        "`audio_lengths` [batch] (samples) is an optional input: padded ends are masked then and left out of the mean. "
        "For task ctc a checkpoint without symbols of its own gives frames, over which a head is learned; `own_head=false` leaves those of one that has them."
    ),
)
