"""The family `voice`: its ports, its tensors, and graphs with noise as an input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from polyadapt import builtin
from polyadapt.edits import Edit, attachments_of
from polyadapt.edits.form import Lowered
from polyadapt.edits.kinds import kind_of
from polyadapt.host import Host
from polyadapt.model import Model, build_model
from polyadapt.signature import Task
from polyadapt.testing.conformance import example_of, load_family, tiny_model
from polyadapt_onnx import export
from polyadapt_runtime import Bundle
from polyadapt_speech import entry
from polyadapt_speech.usat.family.card import CARD
from polyadapt_speech.usat.family.model import NOISE_INPUTS, TINY, tiny_voice
from polyadapt_speech.usat.network.voice import Voice

SIZES = {"batch": 2, "tokens": 6, "noise_frames": 9}


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(CARD)


def test_ports_are_counted_by_hand(model: Model) -> None:
    """Encoder: embed, out, and q k v o, 2 norms, up, down a block; a coupling: in, out, 2 convolutions a layer, of durations out; decoder: in, out, a convolution a layer."""
    layers = len(TINY.decoder.rates) * sum(map(len, TINY.decoder.dilations))
    assert len(model.ports.ops) == 2 + 8 * TINY.blocks + TINY.couplings * (2 + 2 * TINY.flow.layers) + TINY.durations.flows - 1 + 2 + layers
    assert len(model.ports.spans) == 2 * TINY.blocks + 2 * TINY.couplings + TINY.durations.flows - 1
    paired = replace(TINY, decoder=replace(TINY.decoder, paired=True))
    voice = build_model(load_family(CARD), Voice(paired), Task("synthesis"), None, reference="x:y")  # type: ignore[arg-type]
    assert len(voice.ports.ops) == len(model.ports.ops) + layers
    assert not voice.ports.attention and not voice.ports.streams and voice.base_id != model.base_id


@pytest.mark.parametrize("site", ["encoder.block.1.ffn", "flow.block.0.coupling", "flow.block.1.shift", "durations.block.0.shift"])
@pytest.mark.parametrize("side", ["parallel", "sequential"])
def test_a_bottleneck_between_convolutions_is_the_formula(model: Model, site: str, side: str) -> None:
    """Frame by frame, with the features on dimension 1; the norm is over features."""
    port = model.ports.spans[site]
    kind, variant = kind_of("bottleneck"), f"{side}-relu-norm"
    tensors = kind.example(port, variant, 3, torch.Generator().manual_seed(0))
    x, h = torch.randn(2, port.in_features, 5), torch.randn(2, port.out_features, 5)
    found = kind.apply(Edit(site, "bottleneck", tensors, variant), x, h, port)
    for row in range(2):
        for frame in range(5):
            u = (x if side == "parallel" else h)[row, :, frame]
            u = (u - u.mean()) / (u.var(unbiased=False) + 1e-5).sqrt()
            expected = h[row, :, frame] + (u @ tensors["down"] + tensors["down_bias"]).relu() @ tensors["up"] + tensors["up_bias"]
            assert torch.allclose(found[row, :, frame], expected, atol=1e-5)


def test_widths_of_spans_do_not_count_kernels(model: Model) -> None:
    ffn, coupling, shift = (model.ports.spans[site] for site in ("encoder.block.0.ffn", "flow.block.0.coupling", "flow.block.0.shift"))
    assert (ffn.in_features, ffn.out_features) == (TINY.width, TINY.width)
    assert (coupling.in_features, coupling.out_features) == (TINY.latent // 2, TINY.latent // 2)
    assert (shift.in_features, shift.out_features) == (TINY.flow.width, TINY.latent // 2)


def test_an_adapter_of_the_flow_keeps_its_inverse(model: Model) -> None:
    """Forward and inverse call the same transform, so an adapter in it stays exactly invertible (method card, invariant 1)."""
    voice: Any = model.backbone
    sites = [site for site in model.ports.spans if site.startswith("flow.")]
    g = torch.Generator().manual_seed(1)
    edits = [Edit(site, "bottleneck", kind_of("bottleneck").example(model.ports.spans[site], "parallel-relu-norm", 4, g), "parallel-relu-norm") for site in sites]
    z, mask = torch.randn(2, TINY.latent, 11, generator=g), torch.ones(2, 1, 11)
    attachments = attachments_of(model.module, model.ports, model.backbone)
    with torch.no_grad():
        plain = voice.flow(z, mask)
        attachments.add("test", Lowered(edits))
        try:
            moved = voice.flow(z, mask)
            assert not torch.allclose(moved, plain, atol=1e-2)
            assert torch.allclose(voice.flow.inverse(moved, mask), z, atol=1e-4)
        finally:
            attachments.remove_all()


def with_inputs(speaker_size: int = 0) -> Model:
    """The tiny voice with noise, speed and, where wanted, a speaker vector as inputs."""
    torch.manual_seed(0)
    voice = tiny_voice(replace(TINY, speaker_size=speaker_size))
    return build_model(load_family(CARD), voice, Task("synthesis", details={NOISE_INPUTS: True}), None, reference="polyadapt:tiny-voice")  # type: ignore[arg-type]


def test_a_voice_speaks_at_the_speed_of_its_settings() -> None:
    """Where nobody says otherwise; whoever feeds a speed decides it alone."""
    found = {}
    for tuned, given in ((1.0, None), (1.5, None), (1.5, 1.0)):
        model = tiny_model(CARD)
        model.task.details["length_scale"] = tuned
        inputs = {name: value for name, value in example_of(model, sizes=SIZES).items() if name not in ("noise", "duration_noise")}
        if given is not None:
            inputs["length_scale"] = torch.full((2,), given)
        with torch.no_grad():
            found[tuned, given] = model.module(**inputs)["durations"]
    torch.testing.assert_close(found[1.5, None], 1.5 * found[1.0, None])
    assert torch.equal(found[1.5, 1.0], found[1.0, None])


def test_every_input_is_declared_and_has_an_effect() -> None:
    model = with_inputs(speaker_size=5)
    inputs = example_of(model, sizes=SIZES)
    assert [spec.name for spec in model.signature.inputs] == list(inputs)
    assert all(inputs[spec.name].shape == tuple(SIZES.get(str(size), size) for size in spec.shape) for spec in model.signature.inputs)
    with torch.no_grad():
        base = model.module(**inputs)
        for name in ("noise", "duration_noise", "length_scale", "speaker"):
            moved = model.module(**{**inputs, name: inputs[name] * 1.7})
            assert moved["waveform"].shape != base["waveform"].shape or not torch.allclose(moved["waveform"], base["waveform"], atol=1e-4), name


@pytest.mark.slow
def test_a_graph_with_noise_speed_and_speaker_agrees_with_torch(tmp_path: Path) -> None:
    """At other sizes than the gate checks, and repeated bit for bit: randomness is the caller's."""
    model = with_inputs(speaker_size=5)
    made = export(model, {}, tmp_path / "voice.bundle", "slots", {"legacy_fallback": False})
    assert made.report["max_relative_error"] <= 1e-5  # the wider tolerance is for real voices
    session = onnxruntime.InferenceSession(made.directory / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    for seed, sizes in enumerate(({"batch": 1, "tokens": 1, "noise_frames": 4}, {"batch": 4, "tokens": 17, "noise_frames": 3}, {"batch": 2, "tokens": 9, "noise_frames": 300})):
        inputs = example_of(model, seed, sizes)
        feeds = {name: value.numpy() for name, value in inputs.items()}
        wave, lengths = session.run(["waveform", "lengths"], feeds)
        with torch.no_grad():
            expected = model.module(**inputs)
        assert np.array_equal(lengths, expected["lengths"].numpy())
        assert np.abs(wave - expected["waveform"].numpy()).max() <= 1e-5 * float(expected["waveform"].abs().max())
        assert np.array_equal(session.run(["waveform"], feeds)[0], wave)


@pytest.mark.slow
def test_a_bundle_speaks_rows_as_they_are_alone(tmp_path: Path) -> None:
    host = Host(plugins=[("core", builtin), ("speech", entry)], discover=False, environment={})
    made = export(host.load("polyadapt:tiny-voice"), {}, tmp_path / "voice.bundle", "slots")
    manifest = json.loads((made.directory / "manifest.json").read_text())
    assert manifest["graphs"]["model"]["exporter"] == "dynamo"
    bundle = Bundle(made.directory)
    texts = [np.arange(4, 16), np.arange(30, 35)]
    together = [bundle(text) for text in texts]
    rows = bundle(texts)
    for alone, row in zip(together, rows, strict=True):
        samples = int(np.ravel(alone["lengths"])[0])
        assert samples == int(np.ravel(row["lengths"])[0])
        assert samples == np.ceil(alone["durations"]).sum() * TINY.decoder.hop == np.ceil(row["durations"]).sum() * TINY.decoder.hop
        assert np.allclose(np.ravel(alone["waveform"])[:samples], np.ravel(row["waveform"])[:samples], atol=1e-5)
    assert bundle.selftest().ok
