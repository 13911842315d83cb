"""Piper voices: `NAME.onnx` with `NAME.onnx.json` beside it.

Sizes follow from the shapes of the weights and the strides and dilations of the convolutions; the json gives the
sampling rate, the phonemes and the language. Only the bound of the duration splines is in neither: it is the paper's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyadapt.errors import UserError
from polyadapt_speech.usat.network.config import DecoderConfig, DurationConfig, VoiceConfig, WaveNetConfig
from polyadapt_speech.usat.network.voice import Voice
from polyadapt_speech.usat.voices.assemble import assemble
from polyadapt_speech.usat.voices.graph import Arrays, Geometry, read_voice_graph
from polyadapt_speech.usat.voices.layouts import OFFICIAL

_LAYER = re.compile(r"\d+")


@dataclass(frozen=True)
class PiperSettings:
    """What the json says. `language` is espeak-ng's name of it; it is empty where ids are not phonemes of espeak-ng."""

    sample_rate_hz: int
    language: str
    noise_scale: float
    length_scale: float
    duration_noise_scale: float


def read_piper(path: Path) -> tuple[Voice, PiperSettings]:
    """Read a voice and its settings.

    Raises:
        UserError: a file is missing or damaged, or the voice has several speakers.
    """
    settings = read_settings(settings_file(path))
    graph = read_voice_graph(path)
    if any(name.startswith("emb_g.") for name in graph.arrays):
        raise UserError(f"{path} has several speakers; only voices of one speaker are read")
    arrays = {OFFICIAL.our_name(name): graph.arrays[name] for name in OFFICIAL.speaking(graph.arrays)}
    geometry = {OFFICIAL.our_name(name): value for name, value in graph.geometry.items()}
    try:
        config = _config(arrays, geometry, settings.sample_rate_hz)
    except KeyError as error:
        raise UserError(f"{path} is no voice of VITS: it lacks {error.args[0]}") from error
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} is no voice of VITS: its weights have other shapes ({error})") from error
    return assemble(config, arrays, str(path)), settings


def settings_file(path: Path) -> Path:
    """The json of a voice: it lies beside the graph."""
    return path.with_name(f"{path.name}.json")


def read_settings(path: Path) -> PiperSettings:
    """Read a voice's json.

    Raises:
        UserError: it is missing, no json, or without what a voice needs.
    """
    if not path.is_file():
        raise UserError(f"no file {path}; a Piper voice is NAME.onnx and NAME.onnx.json in one folder")
    try:
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        manner = table.get("inference", {})
        language = table["espeak"]["voice"] if table.get("phoneme_type", "espeak") == "espeak" else ""
        return PiperSettings(
            int(table["audio"]["sample_rate"]),
            str(language),
            float(manner.get("noise_scale", 0.667)),
            float(manner.get("length_scale", 1.0)),
            float(manner.get("noise_w", 0.8)),
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path} is no json of a Piper voice: {type(error).__name__} {error}") from error


def _config(arrays: Arrays, geometry: dict[str, Geometry], sample_rate_hz: int) -> VoiceConfig:
    """The sizes of a voice; a KeyError names what is missing."""
    vocabulary, width = arrays["text_encoder.embed.weight"].shape
    offsets, head_size = arrays["text_encoder.blocks.0.attention.k_offsets"].shape[-2:]
    inner, _, kernel = arrays["text_encoder.blocks.0.feed_forward.up.weight"].shape
    return VoiceConfig(
        vocab_size=vocabulary,
        sample_rate_hz=sample_rate_hz,
        width=width,
        heads=width // head_size,
        blocks=_count(arrays, "text_encoder.blocks"),
        ffn_width=inner,
        ffn_kernel=kernel,
        window=(offsets - 1) // 2,
        latent=arrays["text_encoder.out.weight"].shape[0] // 2,
        couplings=_count(arrays, "flow.couplings"),
        flow=_wavenet(arrays, geometry, "flow.couplings.0.wavenet"),
        durations=_durations(arrays),
        decoder=_decoder(arrays, geometry),
    )


def _wavenet(arrays: Arrays, geometry: dict[str, Geometry], part: str) -> WaveNetConfig:
    _, width, kernel = arrays[f"{part}.dilated.0.weight"].shape
    layers = _count(arrays, f"{part}.dilated")
    return WaveNetConfig(width, layers, kernel, geometry[f"{part}.dilated.{min(1, layers - 1)}.weight"].dilation)


def _durations(arrays: Arrays) -> DurationConfig:
    width, _, kernel = arrays["durations.separable.depthwise.0.weight"].shape
    bins = (arrays["durations.flows.0.after.weight"].shape[0] + 1) // 3
    return DurationConfig(width, kernel, _count(arrays, "durations.separable.depthwise"), _count(arrays, "durations.flows") + 1, bins)


def _decoder(arrays: Arrays, geometry: dict[str, Geometry]) -> DecoderConfig:
    ups = [f"decoder.ups.{index}.weight" for index in range(_count(arrays, "decoder.ups"))]
    fields = _count(arrays, "decoder.residual") // len(ups)
    layers = [_count(arrays, f"decoder.residual.{index}.first") for index in range(fields)]
    return DecoderConfig(
        width=arrays[ups[0]].shape[0],
        rates=tuple(geometry[name].stride for name in ups),
        kernels=tuple(arrays[name].shape[2] for name in ups),
        residual_kernels=tuple(arrays[f"decoder.residual.{index}.first.0.weight"].shape[2] for index in range(fields)),
        dilations=tuple(tuple(geometry[f"decoder.residual.{index}.first.{layer}.weight"].dilation for layer in range(count)) for index, count in enumerate(layers)),
        paired="decoder.residual.0.second.0.weight" in arrays,
    )


def _count(arrays: Arrays, part: str) -> int:
    """How many numbered children a part has."""
    found = {hit[0] for name in arrays if name.startswith(f"{part}.") and (hit := _LAYER.match(name, len(part) + 1))}
    if not found:
        raise KeyError(f"{part}.0")
    return len(found)
