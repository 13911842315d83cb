"""Whisper of transformers. Paper: Robust Speech Recognition via Large-Scale Weak Supervision (2212.04356)."""

from __future__ import annotations

from polyadapt.families.card import Attention, ExportRecipe, FamilyCard, Op, Span, Stream, under

_ENCODER = ("model.encoder.", "encoder.", "")
_DECODER = ("model.decoder.", "decoder.")
_TOLERANCE, _CAUSE = 5e-5, "states of a trained encoder: torch's own float32 is up to 1.7e-5 of the largest away from float64 there"
_ENCODED = ExportRecipe(trace={"batch": 2, "frames": 64}, check=({"batch": 1, "frames": 49}, {"batch": 3, "frames": 90}), tolerance=_TOLERANCE, cause=_CAUSE)
_TRANSCRIPTION = ExportRecipe(
    trace={"batch": 2, "frames": 64, "tokens": 4, "past": 5},
    check=({"batch": 1, "frames": 49, "tokens": 3, "past": 0}, {"batch": 3, "frames": 90, "tokens": 1, "past": 7}),
    tolerance=_TOLERANCE,
    cause=_CAUSE,
)


def _encoder(path: str) -> Op:
    return Op(under(_ENCODER, path))


def _decoder(path: str) -> Op:
    return Op(under(_DECODER, path))


def _attention(site: str, roots: tuple[str, ...], name: str) -> dict[str, Op]:
    return {f"{site}.{letter}": Op(under(roots, f"layers.{{n}}.{name}.{letter}_proj")) for letter in "qkv"} | {f"{site}.o": Op(under(roots, f"layers.{{n}}.{name}.out_proj"))}


CARD = FamilyCard(
    id="whisper",
    title="Whisper",
    media=("audio", "text"),
    architecture="encoder-decoder",
    libraries={"transformers": ">=5.0"},
    classes=("transformers.WhisperForConditionalGeneration", "transformers.WhisperModel", "transformers.WhisperEncoder"),
    tasks=("transcription", "ctc", "classification", "features"),
    implementation="polyadapt.families.whisper.model:WhisperFamily",
    sites={
        "encoder.stage.0.block.0.conv.0": _encoder("conv1"),
        "encoder.stage.0.block.0.conv.1": _encoder("conv2"),
        "encoder.pos": _encoder("embed_positions"),
        "encoder.block.{n}.norm1": _encoder("layers.{n}.self_attn_layer_norm"),
        **_attention("encoder.block.{n}.attn", _ENCODER, "self_attn"),
        "encoder.block.{n}.norm2": _encoder("layers.{n}.final_layer_norm"),
        "encoder.block.{n}.ffn.up": _encoder("layers.{n}.fc1"),
        "encoder.block.{n}.ffn.down": _encoder("layers.{n}.fc2"),
        "encoder.norm": _encoder("layer_norm"),
        # The decoder's positions are no site: the library calls that embedding with the token ids and looks up other rows.
        "decoder.embed": _decoder("embed_tokens"),
        "decoder.block.{n}.norm1": _decoder("layers.{n}.self_attn_layer_norm"),
        **_attention("decoder.block.{n}.attn", _DECODER, "self_attn"),
        "decoder.block.{n}.norm2": _decoder("layers.{n}.encoder_attn_layer_norm"),
        **_attention("decoder.block.{n}.cross", _DECODER, "encoder_attn"),
        "decoder.block.{n}.norm3": _decoder("layers.{n}.final_layer_norm"),
        "decoder.block.{n}.ffn.up": _decoder("layers.{n}.fc1"),
        "decoder.block.{n}.ffn.down": _decoder("layers.{n}.fc2"),
        "decoder.norm": _decoder("layer_norm"),
        "head": Op("proj_out"),
    },
    spans={
        "encoder.block.{n}.attn": Span("encoder.block.{n}.attn.q", "encoder.block.{n}.attn.o"),
        "encoder.block.{n}.ffn": Span("encoder.block.{n}.ffn.up", "encoder.block.{n}.ffn.down"),
        "decoder.block.{n}.attn": Span("decoder.block.{n}.attn.q", "decoder.block.{n}.attn.o"),
        "decoder.block.{n}.cross": Span("decoder.block.{n}.cross.q", "decoder.block.{n}.cross.o"),
        "decoder.block.{n}.ffn": Span("decoder.block.{n}.ffn.up", "decoder.block.{n}.ffn.down"),
    },
    attention={
        "encoder.block.{n}.attn": Attention(under(_ENCODER, "layers.{n}.self_attn"), heads="num_heads", head_size="head_dim"),
        "decoder.block.{n}.attn": Attention(under(_DECODER, "layers.{n}.self_attn"), heads="num_heads", head_size="head_dim", causal=True),
        "decoder.block.{n}.cross": Attention(under(_DECODER, "layers.{n}.encoder_attn"), heads="num_heads", head_size="head_dim", cross=True),
    },
    streams={
        "encoder": Stream("blocks", under(_ENCODER, "layers.{n}"), embed="config.d_model", first="encoder.tokens", deep="encoder.block.{n}.tokens"),
        "decoder": Stream("embeds", ("model.decoder", "decoder"), embed="embed_tokens", first="decoder.tokens"),
    },
    # The decoder's blocks are left out: the first of them does not read what the encoder's last one gives.
    blocks=under(_ENCODER, "layers.{n}"),
    stem=under(_ENCODER, "conv1", "conv2", "embed_positions"),
    norms={
        "encoder.block.{n}.attn": "encoder.block.{n}.norm1",
        "encoder.block.{n}.ffn": "encoder.block.{n}.norm2",
        "decoder.block.{n}.attn": "decoder.block.{n}.norm1",
        "decoder.block.{n}.cross": "decoder.block.{n}.norm2",
        "decoder.block.{n}.ffn": "decoder.block.{n}.norm3",
    },
    no_effect={
        "*.attn.k:shift": "softmax is invariant to a shift of all scores of a query",
        "*.cross.k:shift": "softmax is invariant to a shift of all scores of a query",
    },
    unreached=dict.fromkeys(("ctc", "classification", "features"), ("decoder.*", "head")),
    export={"transcription": _TRANSCRIPTION, "ctc": _ENCODED, "classification": _ENCODED, "features": _ENCODED},
    extra="transformers",
    notes="Clips shorter than 30 s need no padding: positions are counted from the start and cut at the clip's length. Layer drop and SpecAugment are left to the caller.",
)
