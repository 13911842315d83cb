"""Voices from files: Piper's ONNX layout and transformers' VITS, read by the names of their weights."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from polyadapt import builtin
from polyadapt.errors import UserError
from polyadapt.host import Host
from polyadapt_onnx import export
from polyadapt_runtime import Bundle
from polyadapt_speech import entry
from polyadapt_speech.usat.family.model import TINY
from polyadapt_speech.usat.network.config import VoiceConfig
from polyadapt_speech.usat.network.voice import Manner, Voice
from polyadapt_speech.usat.voices.layouts import OFFICIAL, TRANSFORMERS
from polyadapt_speech.usat.voices.piper import read_piper
from polyadapt_speech.usat.voices.transformers import from_transformers

SYMBOLS = {symbol: [number] for number, symbol in enumerate("_^$ abcdefghijklmnopqrstuvwxyz,.?!ˈˌːəɪɛæɑɔʊʌθðŋʃʒɹɡɚɜɐ")}
SETTINGS = {"audio": {"sample_rate": 8000}, "espeak": {"voice": "en-us"}, "inference": {"noise_scale": 0.5}, "phoneme_id_map": SYMBOLS}
CONVOLUTIONS = ("weight", "bias")


def official_names(config: VoiceConfig, paired: bool) -> Iterator[str]:
    """Names of a finished voice's weights, as the official code of VITS writes them."""
    separable = [f"convs.{part}.{layer}.{end}" for layer in range(config.durations.layers) for part in ("convs_sep", "convs_1x1") for end in CONVOLUTIONS]
    separable += [f"convs.norms_{norm}.{layer}.{end}" for layer in range(config.durations.layers) for norm in (1, 2) for end in ("gamma", "beta")]
    yield "enc_p.emb.weight"
    for block in range(config.blocks):
        yield from (f"enc_p.encoder.attn_layers.{block}.conv_{part}.{end}" for part in "qkvo" for end in CONVOLUTIONS)
        yield from (f"enc_p.encoder.attn_layers.{block}.emb_rel_{part}" for part in "kv")
        yield from (f"enc_p.encoder.norm_layers_{norm}.{block}.{end}" for norm in (1, 2) for end in ("gamma", "beta"))
        yield from (f"enc_p.encoder.ffn_layers.{block}.conv_{part}.{end}" for part in (1, 2) for end in CONVOLUTIONS)
    yield from (f"enc_p.proj.{end}" for end in CONVOLUTIONS)
    for flow in range(0, 2 * config.couplings, 2):
        yield from (f"flow.flows.{flow}.{part}.{end}" for part in ("pre", "post") for end in CONVOLUTIONS)
        yield from (f"flow.flows.{flow}.enc.{part}.{layer}.{end}" for layer in range(config.flow.layers) for part in ("in_layers", "res_skip_layers") for end in CONVOLUTIONS)
    yield from ("dp.flows.0.m", "dp.flows.0.logs")
    for part in ("dp", *(f"dp.flows.{flow}" for flow in range(3, 2 * config.durations.flows, 2))):
        yield from (f"{part}.{layer}.{end}" for layer in ("pre", "proj") for end in CONVOLUTIONS)
        yield from (f"{part}.{name}" for name in separable)
    yield from (f"dec.conv_pre.{end}" for end in CONVOLUTIONS)
    yield "dec.conv_post.weight"
    yield from (f"dec.ups.{up}.{end}" for up in range(len(config.decoder.rates)) for end in CONVOLUTIONS)
    for block in range(len(config.decoder.rates) * len(config.decoder.residual_kernels)):
        layers = range(len(config.decoder.dilations[0]))
        yield from (f"dec.resblocks.{block}.{part}.{layer}.{end}" for part in (("convs1", "convs2") if paired else ("convs",)) for layer in layers for end in CONVOLUTIONS)


def test_official_names_are_those_of_the_network() -> None:
    found = sorted(OFFICIAL.our_name(name) for name in official_names(TINY, paired=False))
    assert found == sorted(Voice(TINY).state_dict())


def voices_host() -> Host:
    return Host(plugins=[("core", builtin), ("speech", entry)], discover=False, environment={})


