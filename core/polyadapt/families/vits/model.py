"""VITS: Kim et al., Conditional Variational Autoencoder with Adversarial Learning for End-to-End TTS, arXiv 2106.06103."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from polyadapt.families.base import Family
from polyadapt.families.text import activation_name, random_ids, random_mask
from polyadapt.signature import Signature, Task, TensorSpec


class Vits(Family):
    """Token ids to a waveform."""

    def tiny(self, task: Task) -> nn.Module:
        from transformers import VitsConfig, VitsModel

        config = VitsConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            ffn_dim=64,
            layerdrop=0.0,
            flow_size=32,
            spectrogram_bins=17,
            upsample_initial_channel=32,
            upsample_rates=[4, 2],
            upsample_kernel_sizes=[8, 4],
            resblock_kernel_sizes=[3, 5],
            resblock_dilation_sizes=[[1, 3], [1, 3]],
            duration_predictor_num_flows=2,
            prior_encoder_num_flows=2,
            prior_encoder_num_wavenet_layers=2,
            posterior_encoder_num_wavenet_layers=2,
            noise_scale=0.0,
            noise_scale_duration=0.0,
        )
        backbone: nn.Module = VitsModel(config)
        _calm_durations(backbone)
        return backbone

    def config(self, backbone: nn.Module) -> dict[str, Any]:
        config: Any = backbone.config
        return {
            "blocks": config.num_hidden_layers,
            "width": config.hidden_size,
            "heads": config.num_attention_heads,
            "window": config.window_size,
            "ffn": [config.ffn_dim, config.ffn_kernel_size],
            "vocabulary": config.vocab_size,
            "flow": [config.flow_size, config.prior_encoder_num_flows, config.prior_encoder_num_wavenet_layers, config.wavenet_kernel_size, config.wavenet_dilation_rate],
            "upsample": [list(config.upsample_rates), list(config.upsample_kernel_sizes), config.upsample_initial_channel],
            "residual": [list(config.resblock_kernel_sizes), [list(item) for item in config.resblock_dilation_sizes], config.leaky_relu_slope],
            "durations": [config.use_stochastic_duration_prediction, config.duration_predictor_num_flows, config.duration_predictor_flow_bins],
            "tail_bound": config.duration_predictor_tail_bound,
            "activation": activation_name(config.hidden_act),
            "norm_epsilon": config.layer_norm_eps,
            "speakers": config.num_speakers,
            "sample_rate_hz": config.sampling_rate,
        }

    def signature(self, backbone: nn.Module, task: Task) -> Signature:
        config: Any = backbone.config
        inputs = (
            TensorSpec("input_ids", ("batch", "tokens"), "int64", "ids of characters or phonemes"),
            TensorSpec("attention_mask", ("batch", "tokens"), "int64", "1 for real tokens, 0 for padding on the right"),
        )
        outputs = (
            TensorSpec("waveform", ("batch", "samples"), "float32", f"sound at {config.sampling_rate} Hz, in -1..1"),
            TensorSpec("lengths", ("batch",), "int64", "samples of each waveform that belong to its text", "samples"),
        )
        return Signature(inputs, outputs)

    def forward(self, backbone: nn.Module, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        if torch.onnx.is_in_onnx_export():
            ids, mask = _above_window(ids, mask, backbone)
        speaker = task.details.get("speaker")
        with _noise(backbone, task):
            result = backbone(input_ids=ids, attention_mask=mask, speaker_id=speaker)
        return {"waveform": result.waveform, "lengths": result.sequence_lengths}  # (B, samples), (B,)

    def feature_size(self, backbone: nn.Module) -> int:
        config: Any = backbone.config
        return int(config.hidden_size)

    def example(self, backbone: nn.Module, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        config: Any = backbone.config
        batch, tokens = sizes["batch"], sizes["tokens"]
        return {"input_ids": random_ids(config.vocab_size, batch, tokens, generator), "attention_mask": random_mask(batch, tokens, generator)}


@torch.no_grad()
def _calm_durations(backbone: Any) -> None:
    """About three frames a token: random weights give durations that the exponential blows up to minutes."""
    for flow in backbone.duration_predictor.flows:
        if hasattr(flow, "translate"):
            flow.translate.fill_(-1.0)
        else:
            flow.conv_proj.weight.mul_(0.2)


def _above_window(ids: torch.Tensor, mask: torch.Tensor, backbone: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Add masked tokens, so that every text is longer than the window of relative positions.

    Tracing fixes on which side of the window the length lies; masked tokens last 0 frames and change nothing.
    """
    config: Any = backbone.config
    extra = (0, int(config.window_size) + 1)
    return F.pad(ids, extra), F.pad(mask, extra)  # (B, T + window + 1)


@contextmanager
def _noise(backbone: Any, task: Task) -> Iterator[None]:
    """Give the model the task's noise scales, 0 by default, and its own ones back afterwards."""
    before = backbone.noise_scale, backbone.noise_scale_duration
    backbone.noise_scale = task.details.get("noise_scale", 0.0)
    backbone.noise_scale_duration = task.details.get("noise_scale_duration", 0.0)
    try:
        yield
    finally:
        backbone.noise_scale, backbone.noise_scale_duration = before
