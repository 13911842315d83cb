"""transformers' `VitsModel` (MMS voices among them) into this network, by the names of its weights."""

from __future__ import annotations

from typing import Any

import torch

from polyadapt.errors import UserError
from polyadapt_speech.usat.network.config import DecoderConfig, DurationConfig, VoiceConfig, WaveNetConfig
from polyadapt_speech.usat.network.voice import Voice
from polyadapt_speech.usat.voices.assemble import assemble
from polyadapt_speech.usat.voices.layouts import TRANSFORMERS

_LENGTH, _DIRECTION = ".parametrizations.weight.original0", ".parametrizations.weight.original1"


def from_transformers(model: Any) -> Voice:
    """A voice with the weights of a `VitsModel`; weight norm is folded.

    Raises:
        UserError: the model has several speakers, or parts that this network lacks.
    """
    config = _config(model.config)
    state = _folded({name: value.detach().float() for name, value in model.state_dict().items()})
    return assemble(config, {TRANSFORMERS.our_name(name): state[name].numpy() for name in TRANSFORMERS.speaking(state)}, type(model).__name__)


def _folded(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights with their norms folded in: length times direction over its norm (arXiv 1602.07868)."""
    folded = {name: value for name, value in state.items() if not name.endswith((_LENGTH, _DIRECTION))}
    for name, direction in state.items():
        if name.endswith(_DIRECTION):
            layer = name.removesuffix(_DIRECTION)
            folded[f"{layer}.weight"] = direction * state[layer + _LENGTH] / direction.flatten(1).norm(dim=1)[:, None, None]
    return folded


def _config(config: Any) -> VoiceConfig:
    refusals = {
        "several speakers": config.num_speakers > 1,
        "durations without a flow": not config.use_stochastic_duration_prediction,
        f"the activation {config.hidden_act!r}": config.hidden_act != "relu",
        f"a slope of {config.leaky_relu_slope} in its decoder": config.leaky_relu_slope != 0.1,
    }
    if found := [what for what, holds in refusals.items() if holds]:
        raise UserError(f"this VitsModel has {found[0]}, which this network does not; load it as hf:FOLDER instead, family vits")
    return VoiceConfig(
        vocab_size=config.vocab_size,
        sample_rate_hz=config.sampling_rate,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        blocks=config.num_hidden_layers,
        ffn_width=config.ffn_dim,
        ffn_kernel=config.ffn_kernel_size,
        window=config.window_size,
        latent=config.flow_size,
        couplings=config.prior_encoder_num_flows,
        flow=WaveNetConfig(config.hidden_size, config.prior_encoder_num_wavenet_layers, config.wavenet_kernel_size, config.wavenet_dilation_rate),
        durations=DurationConfig(
            config.hidden_size,
            config.duration_predictor_kernel_size,
            config.depth_separable_num_layers,
            config.duration_predictor_num_flows,
            config.duration_predictor_flow_bins,
            config.duration_predictor_tail_bound,
        ),
        decoder=DecoderConfig(
            width=config.upsample_initial_channel,
            rates=tuple(config.upsample_rates),
            kernels=tuple(config.upsample_kernel_sizes),
            residual_kernels=tuple(config.resblock_kernel_sizes),
            dilations=tuple(tuple(steps) for steps in config.resblock_dilation_sizes),
            paired=True,
        ),
    )