def vits_model() -> Any:
    """A random VitsModel of about three frames a token, none of whose parts is silent."""
    from polyadapt.families.vits.card import CARD
    from polyadapt.families.vits.model import Vits
    from polyadapt.signature import Task

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = Vits(CARD).tiny(Task("synthesis")).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def ids_of(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, len(SYMBOLS), (1, tokens), generator=torch.Generator().manual_seed(seed))


def spoken(voice: Voice, ids: torch.Tensor, length_scale: float = 1.0) -> np.ndarray:
    with torch.no_grad():
        wave, lengths, _ = voice(ids, torch.ones_like(ids), Manner(length_scale=torch.tensor([length_scale])))
    assert wave.shape == (1, int(lengths[0]))
    return wave.numpy()


@pytest.mark.parametrize("tokens", [1, 3, 20, 57])
def test_a_transformers_model_speaks_the_same(tokens: int) -> None:
    """ResBlock1, weight norm folded: at noise 0, at its own and another speed."""
    model, ids = vits_model(), ids_of(tokens)
    voice = from_transformers(model)
    for scale in (1.0, 1.25):
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=torch.ones_like(ids), speaking_rate=1 / scale).waveform.numpy()
        found = spoken(voice, ids, scale)
        assert found.shape == expected.shape and np.abs(found - expected).max() <= 2e-5


def test_other_transformers_models_are_refused_by_what_they_have() -> None:
    from transformers import VitsConfig

    for changed, words in (
        ({"num_speakers": 2}, "several speakers"),
        ({"use_stochastic_duration_prediction": False}, "durations without a flow"),
        ({"hidden_act": "gelu"}, "'gelu'"),
    ):
        model = vits_model()
        model.config = VitsConfig(**{**model.config.to_dict(), **changed})
        with pytest.raises(UserError, match=words):
            from_transformers(model)


