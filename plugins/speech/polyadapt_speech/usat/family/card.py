"""Card of the family `voice`. Sites are named as in the family `vits`, which is the same network in transformers' hands."""

from __future__ import annotations

from polyadapt.families.card import ExportRecipe, FamilyCard, Op, Span

SOFTMAX = "a shift of a key adds one number to all scores of a query, and softmax does not see that; relative positions meet the query only"

CAUSE = "a flow and a deep stack of convolutions: on Piper's joe torch's own float32 lies up to 4e-5 from float64; durations are rounded up, so a tie may fall either way"

_BLOCK = "text_encoder.blocks.{n}"

CARD = FamilyCard(
    id="voice",
    title="VITS voices (Piper, MMS)",
    media=("text", "audio"),
    architecture="encoder-decoder",
    libraries={},
    classes=("Voice",),
    tasks=("synthesis",),
    sites={
        "encoder.embed": Op("text_encoder.embed"),
        "encoder.block.{n}.attn.q": Op(f"{_BLOCK}.attention.q"),
        "encoder.block.{n}.attn.k": Op(f"{_BLOCK}.attention.k"),
        "encoder.block.{n}.attn.v": Op(f"{_BLOCK}.attention.v"),
        "encoder.block.{n}.attn.o": Op(f"{_BLOCK}.attention.o"),
        "encoder.block.{n}.norm1": Op(f"{_BLOCK}.norm1"),
        "encoder.block.{n}.ffn.up": Op(f"{_BLOCK}.feed_forward.up"),
        "encoder.block.{n}.ffn.down": Op(f"{_BLOCK}.feed_forward.down"),
        "encoder.block.{n}.norm2": Op(f"{_BLOCK}.norm2"),
        "encoder.out": Op("text_encoder.out"),
        "durations.block.{n}.out": Op("durations.flows.{n}.after"),
        "flow.block.{n}.in": Op("flow.couplings.{n}.before"),
        "flow.block.{n}.layer.{m}.conv.0": Op("flow.couplings.{n}.wavenet.dilated.{m}"),
        "flow.block.{n}.layer.{m}.conv.1": Op("flow.couplings.{n}.wavenet.skip.{m}"),
        "flow.block.{n}.out": Op("flow.couplings.{n}.after"),
        "decoder.in": Op("decoder.before"),
        "decoder.block.{n}.layer.{m}.conv.0": Op("decoder.residual.{n}.first.{m}"),
        "decoder.block.{n}.layer.{m}.conv.1": Op("decoder.residual.{n}.second.{m}"),
        "decoder.out": Op("decoder.after"),
    },
    spans={
        "encoder.block.{n}.attn": Span("encoder.block.{n}.attn.q", "encoder.block.{n}.attn.o"),
        "encoder.block.{n}.ffn": Span("encoder.block.{n}.ffn.up", "encoder.block.{n}.ffn.down"),
        "durations.block.{n}.shift": Span("durations.block.{n}.out", "durations.block.{n}.out"),
        "flow.block.{n}.coupling": Span("flow.block.{n}.in", "flow.block.{n}.out"),
        "flow.block.{n}.shift": Span("flow.block.{n}.out", "flow.block.{n}.out"),
    },
    blocks=(_BLOCK,),
    stem=("text_encoder.embed",),
    no_effect={"*.attn.k:shift": SOFTMAX},
    implementation="polyadapt_speech.usat.family.model:VoiceFamily",
    export={
        "synthesis": ExportRecipe(
            trace={"batch": 2, "tokens": 8, "noise_frames": 12},
            check=({"batch": 1, "tokens": 11, "noise_frames": 70}, {"batch": 3, "tokens": 3, "noise_frames": 1}),
            tolerance=1e-4,
            cause=CAUSE,
        )
    },
    conditioners={
        "speaker": ExportRecipe(
            trace={"batch": 2, "samples": 7000},
            check=({"batch": 1, "samples": 5500}, {"batch": 3, "samples": 9001}),
        )
    },
    notes="Length of the waveform follows from the text. Without `noise_inputs` in the task's details the same text gives the same sound; "
    "with it, noise and speed are inputs of the graph. "
    "Spans of the flow: `coupling` is beside the transform, `shift` inside it, behind its WaveNet; in a coupling of the durations there is `shift` alone. "
    "A voice that listens computes its input `speaker` from a recording, in a graph of its own. "
    "Transposed convolutions are not adapted.",
)
