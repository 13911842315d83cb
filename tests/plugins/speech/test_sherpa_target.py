"""The target `sherpa-onnx`: what its graph says, what it refuses, and that an artifact is inside."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from polyadapt import builtin
from polyadapt.artifact import Artifact
from polyadapt.edits import Edit
from polyadapt.errors import ExportError, UserError
from polyadapt.host import Host
from polyadapt.model import Model, build_model
from polyadapt.signature import Task
from polyadapt.testing.conformance import load_family
from polyadapt_runtime import Processor
from polyadapt_speech import entry
from polyadapt_speech.sherpa import entry as sherpa
from polyadapt_speech.sherpa.export import export, metadata, tokens_of
from polyadapt_speech.sherpa.network import PiperVoice
from polyadapt_speech.usat.family.card import CARD
from polyadapt_speech.usat.family.model import TINY, tiny_voice
from polyadapt_speech.usat.network.voice import Manner, Voice

SYMBOLS = {"_": [0], "^": [1], "$": [2], " ": [3], "a": [4], "ʃ": [5], "ˈ": [6]}

METADATA = {"model_type": "vits", "comment": "piper", "language": "en-us", "voice": "en-us", "has_espeak": "1", "n_speakers": "1", "sample_rate": str(TINY.sample_rate_hz)}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "voice.onnx.json"
    path.write_text(json.dumps({"phoneme_id_map": SYMBOLS}), encoding="utf-8")
    return path


def voice_of(table: Path, speaker_size: int = 0) -> Model:
    torch.manual_seed(0)
    spec = {"kind": "phonemes", "symbols": "phonemes", "language": "en-us", "maximum_tokens": 50, "pad_id": 0, "inputs": {"ids": "input_ids", "mask": "attention_mask"}}
    voice = tiny_voice(replace(TINY, speaker_size=speaker_size))
    return build_model(load_family(CARD), voice, Task("synthesis"), Processor(spec, {"phonemes": table}), reference="x:tiny-voice")


def adapted(model: Model, **own: torch.Tensor) -> Artifact:
    """A low-rank edit in the text encoder, with tensors of its own."""
    generator = torch.Generator().manual_seed(3)
    site = "encoder.block.0.attn.o"
    port = model.ports.ops[site]
    tensors = {"a": torch.randn(port.in_features, 2, generator=generator), "b": torch.randn(2, port.out_features, generator=generator)}
    return Artifact("lora", model.base_id, "voice", "synthesis", (Edit(site, "lowrank", tensors),), own=own)


def said(folder: Path, ids: list[int], scales: tuple[float, float, float] = (0.0, 1.0, 0.0)) -> np.ndarray:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    feeds = {"input": np.array([ids]), "input_lengths": np.array([len(ids)]), "scales": np.array(scales, np.float32)}
    found: np.ndarray = session.run(["output"], feeds)[0]
    return found


@pytest.mark.slow
def test_the_folder_is_what_sherpa_onnx_reads(table: Path, tmp_path: Path) -> None:
    model = voice_of(table)
    host = Host(plugins=[("core", builtin), ("speech", entry), ("sherpa-onnx", sherpa)], discover=False, environment={})
    made = host.export(model, {}, tmp_path / "voice", "sherpa-onnx", {"form": "slots"})
    assert sorted(path.name for path in made.directory.iterdir()) == ["model.onnx", "parity.json", "tokens.txt"]
    graph = onnx.load(str(made.directory / "model.onnx"), load_external_data=False)
    assert {row.key: row.value for row in graph.metadata_props} == METADATA
    assert [value.name for value in graph.graph.input] == ["input", "input_lengths", "scales"]
    assert (made.directory / "tokens.txt").read_text(encoding="utf-8") == tokens_of(table)
    ids = [1, 0, 4, 0, 5, 0, 2]
    tensors = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
    with torch.no_grad():
        expected = model.module(**tensors)["waveform"].numpy()
    assert np.allclose(said(made.directory, ids)[:, 0], expected, atol=1e-5)
    assert said(made.directory, ids, (0.0, 3.0, 0.0)).size > expected.size
    assert not np.allclose(said(made.directory, ids, (1.0, 1.0, 0.0)), said(made.directory, ids), atol=1e-2)


@pytest.mark.slow
def test_an_adapted_voice_that_listens_is_inside_with_its_speaker(table: Path, tmp_path: Path) -> None:
    model = voice_of(table, speaker_size=5)
    speaker = torch.randn(5, generator=torch.Generator().manual_seed(1))
    artifact = adapted(model, **{"condition.speaker": speaker})
    export(model, {"ann": artifact}, tmp_path / "ann", {})
    ids = [1, 0, 4, 0, 5, 0, 6, 0, 2]
    artifact.attach(model, "ann").eval()
    with torch.no_grad():
        expected = model.module(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64), speaker=speaker[None])["waveform"].numpy()
    assert np.allclose(said(tmp_path / "ann", ids)[:, 0], expected, atol=1e-5)


def test_what_no_such_voice_can_be_made_of_is_refused(table: Path, tmp_path: Path) -> None:
    model = voice_of(table, speaker_size=5)
    with pytest.raises(UserError, match="give an artifact that was adapted to a speaker"):
        export(model, {}, tmp_path / "x", {})
    with pytest.raises(UserError, match="holds one artifact, 2 were given"):
        export(model, {"a": adapted(model), "b": adapted(model)}, tmp_path / "x", {})
    bare = build_model(load_family(CARD), tiny_voice(), Task("synthesis"), Processor({"kind": "tensors"}), reference="x:bare")
    with pytest.raises(UserError, match="takes voices with a table of phonemes"):
        export(bare, {}, tmp_path / "x", {})
    table.write_text(json.dumps({"phoneme_id_map": {**SYMBOLS, "tʃ": [7]}}), encoding="utf-8")
    with pytest.raises(UserError, match="'tʃ' is not one character with one id"):
        tokens_of(table)
    assert not (tmp_path / "x").exists()


def test_what_sherpa_onnx_asks_of_a_piper_voice(table: Path) -> None:
    assert metadata(tiny_voice(), "en-us") == METADATA
    assert tokens_of(table).splitlines() == ["_ 0", "^ 1", "$ 2", "  3", "a 4", "ʃ 5", "ˈ 6"]


@pytest.mark.slow
def test_a_graph_that_speaks_otherwise_is_not_kept(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded graph is slower than the voice by a tenth."""
    from polyadapt_speech.sherpa import export as module

    class Slow(PiperVoice):
        def forward(self, input: torch.Tensor, input_lengths: torch.Tensor, scales: torch.Tensor) -> dict[str, torch.Tensor]:
            tracing = torch.compiler.is_exporting() or torch.jit.is_tracing()
            return super().forward(input, input_lengths, scales * 1.5 if tracing else scales)

    monkeypatch.setattr(module, "PiperVoice", Slow)
    with pytest.raises(ExportError, match="relative error"):
        export(voice_of(table), {}, tmp_path / "x", {})
    assert not (tmp_path / "x").exists()


def test_noise_is_drawn_to_its_scale() -> None:
    """Drawn noise of scale s is s times drawn noise of scale 1 under one seed, and scale 0 is silence about it."""
    torch.manual_seed(0)
    voice: Voice = tiny_voice()
    ids, mask = torch.tensor([[1, 4, 5, 2]]), torch.ones(1, 4, dtype=torch.int64)

    def latent(scale: float | None) -> torch.Tensor:
        torch.manual_seed(1)
        manner = Manner() if scale is None else Manner(noise_scale=torch.tensor([scale]))
        with torch.no_grad():
            z, frames, _, _ = voice.latent(ids, mask, manner)
            return voice.flow(z, frames)

    plain = latent(None)
    assert torch.allclose(latent(0.0), plain, atol=1e-5)
    assert torch.allclose(latent(0.6) - plain, 0.6 * (latent(1.0) - plain), atol=1e-4) and not torch.allclose(latent(1.0), plain, atol=1e-2)
