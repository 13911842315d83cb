"""Card of the VITS family. Its attention adds relative positions itself, so there is no fused call to intercept."""

from __future__ import annotations

from polyadapt.families.card import ExportRecipe, FamilyCard, Op, Span

SOFTMAX = "a shift of a key adds one number to all scores of a query, and softmax does not see that; relative positions meet the query only"
CAUSE = "spline of the duration flow and a deep stack of transposed convolutions; durations are rounded up, so a tie may fall either way"

_LAYER = "text_encoder.encoder.layers.{n}"

CARD = FamilyCard(
    id="vits",
    title="VITS text to speech",
    media=("text", "audio"),
    architecture="encoder-decoder",
    libraries={"transformers": ">=5.0"},
    classes=("transformers.VitsModel",),
    tasks=("synthesis",),
    sites={
        "encoder.embed": Op("text_encoder.embed_tokens"),
        "encoder.block.{n}.attn.q": Op(f"{_LAYER}.attention.q_proj"),
        "encoder.block.{n}.attn.k": Op(f"{_LAYER}.attention.k_proj"),
        "encoder.block.{n}.attn.v": Op(f"{_LAYER}.attention.v_proj"),
        "encoder.block.{n}.attn.o": Op(f"{_LAYER}.attention.out_proj"),
        "encoder.block.{n}.norm1": Op(f"{_LAYER}.layer_norm"),
        "encoder.block.{n}.ffn.up": Op(f"{_LAYER}.feed_forward.conv_1"),
        "encoder.block.{n}.ffn.down": Op(f"{_LAYER}.feed_forward.conv_2"),
        "encoder.block.{n}.norm2": Op(f"{_LAYER}.final_layer_norm"),
        "encoder.out": Op("text_encoder.project"),
        "flow.block.{n}.in": Op("flow.flows.{n}.conv_pre"),
        "flow.block.{n}.layer.{m}.conv.0": Op("flow.flows.{n}.wavenet.in_layers.{m}"),
        "flow.block.{n}.layer.{m}.conv.1": Op("flow.flows.{n}.wavenet.res_skip_layers.{m}"),
        "flow.block.{n}.out": Op("flow.flows.{n}.conv_post"),
        "decoder.in": Op("decoder.conv_pre"),
        "decoder.block.{n}.layer.{m}.conv.0": Op("decoder.resblocks.{n}.convs1.{m}"),
        "decoder.block.{n}.layer.{m}.conv.1": Op("decoder.resblocks.{n}.convs2.{m}"),
        "decoder.out": Op("decoder.conv_post"),
    },
    # The FFN is a pair of convolutions over a padded sequence: its two ends differ in length, so it is no span.
    spans={"encoder.block.{n}.attn": Span("encoder.block.{n}.attn.q", "encoder.block.{n}.attn.o")},
    blocks=("text_encoder.encoder.layers.{n}",),
    stem=("text_encoder.embed_tokens",),
    no_effect={"*.attn.k:shift": SOFTMAX},
    implementation="polyadapt.families.vits.model:Vits",
    export={
        "synthesis": ExportRecipe(
            trace={"batch": 2, "tokens": 8},
            check=({"batch": 1, "tokens": 11}, {"batch": 3, "tokens": 4}),
            exporter="legacy",
            tolerance=5e-5,
            cause=CAUSE,
        )
    },
    extra="transformers",
    notes="Length of the waveform follows from the text. Noise scales are 0 unless `Task.details` gives `noise_scale` and `noise_scale_duration`: "
    "the same text gives the same sound. "
    "The duration predictor has no sites: its output is rounded. Transposed convolutions are not adapted. The dynamo exporter stops at the length that depends on data.",
)
