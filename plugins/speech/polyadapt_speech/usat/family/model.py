"""The family `voice`: how a voice is called and what its tensors mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from polyadapt.errors import UserError
from polyadapt.families.base import Family
from polyadapt.families.conditioner import Conditioner
from polyadapt.families.shared import enliven, normal
from polyadapt.families.text import random_ids, random_mask
from polyadapt.signature import Signature, Task, TensorSpec
from polyadapt_runtime.audio import SILENT
from polyadapt_speech.usat.family.learning import alignment, heard, row_losses, usual
from polyadapt_speech.usat.network.config import DecoderConfig, DurationConfig, VoiceConfig, WaveNetConfig
from polyadapt_speech.usat.network.voice import Manner, Voice

NOISE_INPUTS = "noise_inputs"
LEAST_REFERENCE_S = 1.0  # of a recording from which a speaker vector is made

TINY = VoiceConfig(
    vocab_size=64,
    width=32,
    blocks=2,
    ffn_width=64,
    latent=32,
    couplings=2,
    flow=WaveNetConfig(32, 2, 5),
    durations=DurationConfig(32, flows=3),
    decoder=DecoderConfig(32, (4, 2), (8, 4), (3, 5), ((1, 3), (1, 3))),
)

LONGEST_REFERENCE_S = 30.0  # ours: more of it is not listened to


class VoiceFamily(Family):
    """Ids to a waveform."""

    def tiny(self, task: Task) -> nn.Module:
        return tiny_voice()

    def config(self, backbone: nn.Module) -> dict[str, Any]:
        # Parts that hear show in the weights; a voice without them keeps its identity.
        return {name: value for name, value in asdict(_voice(backbone).config).items() if name != "listens"}

    def signature(self, backbone: nn.Module, task: Task) -> Signature:
        config = _voice(backbone).config
        inputs = [
            TensorSpec("input_ids", ("batch", "tokens"), "int64", "ids of phonemes"),
            TensorSpec("attention_mask", ("batch", "tokens"), "int64", "1 for real tokens, 0 for padding on the right"),
        ]
        if task.details.get(NOISE_INPUTS):
            inputs += [
                TensorSpec(
                    "noise", ("batch", config.latent, "noise_frames"), "float32", "normal values times the noise scale; cut or filled up with zeros to the frames of the text"
                ),
                TensorSpec("duration_noise", ("batch", 2, "tokens"), "float32", "normal values times the noise scale of durations"),
                TensorSpec("length_scale", ("batch",), "float32", "factor of all durations; 1 is the usual speed"),
            ]
        if config.speaker_size:
            inputs.append(TensorSpec("speaker", ("batch", config.speaker_size), "float32", "speaker vector"))
        outputs = (
            TensorSpec("waveform", ("batch", "samples"), "float32", f"sound at {config.sample_rate_hz} Hz, in -1..1"),
            TensorSpec("lengths", ("batch",), "int64", "samples of each waveform that belong to its text", "samples"),
            TensorSpec("durations", ("batch", "tokens"), "float32", f"how long each token is spoken; rounded up to whole frames of {config.decoder.hop} samples", "frames"),
        )
        return Signature(tuple(inputs), outputs)

    def forward(self, backbone: nn.Module, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if "posterior" in inputs:
            return row_losses(_voice(backbone), inputs)
        pace = inputs.get("length_scale")
        if pace is None and (tuned := float(str(task.details.get("length_scale", 1.0)))) != 1.0:
            pace = torch.full(inputs["input_ids"].shape[:1], tuned, device=inputs["input_ids"].device)  # the speed that the voice's settings name
        manner = Manner(inputs.get("noise"), inputs.get("duration_noise"), pace, inputs.get("speaker"))
        waveform, lengths, durations = backbone(inputs["input_ids"], inputs["attention_mask"], manner)
        return {"waveform": waveform, "lengths": lengths, "durations": durations}  # (B, samples), (B,), (B, T)

    def hear(self, backbone: nn.Module, samples: torch.Tensor) -> dict[str, torch.Tensor]:
        voice, rate_hz = _voice(backbone), _voice(backbone).config.sample_rate_hz
        if not voice.config.listens:
            raise UserError("this voice does not listen, so it cannot learn from recordings; make one that does with `polyadapt speech usat-train`, and load it as usat:FOLDER")
        if (precision := next(voice.parameters()).dtype) != torch.float32:
            raise UserError(f"a voice in {str(precision).removeprefix('torch.')} does not learn from recordings; leave it in float32 and set train.precision")
        found = heard(voice, samples)
        if len(samples) >= LEAST_REFERENCE_S * rate_hz and float(samples.abs().max()) >= SILENT:
            with torch.no_grad():
                found["speaker"] = voice.speaker_vector(samples[None], torch.tensor([len(samples)], device=samples.device))[0]  # (S,)
        return found

    def read(self, backbone: nn.Module, text: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return usual(_voice(backbone), text["input_ids"])

    def alignment(self, backbone: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return alignment(_voice(backbone), inputs)

    def feature_size(self, backbone: nn.Module) -> int:
        return _voice(backbone).config.width

    def example(self, backbone: nn.Module, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        config, batch, tokens = _voice(backbone).config, sizes["batch"], sizes["tokens"]
        made = {"input_ids": random_ids(config.vocab_size, batch, tokens, generator), "attention_mask": random_mask(batch, tokens, generator)}
        if task.details.get(NOISE_INPUTS):
            made["noise"] = normal((batch, config.latent, sizes["noise_frames"]), generator)
            made["duration_noise"] = normal((batch, 2, tokens), generator) * 0.5
            made["length_scale"] = torch.linspace(0.8, 1.4, batch)
        if config.speaker_size:
            made["speaker"] = normal((batch, config.speaker_size), generator)
        return made

    def conditioners(self, backbone: nn.Module) -> Mapping[str, Conditioner]:
        config = _voice(backbone).config
        if not config.listens:
            return {}
        signature = Signature(
            (
                TensorSpec("audio", ("batch", "samples"), "float32", f"recordings at {config.sample_rate_hz} Hz, filled up with zeros", "full scale = 1"),
                TensorSpec("lengths", ("batch",), "int64", "samples of each recording without what was filled up", "samples"),
            ),
            (TensorSpec("speaker", ("batch", config.speaker_size), "float32", "speaker vector"),),
        )
        heard = {"minimum_seconds": LEAST_REFERENCE_S, "maximum_seconds": LONGEST_REFERENCE_S, "refuse_silence": True}
        return {"speaker": Conditioner(signature, {"kind": "audio", "input": "audio", "lengths": "lengths", "sample_rate_hz": config.sample_rate_hz, **heard})}

    def condition(self, backbone: nn.Module, name: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return _voice(backbone).speaker_vector(inputs["audio"], inputs["lengths"])  # (B, S)

    def condition_example(self, backbone: nn.Module, name: str, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        batch, samples = sizes["batch"], sizes["samples"]
        lengths = samples - torch.arange(batch) * (samples // 8)
        heard = torch.arange(samples) < lengths[:, None]  # (B, samples)
        return {"audio": normal((batch, samples), generator) * 0.1 * heard, "lengths": lengths}


def _voice(backbone: nn.Module) -> Voice:
    assert isinstance(backbone, Voice)
    return backbone


@torch.no_grad()
def tiny_voice(config: VoiceConfig = TINY) -> Voice:
    """A random voice of whose parts none is silent. The caller seeds.

    A token lasts about three frames: random durations would be blown up to minutes by their exponential.
    """
    voice = Voice(config)
    enliven(voice)
    voice.durations.affine.shift.fill_(-1.0)
    voice.durations.affine.log_scale.zero_()
    for flow in voice.durations.flows:
        flow.after.weight.mul_(0.2)  # type: ignore[operator,union-attr]
    return voice
