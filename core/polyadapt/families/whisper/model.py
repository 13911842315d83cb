"""Whisper of transformers behind the family interface, with an encoder that takes clips of any length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from polyadapt.errors import UserError
from polyadapt.families import crossing
from polyadapt.families.base import TARGET, Family
from polyadapt.families.shared import enliven, features_spec, frames_spec, integers, library, normal, spectrogram_spec
from polyadapt.signature import Signature, Task, TensorSpec

FRAMES_A_SECOND = 100  # of its spectrograms

if TYPE_CHECKING:
    from torch import nn


class WhisperFamily(Family):
    """WhisperForConditionalGeneration, WhisperModel, or WhisperEncoder alone."""

    def tiny(self, task: Task) -> nn.Module:
        whisper = library("transformers.models.whisper", self.card.extra, self.card.id)
        config = whisper.WhisperConfig(
            vocab_size=40,
            num_mel_bins=16,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_source_positions=64,
            max_target_positions=32,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            attn_implementation="sdpa",
        )
        if task.kind == "transcription":
            return enliven(whisper.WhisperForConditionalGeneration(config))
        return enliven(whisper.modeling_whisper.WhisperEncoder(config))

    def config(self, backbone: Any) -> dict[str, Any]:
        config = backbone.config
        numbers = {
            "width": config.d_model,
            "mels": config.num_mel_bins,
            "encoder": [config.encoder_layers, config.encoder_attention_heads, config.encoder_ffn_dim, config.max_source_positions],
            "activation": str(config.activation_function),
        }
        if _decoder(backbone) is None:
            return numbers
        return numbers | {
            "decoder": [config.decoder_layers, config.decoder_attention_heads, config.decoder_ffn_dim, config.max_target_positions],
            "vocabulary": config.vocab_size,
            "embedding_scale": bool(config.scale_embedding),
        }

    def signature(self, backbone: Any, task: Task) -> Signature:
        mel = spectrogram_spec("mel", ("batch", backbone.config.num_mel_bins, "frames"))
        if task.kind != "transcription":
            return Signature((mel,), ((frames_spec if task.kind == "ctc" else features_spec)(backbone.config.d_model),))
        tokens = TensorSpec("decoder_input_ids", ("batch", "tokens"), "int64", "what was said so far, beginning with the start token", "token ids")
        logits = TensorSpec("logits", ("batch", "tokens", backbone.config.vocab_size), "float32", "scores of the next token at each position, before softmax")
        return Signature((mel, tokens), (logits,))

    def forward(self, backbone: Any, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Encode `mel`, then hand out the frames (for `ctc`), pool them, or decode `decoder_input_ids` against them.

        Raises:
            UserError: the clip is longer than the positions, or there is no decoder with scores to transcribe with.
        """
        hidden = encode(_encoder(backbone), inputs["mel"])  # (batch, frames / 2, width)
        if task.kind == "ctc":
            return {"features": hidden}  # (batch, frames / 2, width)
        if task.kind != "transcription":
            return {"features": hidden.mean(dim=1)}  # (batch, width)
        if not hasattr(backbone, "proj_out"):
            raise UserError("task 'transcription' needs a decoder with token scores, found a Whisper backbone without them; load WhisperForConditionalGeneration")
        tokens = inputs["decoder_input_ids"]
        # Without a mask the library looks for several texts packed into one row, and what it finds there cannot be traced.
        states = backbone.model.decoder(input_ids=tokens, attention_mask=torch.ones_like(tokens), encoder_hidden_states=hidden, use_cache=False).last_hidden_state
        return {"logits": backbone.proj_out(states)}  # (batch, tokens, vocabulary)

    def memory(self, backbone: Any) -> tuple[TensorSpec, ...]:
        return crossing.specs(*self.cache_shape(backbone), "states") if _decoder(backbone) is not None else ()

    def encode(self, backbone: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        hidden = encode(_encoder(backbone), inputs["mel"])  # (batch, frames / 2, width)
        attentions = [layer.encoder_attn for layer in _decoder(backbone).layers]
        crossed = crossing.keys_and_values([(attention.k_proj, attention.v_proj) for attention in attentions], hidden, self.cache_shape(backbone)[1])
        return {"encoder_hidden_states": hidden, **crossed}

    def cached_forward(
        self, backbone: Any, inputs: Mapping[str, torch.Tensor], past: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        tokens, cache, length = inputs[TARGET], crossing.cache_of(inputs, past), past[0][0].shape[2]
        batch, count = tokens.shape
        result = _decoder(backbone)(
            input_ids=tokens,
            attention_mask=tokens.new_ones(batch, length + count),
            position_ids=torch.arange(length, length + count, device=tokens.device).expand(batch, -1),
            encoder_hidden_states=crossing.stand_in(inputs),
            past_key_values=cache,
            use_cache=True,
        )
        return backbone.proj_out(result.last_hidden_state), crossing.present(cache)

    def longest_s(self, backbone: Any) -> float:
        return 2 * int(backbone.config.max_source_positions) / FRAMES_A_SECOND  # the second convolution halves them

    def positions(self, backbone: Any) -> int:
        return int(backbone.config.max_target_positions)

    def cache_shape(self, backbone: Any) -> tuple[int, int, int]:
        config = backbone.config
        heads = int(config.decoder_attention_heads)
        return int(config.decoder_layers), heads, int(config.d_model) // heads

    def feature_size(self, backbone: Any) -> int:
        return int(backbone.config.d_model)

    def example(self, backbone: Any, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        inputs = {"mel": normal((sizes["batch"], backbone.config.num_mel_bins, sizes["frames"]), generator)}
        if task.kind == "transcription":
            inputs["decoder_input_ids"] = integers(0, backbone.config.vocab_size, (sizes["batch"], sizes["tokens"]), generator)
        return inputs

    def output_lengths(self, backbone: Any, lengths: torch.Tensor) -> torch.Tensor:
        return torch.div(lengths + 1, 2, rounding_mode="floor")


def encode(encoder: Any, mel: torch.Tensor) -> torch.Tensor:
    """Run Whisper's encoder on a clip of any length up to its positions.

    The library insists on 30 s of spectrogram. Positions are sinusoids counted from the start, so a
    shorter clip uses the first of them and costs less.

    Shape:
        mel [batch, mels, frames] -> [batch, (frames + 1) // 2, width].

    Raises:
        UserError: more frames than the encoder has positions for.
    """
    limit = encoder.embed_positions.num_embeddings
    if not torch.compiler.is_compiling() and (mel.shape[2] + 1) // 2 > limit:
        raise UserError(f"Whisper takes at most {2 * limit} spectrogram frames, got {mel.shape[2]}; cut the audio into shorter clips")
    hidden = F.gelu(encoder.conv1(mel))  # (batch, width, frames)
    hidden = F.gelu(encoder.conv2(hidden)).permute(0, 2, 1)  # (batch, frames / 2, width)
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    hidden = hidden + encoder.embed_positions(positions)
    hidden = F.dropout(hidden, encoder.dropout, encoder.training)
    for layer in encoder.layers:
        hidden = layer(hidden, None)
    normed: torch.Tensor = encoder.layer_norm(hidden)
    return normed


def _encoder(backbone: Any) -> Any:
    inner = getattr(backbone, "model", backbone)
    return getattr(inner, "encoder", inner)


def _decoder(backbone: Any) -> Any:
    return getattr(getattr(backbone, "model", backbone), "decoder", None)
