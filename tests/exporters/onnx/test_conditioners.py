"""Inputs that a graph of their own computes from another medium: a toy that speaks numbers in the manner of a recording."""

from __future__ import annotations

import json
import wave
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from polyadapt.artifact import Artifact
from polyadapt.edits import Edit
from polyadapt.errors import ExportError, UserError
from polyadapt.families.base import Family
from polyadapt.families.card import ExportRecipe, FamilyCard, Op
from polyadapt.families.conditioner import Conditioner
from polyadapt.model import Model, build_model
from polyadapt.signature import Signature, Task, TensorSpec
from polyadapt.testing.exporting import answers
from polyadapt_onnx import export
from polyadapt_onnx.into import add_artifacts
from polyadapt_runtime import Bundle, Processor
from polyadapt_runtime.audio import read_audio
from polyadapt_runtime.errors import InputError, ManifestError
from polyadapt_runtime.manifest import parse_manifest

RATE_HZ, WIDTH, SIZE = 8000, 12, 5


class Speaker(nn.Module):
    """Numbers and a vector to as many samples; a recording to a vector."""

    def __init__(self, listens: bool) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(16, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.manner = nn.Linear(SIZE, WIDTH)
        self.ear = nn.Conv1d(1, SIZE, 16, stride=8) if listens else None

    def forward(self, ids: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        return self.down((self.up(self.embed(ids)) + self.manner(speaker)[:, None]).tanh()).squeeze(-1)  # (B, T)

    def hear(self, audio: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        assert self.ear is not None
        heard = self.ear(audio[:, None]).square()  # (B, S, frames)
        mask = torch.arange(heard.shape[-1])[None, :] < torch.div(lengths - 8, 8, rounding_mode="floor")[:, None]
        return (heard * mask[:, None]).sum(-1) / mask.sum(-1, keepdim=True)


class ToyFamily(Family):
    """The toy as a family; its card alone makes the exporter write the second graph."""

    def config(self, backbone: nn.Module) -> dict[str, Any]:
        return {"width": WIDTH, "sample_rate_hz": RATE_HZ}

    def signature(self, backbone: nn.Module, task: Task) -> Signature:
        inputs = (TensorSpec("ids", ("batch", "tokens"), "int64", "numbers"), TensorSpec("speaker", ("batch", SIZE), "float32", "manner"))
        return Signature(inputs, (TensorSpec("waveform", ("batch", "tokens"), "float32", "sound"),))

    def forward(self, backbone: nn.Module, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"waveform": backbone(inputs["ids"], inputs["speaker"])}

    def example(self, backbone: nn.Module, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {
            "ids": torch.randint(16, (sizes["batch"], sizes["tokens"]), generator=generator),
            "speaker": torch.randn(sizes["batch"], SIZE, generator=generator),
        }

    def conditioners(self, backbone: Any) -> Mapping[str, Conditioner]:
        if backbone.ear is None:
            return {}
        taken = (TensorSpec("audio", ("batch", "samples"), "float32", "recordings"), TensorSpec("lengths", ("batch",), "int64", "their lengths", "samples"))
        given = (TensorSpec("speaker", ("batch", SIZE), "float32", "manner"),)
        heard = {"kind": "audio", "input": "audio", "lengths": "lengths", "sample_rate_hz": RATE_HZ, "minimum_seconds": 0.5, "refuse_silence": True}
        return {"speaker": Conditioner(Signature(taken, given), heard)}

    def condition(self, backbone: Any, name: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        found: torch.Tensor = backbone.hear(inputs["audio"], inputs["lengths"])
        return found

    def condition_example(self, backbone: nn.Module, name: str, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"audio": torch.randn(sizes["batch"], sizes["samples"], generator=generator), "lengths": sizes["samples"] - 50 * torch.arange(sizes["batch"])}


class Fickle(ToyFamily):
    """Hears something else each time."""

    times = 0

    def condition(self, backbone: Any, name: str, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self.times += 1
        return super().condition(backbone, name, inputs) + 0.01 * self.times


CARD = FamilyCard(
    id="toy-speaker",
    title="A toy",
    media=("text", "audio"),
    architecture="none",
    libraries={},
    classes=("Speaker",),
    tasks=("synthesis",),
    sites={"block.0.ffn.up": Op("up")},
    implementation="",
    export={"synthesis": ExportRecipe({"batch": 2, "tokens": 6}, ({"batch": 1, "tokens": 9}, {"batch": 3, "tokens": 2}))},
    conditioners={"speaker": ExportRecipe({"batch": 2, "samples": 700}, ({"batch": 1, "samples": 900}, {"batch": 3, "samples": 451}))},
)


def toy(family: Family | None = None, listens: bool = True) -> Model:
    torch.manual_seed(0)
    processor = Processor({"kind": "array", "input": "ids", "shape": ["tokens"], "dtype": "int64"})
    return build_model(family or ToyFamily(CARD), Speaker(listens), Task("synthesis"), processor, reference="toy:speaker")


def adapted(model: Model, seed: int) -> Artifact:
    """A low-rank edit, and the vector of the speaker whom it was made for."""
    generator = torch.Generator().manual_seed(seed)
    edit = Edit("block.0.ffn.up", "lowrank", {"a": torch.randn(WIDTH, 2, generator=generator), "b": torch.randn(2, WIDTH, generator=generator)})
    own = {"condition.speaker": torch.randn(SIZE, generator=generator)}
    return Artifact("lora", model.base_id, model.family.card.id, "synthesis", (edit,), own=own)


@pytest.fixture(scope="module")
def model() -> Model:
    return toy()


@pytest.fixture(scope="module")
def bundle(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    place = tmp_path_factory.mktemp("toy") / "toy.bundle"
    export(model, {"ann": adapted(model, 1), "bob": adapted(model, 2)}, place, "slots", {"variants": ("float16", "int8")})
    return Bundle(place, device="cpu")


def recording(path: Path, seconds: float = 0.9, rate_hz: int = 16000, loudness: float = 0.4, pitch_hz: float = 300.0) -> Path:
    """A tone that grows louder, so that its parts differ."""
    count = round(seconds * rate_hz)
    pcm = np.rint(loudness * 32767 * np.linspace(0.2, 1, count) * np.sin(2 * np.pi * pitch_hz * np.arange(count) / rate_hz)).astype("<i2")
    with wave.open(str(path), "wb") as stream:
        stream.setparams((1, 2, rate_hz, 0, "NONE", ""))
        stream.writeframes(pcm.tobytes())
    return path


def heard(model: Model, path: Path) -> np.ndarray:
    """torch's vector of all samples of a recording."""
    samples = torch.from_numpy(read_audio(path, {"sample_rate_hz": RATE_HZ}))
    with torch.no_grad():
        return model.backbone.hear(samples[None], torch.tensor([len(samples)]))[0].numpy()  # type: ignore[operator]


def spoken(model: Model, ids: np.ndarray, speaker: np.ndarray, artifact: Artifact | None = None) -> np.ndarray:
    return answers(model, {"ids": torch.from_numpy(ids)[None], "speaker": torch.from_numpy(speaker)[None]}, artifact)["waveform"][0]


def test_the_graph_is_gated_as_every_other(bundle: Bundle) -> None:
    """Both graphs have cases at sizes that were not traced, with an own tolerance; the bundle's own test runs them."""
    report = json.loads((bundle.path / "parity/report.json").read_text())
    sizes = {tuple(row["sizes"].values()) for row in report["cases"] if row["graph"] == "speaker"}
    assert sizes == {(1, 900), (3, 451)}
    found = bundle.selftest()
    assert found.ok and {case.output for case in found.cases} == {"waveform", "speaker"}
    assert all(Bundle(bundle.path, device="cpu", variant=variant).selftest().ok for variant in ("float16", "int8"))
    session = onnxruntime.InferenceSession(bundle.path / "onnx/speaker.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["polyadapt.conditioners"]) == bundle.manifest.raw["conditioners"]
    assert bundle.info()["conditioners"] == {"speaker": "audio"} and bundle.info()["graphs"] == ["model"]


def test_a_conditioner_that_differs_from_torch_blocks_the_export(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"speaker/base/.*relative error"):
        export(toy(Fickle(CARD)), {}, tmp_path / "fickle.bundle")
    assert not list(tmp_path.iterdir())


def test_a_backbone_that_does_not_listen_has_no_such_graph(tmp_path: Path) -> None:
    made = export(toy(listens=False), {}, tmp_path / "deaf.bundle")
    manifest = json.loads((made.directory / "manifest.json").read_text())
    assert list(manifest["graphs"]) == ["model"] and "conditioners" not in manifest
    with pytest.raises(InputError, match="computes none of its inputs"):
        Bundle(made.directory).condition("voice.wav")


def test_a_recording_gives_what_torch_gives_and_is_spoken_with(model: Model, bundle: Bundle, tmp_path: Path) -> None:
    low, high = recording(tmp_path / "low.wav"), recording(tmp_path / "high.wav", 1.4, 8000, pitch_hz=900.0)
    vectors = [heard(model, low), heard(model, high)]
    assert np.allclose(bundle.condition(low)["speaker"], vectors[0], rtol=1e-5, atol=1e-6)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-3)
    both = bundle.condition([low, high], "speaker")
    assert np.allclose(both["speaker"], (vectors[0] + vectors[1]) / 2, rtol=1e-5, atol=1e-6)
    ids = np.array([3, 1, 4, 1, 5])
    assert np.allclose(bundle(ids, condition=both)["waveform"], spoken(model, ids, both["speaker"]), atol=1e-5)
    rows = bundle([ids, ids[:2], ids[::-1].copy()], condition=both)
    assert all(np.allclose(row["waveform"], spoken(model, given, both["speaker"]), atol=1e-5) for row, given in zip(rows, (ids, ids[:2], ids[::-1].copy()), strict=True))


def test_an_artifact_brings_its_speaker_and_mixes_have_the_mean(model: Model, bundle: Bundle, tmp_path: Path) -> None:
    ids, ann, bob = np.array([2, 7, 1]), adapted(model, 1), adapted(model, 2)
    own = ann.own["condition.speaker"].numpy()
    assert np.allclose(bundle(ids, "ann")["waveform"], spoken(model, ids, own, ann), atol=1e-5)
    assert not np.allclose(bundle(ids, "ann")["waveform"], bundle(ids, "bob")["waveform"], atol=1e-2)
    other = np.zeros(SIZE, np.float32)
    assert np.allclose(bundle(ids, "ann", condition={"speaker": other})["waveform"], spoken(model, ids, other, ann), atol=1e-5)
    name = bundle.mix({"ann": 3.0, "bob": 1.0})
    mean = 0.75 * own + 0.25 * bob.own["condition.speaker"].numpy()
    assert np.allclose(bundle.artifacts()[name].condition["speaker"], mean, atol=1e-6)
    assert np.array_equal(bundle(ids, name)["waveform"], bundle(ids, {"ann": 3.0, "bob": 1.0})["waveform"])
    for folder in (bundle.save_artifact("ann", tmp_path / "saved"), ann.save(tmp_path / "core")):
        loaded = bundle.load_artifact(folder)
        assert np.array_equal(bundle(ids, loaded)["waveform"], bundle(ids, "ann")["waveform"])


def test_a_server_has_the_conditioner_as_a_model_of_its_own(model: Model, tmp_path: Path) -> None:
    """Its answer is the other model's input; a client finds an artifact's own beside its slots."""
    ann, path = adapted(model, 1), recording(tmp_path / "voice.wav")
    export(model, {"ann": ann}, tmp_path / "toy", options={"layout": "triton"})
    repository = tmp_path / "toy"
    sessions = {name: onnxruntime.InferenceSession(repository / name / "1/model.onnx", providers=["CPUExecutionProvider"]) for name in ("toy", "toy_speaker")}
    samples = read_audio(path, {"sample_rate_hz": RATE_HZ})
    [vector] = sessions["toy_speaker"].run(["speaker"], {"audio": samples[None], "lengths": np.array([len(samples)])})
    assert np.allclose(vector[0], heard(model, path), rtol=1e-5, atol=1e-6)
    ids = np.array([2, 7, 1])
    [sound] = sessions["toy"].run(["waveform"], {"ids": ids[None], "speaker": vector})
    assert np.allclose(sound[0], spoken(model, ids, vector[0]), atol=1e-5)
    own = json.loads((repository / "toy/artifacts/ann/slots.json").read_text())["condition"]["speaker"]
    assert np.allclose(own, ann.own["condition.speaker"].numpy(), atol=1e-7)


def test_an_artifact_that_comes_later_brings_its_speaker_too(model: Model, tmp_path: Path) -> None:
    ids, bob = np.array([2, 7, 1]), adapted(model, 2)
    export(model, {"ann": adapted(model, 1)}, tmp_path / "people.bundle")
    add_artifacts(model, {"bob": bob}, tmp_path / "people.bundle")
    bundle = Bundle(tmp_path / "people.bundle")
    assert np.allclose(bundle(ids, "bob")["waveform"], spoken(model, ids, bob.own["condition.speaker"].numpy(), bob), atol=1e-5)
    assert bundle.selftest().ok


def test_a_merged_bundle_needs_no_name(model: Model, tmp_path: Path) -> None:
    ids, ann = np.array([2, 7, 1]), adapted(model, 1)
    export(model, {"ann": ann}, tmp_path / "ann.bundle", "merged")
    [effect] = [row for row in json.loads((tmp_path / "ann.bundle/parity/report.json").read_text())["effects"] if row["check"] == "artifact"]
    assert effect["ok"] and effect["change"] > 0  # of the one graph that the artifact reaches
    merged = Bundle(tmp_path / "ann.bundle")
    assert np.allclose(merged(ids)["waveform"], spoken(model, ids, ann.own["condition.speaker"].numpy(), ann), atol=1e-5)
    path = recording(tmp_path / "voice.wav")
    assert np.allclose(merged(ids, condition=merged.condition(path))["waveform"], spoken(model, ids, heard(model, path), ann), atol=1e-5)


def test_rows_of_a_bank_have_their_own_speakers(model: Model, tmp_path: Path) -> None:
    ids, people = np.array([2, 7, 1]), {"ann": adapted(model, 1), "bob": adapted(model, 2)}
    export(model, people, tmp_path / "people.bundle", "bank")
    bank = Bundle(tmp_path / "people.bundle")
    rows = bank([ids, ids], artifact=["bob", "ann"])
    for row, name in zip(rows, ("bob", "ann"), strict=True):
        assert np.allclose(row["waveform"], spoken(model, ids, people[name].own["condition.speaker"].numpy(), people[name]), atol=1e-5)
    assert bank.selftest().ok


@pytest.mark.parametrize(
    ("made", "words"),
    [({"seconds": 0.3}, "hears 0.5 s at least"), ({"loudness": 0.0}, "is silent"), ({"seconds": 0.0}, "is empty")],
)
def test_a_recording_in_which_nobody_is_heard_is_refused(bundle: Bundle, tmp_path: Path, made: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        bundle.condition(recording(tmp_path / "voice.wav", **made))  # type: ignore[arg-type]


def test_what_is_missing_is_said(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"also takes 'speaker': give condition=bundle\.condition\(audio"):
        bundle(np.array([1, 2]))
    with pytest.raises(InputError, match="no input 'manner' from another medium"):
        bundle.condition(recording(tmp_path / "voice.wav"), "manner")
    with pytest.raises(InputError, match="at least one audio"):
        bundle.condition([])


@pytest.mark.parametrize("values", [["0.1"], [float("nan")], 3, [[0.5]]])
def test_a_condition_that_is_no_list_of_numbers_is_refused(bundle: Bundle, values: object) -> None:
    table = json.loads((bundle.path / "manifest.json").read_text())
    table["artifacts"]["ann"]["condition"]["speaker"] = values
    with pytest.raises(ManifestError, match=r"artifacts\.ann: condition\.speaker must be a list of finite numbers"):
        parse_manifest(table)


@pytest.mark.parametrize("damage", ["graph", "shape", "name", "chain", "table"])
def test_a_manifest_whose_conditioner_computes_nothing_is_refused(bundle: Bundle, damage: str) -> None:
    table = json.loads((bundle.path / "manifest.json").read_text())
    if damage == "graph":
        del table["graphs"]["speaker"]
    elif damage == "shape":
        table["graphs"]["speaker"]["outputs"][0]["shape"] = ["batch", SIZE + 1]
    elif damage == "name":
        table["conditioners"] = {"manner": table["conditioners"]["speaker"]}
    elif damage == "chain":
        table["conditioners"] = {"model": table["conditioners"]["speaker"]}
    else:
        table["conditioners"]["speaker"] = []
    with pytest.raises(ManifestError, match=r"conditioners\."):
        parse_manifest(table)


def test_an_artifact_may_be_a_speaker_and_nothing_else(model: Model, tmp_path: Path) -> None:
    """No edits, so no file of tensors; it is called, saved, loaded and added as any other."""
    ids, ann, eve = np.array([2, 7, 1]), adapted(model, 1), adapted(model, 3).with_edits(())
    folder = export(model, {"ann": ann, "eve": eve}, tmp_path / "people.bundle", "slots", {"adapters": True}).directory
    own = eve.own["condition.speaker"].numpy()
    bundle = Bundle(folder, device="cpu")
    assert "file" not in bundle.manifest.raw["artifacts"]["eve"] and not (folder / "artifacts/eve/slots.safetensors").exists()
    loaded = [
        bundle.load_artifact(place, name)
        for place, name in ((bundle.save_artifact("eve", tmp_path / "saved"), "s"), (folder / "artifacts/eve", "f"), (eve.save(tmp_path / "core"), "c"))
    ]
    for name in ("eve", *loaded):
        assert np.allclose(bundle(ids, name)["waveform"], spoken(model, ids, own), atol=1e-5)
    assert bundle.selftest().ok
    add_artifacts(model, {"fay": eve}, folder)
    assert np.array_equal(Bundle(folder, device="cpu")(ids, "fay")["waveform"], bundle(ids, "eve")["waveform"])


@pytest.mark.parametrize("form", ["merged", "bank"])
def test_a_speaker_alone_needs_slots(model: Model, form: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"artifact eve holds no edits, only a value of speaker, and form '{form}' takes edits; use form 'slots'"):
        export(model, {"eve": adapted(model, 3).with_edits(())}, tmp_path / "eve.bundle", form)


def test_no_artifact_brings_what_is_said(model: Model, tmp_path: Path) -> None:
    artifact = replace(adapted(model, 1), own={"condition.ids": torch.zeros(3)})
    with pytest.raises(UserError, match="artifact ann brings a value for 'ids', which is made of the raw input that a call gives"):
        export(model, {"ann": artifact}, tmp_path / "ann.bundle")
