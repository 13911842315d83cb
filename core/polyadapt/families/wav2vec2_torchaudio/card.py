"""wav2vec 2.0 of torchaudio. Paper: wav2vec 2.0 (2006.11477)."""

from __future__ import annotations

from polyadapt.families.card import Attention, ExportRecipe, FamilyCard, Op, Span, Stream

# The published nets make a frame of the first 400 samples and one of each further 320: 12, 8 and 19 frames.
_RECIPE = ExportRecipe(trace={"batch": 2, "samples": 4000}, check=({"batch": 1, "samples": 2650}, {"batch": 3, "samples": 6300}))
_LAYER = "encoder.transformer.layers.{n}"

CARD = FamilyCard(
    id="wav2vec2-torchaudio",
    title="wav2vec 2.0, HuBERT (torchaudio)",
    media=("audio",),
    architecture="encoder",
    libraries={"torchaudio": ">=2.9"},
    classes=("torchaudio.Wav2Vec2Model",),
    tasks=("ctc", "classification", "features"),
    implementation="polyadapt.families.wav2vec2_torchaudio.model:Wav2Vec2TorchaudioFamily",
    sites={
        "stage.0.block.{n}.conv.0": Op("feature_extractor.conv_layers.{n}.conv"),
        # torchaudio's LayerNorm here takes and gives channels first
        "stage.0.block.{n}.norm1": Op("feature_extractor.conv_layers.{n}.layer_norm", channels_first=True),
        "embed.norm": Op("encoder.feature_projection.layer_norm"),
        "embed": Op("encoder.feature_projection.projection"),
        "pos": Op("encoder.transformer.pos_conv_embed.conv"),
        "block.{n}.attn.q": Op(f"{_LAYER}.attention.q_proj"),
        "block.{n}.attn.k": Op(f"{_LAYER}.attention.k_proj"),
        "block.{n}.attn.v": Op(f"{_LAYER}.attention.v_proj"),
        "block.{n}.attn.o": Op(f"{_LAYER}.attention.out_proj"),
        "block.{n}.norm1": Op(f"{_LAYER}.layer_norm"),
        "block.{n}.ffn.up": Op(f"{_LAYER}.feed_forward.intermediate_dense"),
        "block.{n}.ffn.down": Op(f"{_LAYER}.feed_forward.output_dense"),
        "block.{n}.norm2": Op(f"{_LAYER}.final_layer_norm"),
        "norm": Op("encoder.transformer.layer_norm"),
        "head": Op("aux"),
    },
    spans={
        "block.{n}.attn": Span("block.{n}.attn.q", "block.{n}.attn.o"),
        "block.{n}.ffn": Span("block.{n}.ffn.up", "block.{n}.ffn.down"),
    },
    attention={"block.{n}.attn": Attention(f"{_LAYER}.attention", heads="num_heads", head_size="head_dim")},
    streams={"tokens": Stream("blocks", _LAYER, embed="encoder.transformer.pos_conv_embed.embed_dim", first="tokens", deep="block.{n}.tokens")},
    blocks=(_LAYER,),
    stem=("feature_extractor", "encoder.feature_projection", "encoder.transformer.pos_conv_embed", "encoder.transformer.layer_norm"),
    norms={"block.{n}.attn": "block.{n}.norm1", "block.{n}.ffn": "block.{n}.norm2"},
    no_effect={
        "*.attn.k:shift": "softmax is invariant to a shift of all scores of a query",
        "stage.0.block.0.conv.0:shift": "the group norm behind it has one channel a group and takes any constant away",
    },
    unreached={"classification": ("head",), "features": ("head",)},
    export={"ctc": _RECIPE, "classification": _RECIPE, "features": _RECIPE},
    extra="torchaudio",
    notes=(
        "`audio_lengths` [batch] (samples) is an optional input: padded ends are masked then and left out of the mean. Blocks answer with (hidden, position bias). "
        "For task ctc a checkpoint without symbols of its own gives frames, over which a head is learned; `own_head=false` leaves those of one that has them."
    ),
)