class Pointwise(nn.Module):
    """A linear layer as the convolution of kernel 1 that the official code has."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.conv = nn.Conv1d(linear.in_features, linear.out_features, 1)
        self.conv.weight.data, self.conv.bias.data = linear.weight.data[..., None], linear.bias.data  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class PiperGraph(nn.Module):
    """transformers' network behind the inputs of a Piper voice; the noise scales are not used."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        for layer in model.text_encoder.encoder.layers:
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                setattr(layer.attention, name, Pointwise(getattr(layer.attention, name)))

    def forward(self, input: torch.Tensor, input_lengths: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        mask = (torch.arange(input.shape[1])[None] < input_lengths[:, None]).to(torch.int64)
        beyond = (0, int(self.model.config.window_size) + 1)  # its tracing wants more tokens than the window; masked ones last nothing
        wave = self.model(input_ids=F.pad(input, beyond), attention_mask=F.pad(mask, beyond), speaking_rate=1 / scales[1]).waveform
        return wave[:, None, None] + 0 * scales.sum()


@pytest.fixture(scope="module")
def piper_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny voice as Piper writes it: official names where the exporter keeps them, `onnx::Conv_N` where weight norm was folded."""
    path = tmp_path_factory.mktemp("voice") / "tiny.onnx"
    model = vits_model()
    names = {OFFICIAL.our_name(name): name for name in official_names(from_transformers(model).config, paired=True)}
    axes = {"input": {0: "batch", 1: "phonemes"}, "input_lengths": {0: "batch"}, "output": {0: "batch", 3: "time"}}
    inputs = (ids_of(30), torch.tensor([30]), torch.tensor([0.0, 1.1, 0.0]))
    arguments: dict[str, Any] = {"input_names": [*list(axes)[:2], "scales"], "output_names": ["output"], "dynamic_axes": axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns at length
        torch.onnx.export(PiperGraph(model).eval(), inputs, str(path), dynamo=False, opset_version=17, do_constant_folding=True, **arguments)
    graph = onnx.load(str(path))
    renamed = {}
    for tensor in graph.graph.initializer:
        plain = tensor.name.removeprefix("model.").replace(".conv.", ".") if tensor.name.startswith("model.") else ""
        if plain and (official := names.get(TRANSFORMERS.our_name(plain))):
            renamed[tensor.name] = official
            tensor.name = official
    for node in graph.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    onnx.save(graph, str(path))
    path.with_name("tiny.onnx.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    return path


def test_what_a_voice_lacks_is_listed(piper_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "polyadapt_speech"):
        read_piper(piper_file)
    assert "lacks the posterior encoder, the posterior of the durations with the first spline of their flow, the discriminators" in caplog.text


def test_a_piper_voice_speaks_as_its_own_graph(piper_file: Path) -> None:
    anonymous = [tensor.name for tensor in onnx.load(str(piper_file)).graph.initializer if tensor.name.startswith("onnx::Conv_")]
    assert len(anonymous) >= 8  # else the file is not what Piper writes, and the reader is not tried
    voice, settings = read_piper(piper_file)
    assert (settings.sample_rate_hz, settings.language, settings.noise_scale) == (8000, "en-us", 0.5)
    session = onnxruntime.InferenceSession(str(piper_file), providers=["CPUExecutionProvider"])
    for tokens, scale in ((5, 1.0), (41, 1.0), (23, 1.3)):
        ids = ids_of(tokens, seed=tokens)
        feeds = {"input": ids.numpy(), "input_lengths": np.array([tokens]), "scales": np.array([0, scale, 0], np.float32)}
        (expected,) = session.run(None, feeds)
        found = spoken(voice, ids, scale)
        assert found.shape == expected[:, 0, 0].shape and np.abs(found - expected[:, 0, 0]).max() <= 1e-4


def test_a_piper_reference_loads_as_a_model(piper_file: Path) -> None:
    host = voices_host()
    model = host.load(f"piper:{piper_file}")
    assert model.family.card.id == "voice" and model.task.kind == "synthesis" and model.reference == "piper:tiny.onnx"
    ids = ids_of(12)[0].numpy()
    batch = model.processor.collate([model.processor(ids), model.processor(ids[:5])])
    assert batch["attention_mask"].sum(-1).tolist() == [12, 5]
    outputs = model.module(**{name: torch.from_numpy(value) for name, value in batch.items()})
    assert outputs["lengths"][0] > outputs["lengths"][1] > 0
    assert host.load(f"piper:{piper_file}?noise_inputs=true").signature.symbols == ("batch", "tokens", "noise_frames")
    assert host.load(f"piper:{piper_file}").base_id == model.base_id


@pytest.mark.slow
@pytest.mark.program("espeak-ng")
def test_a_bundle_of_a_piper_voice_takes_text(piper_file: Path, tmp_path: Path) -> None:
    """The table of phonemes goes with the bundle; what it says is what torch says."""
    model, text = voices_host().load(f"piper:{piper_file}"), "A dog. Is it so?"
    made = export(model, {}, tmp_path / "voice.bundle", "slots", {"legacy_fallback": False})
    answer = Bundle(made.directory)(text)
    waveform = answer["waveform"][: answer["lengths"]]
    expected = model.module(**{name: torch.from_numpy(value)[None] for name, value in model.processor(text).items()})["waveform"][0].detach().numpy()
    assert waveform.shape == expected.shape and np.abs(waveform - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_folder_of_transformers_loads_on_this_network(tmp_path: Path) -> None:
    model = vits_model()
    model.save_pretrained(tmp_path / "mms")
    loaded = voices_host().load(f"voice:{tmp_path / 'mms'}")
    ids = ids_of(9)
    assert np.array_equal(loaded.module(input_ids=ids, attention_mask=torch.ones_like(ids))["waveform"].detach().numpy(), spoken(from_transformers(model), ids))


def test_wrong_voices_are_refused_by_what_is_wrong(piper_file: Path, tmp_path: Path) -> None:
    def copy(name: str, settings: Any = SETTINGS) -> Path:
        path = tmp_path / name
        path.write_bytes(piper_file.read_bytes())
        path.with_name(f"{name}.json").write_text(json.dumps(settings), encoding="utf-8")
        return path

    def changed(name: str, change: Any) -> Path:
        path, graph = copy(name), onnx.load(str(piper_file))
        change(graph.graph)
        path.write_bytes(graph.SerializeToString())
        return path

    def take_out(graph: Any) -> None:
        del graph.initializer[next(index for index, tensor in enumerate(graph.initializer) if tensor.name == "dec.conv_pre.bias")]

    def add_speakers(graph: Any) -> None:
        graph.initializer.append(numpy_helper.from_array(np.zeros((3, 4), np.float32), "emb_g.weight"))

    def keep_elsewhere(graph: Any) -> None:
        graph.initializer[0].data_location = TensorProto.EXTERNAL
        graph.initializer[0].external_data.add(key="location", value="weights.data")

    def flatten(graph: Any) -> None:
        tensor = next(tensor for tensor in graph.initializer if tensor.name == "enc_p.emb.weight")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).ravel(), tensor.name))

    (tmp_path / "noise.onnx").write_bytes(b"\xff" * 50)
    (tmp_path / "noise.onnx.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    (tmp_path / "alone.onnx").write_bytes(piper_file.read_bytes())
    other = helper.make_model(helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [helper.make_tensor_value_info("x", 1, [1])], []))
    onnx.save(other, str(copy("other.onnx")))
    cases = {
        tmp_path / "nothing.onnx": r"no file .*nothing\.onnx\.json",
        tmp_path / "alone.onnx": r"no file .*alone\.onnx\.json; a Piper voice is NAME\.onnx and NAME\.onnx\.json",
        tmp_path / "noise.onnx": "is no ONNX file",
        tmp_path / "other.onnx": r"is no voice of VITS: it lacks text_encoder\.embed\.weight",
        changed("hole.onnx", take_out): r"lacks decoder\.before\.bias \(1 weights in all\)",
        changed("flat.onnx", flatten): "its weights have other shapes",
        changed("many.onnx", add_speakers): "has several speakers",
        changed("elsewhere.onnx", keep_elsewhere): "in another file",
        copy("settings.onnx", {"audio": {}}): r"is no json of a Piper voice: KeyError 'sample_rate'|KeyError 'espeak'",
    }
    for path, words in cases.items():
        with pytest.raises(UserError, match=words):
            read_piper(path)


def test_geometry_and_names_come_from_the_nodes(tmp_path: Path) -> None:
    """ResBlock2, an embedding and an affine flow under the names that exporters give them: nothing here can run."""
    from polyadapt_speech.usat.voices.graph import Geometry, read_voice_graph

    values = {
        "onnx::Conv_7": np.ones((4, 4, 3)),
        "dec.resblocks.0.convs.1.bias": np.ones(4),
        "sid": np.ones((9, 4)),
        "dp.flows.0.m": np.ones((2, 1)),
        "/dp/flows.0/Exp_output_0": np.full((2, 1), np.exp(-0.5)),
    }
    nodes = [
        helper.make_node("Conv", ["x", "onnx::Conv_7", "dec.resblocks.0.convs.1.bias"], ["a"], dilations=[6], strides=[1]),
        helper.make_node("Gather", ["sid", "input"], ["b"]),
        helper.make_node("Sub", ["z", "dp.flows.0.m"], ["c"]),
        helper.make_node("Mul", ["c", "/dp/flows.0/Exp_output_0"], ["d"]),
        helper.make_node("Identity", ["dec.resblocks.0.convs.1.bias"], ["dec.resblocks.0.convs.0.bias"]),
    ]
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "voice", [helper.make_tensor_value_info("input", TensorProto.INT64, ["batch", "phonemes"])], [], initializers)
    path = tmp_path / "part.onnx"
    onnx.save(helper.make_model(graph), str(path))
    found = read_voice_graph(path)
    assert found.geometry == {"dec.resblocks.0.convs.1.weight": Geometry(1, 6)}
    assert found.arrays["enc_p.emb.weight"].shape == (9, 4) and found.arrays["dec.resblocks.0.convs.1.weight"].shape == (4, 4, 3)
    assert np.allclose(found.arrays["dp.flows.0.logs"], 0.5) and found.arrays["dec.resblocks.0.convs.0.bias"].shape == (4,)
    assert not [name for name in found.arrays if re.match(r"onnx::|/|sid", name)]


def test_loading_does_not_touch_the_torch_generator(piper_file: Path) -> None:
    before = torch.random.get_rng_state()
    read_piper(piper_file)
    assert torch.equal(torch.random.get_rng_state(), before)
