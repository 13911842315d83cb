"""What is derived from a bundle: onnxruntime's adapter files, strings in the graph, and a model repository for Triton."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from polyadapt.artifact import Artifact
from polyadapt.edits import Edit
from polyadapt.errors import ExportError
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.testing.conformance import example_of, tiny_model
from polyadapt.testing.exporting import adapted_artifact
from polyadapt_onnx.adapters import write_adapter_file
from polyadapt_onnx.exporter import export
from polyadapt_onnx.triton import config, marker, write_repository
from polyadapt_runtime import Bundle

METHODS = {claim.card.id: claim.card for claim in Host().registry.methods.claims()}
OPTIONS = onnxruntime.SessionOptions()
OPTIONS.log_severity_level = 3


class Exported:
    def __init__(self, folder: Path) -> None:
        self.model = tiny_model(VIT, "classification")
        self.artifacts = {name: adapted_artifact(load_method(METHODS[name]), self.model) for name in ("lora", "ia3")}
        self.folder = export(self.model, self.artifacts, folder / "pictures.bundle", options={"adapters": True, "variants": ("float16",)}).directory
        self.manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text())
        self.feeds = {name: value.numpy() for name, value in example_of(self.model, seed=4, sizes={"batch": 2}).items()}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("derived"))


def session_of(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), OPTIONS, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("file", ["onnx/model.onnx", "onnx/model_fp16.onnx"])
def test_plain_onnxruntime_adapts_by_the_adapter_file(exported: Exported, file: str) -> None:
    session = session_of(exported.folder / file)
    ours = Bundle(exported.folder, device="cpu", variant="float16" if "fp16" in file else "float32")
    base = session.run(None, exported.feeds)
    for name in exported.artifacts:
        adapter, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
        adapter.Load(str(exported.folder / exported.manifest["artifacts"][name]["onnx_adapter"]))
        options.add_active_adapter(adapter)
        found = session.run(None, exported.feeds, options)
        expected = ours.run(exported.feeds, name)
        assert all(np.allclose(value, expected[port.name], rtol=0, atol=1e-6) for value, port in zip(found, session.get_outputs(), strict=True))
        assert float(np.abs(found[1] - base[1]).max()) > 1e-3


def test_the_adapter_file_is_listed_and_optional(exported: Exported) -> None:
    paths = {name: f"artifacts/{name}/{name}.onnx_adapter" for name in exported.artifacts}
    assert {name: entry["onnx_adapter"] for name, entry in exported.manifest["artifacts"].items()} == paths
    assert set(paths.values()) <= set(exported.manifest["files"])


def test_a_tensor_without_axes_is_refused(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = Artifact("x", exported.model.base_id, "vit", "classification", (Edit("block.0.ffn", "scale", {"g": next(iter(exported.artifacts["ia3"].slots.values()))}),))
    monkeypatch.setattr("polyadapt_onnx.adapters.slots_of", lambda edits: {name: value.mean() for edit in edits for name, value in edit.tensors.items()})
    with pytest.raises(ExportError, match=r"artifact x: g has no axes"):
        write_adapter_file(tmp_path, "x", artifact)


@pytest.mark.parametrize("file", ["onnx/model.onnx", "onnx/model_fp16.onnx"])
def test_a_graph_says_what_it_is(exported: Exported, file: str) -> None:
    """Strings that plain onnxruntime reads; they are those of the manifest."""
    found = session_of(exported.folder / file).get_modelmeta().custom_metadata_map
    assert {name: found[f"polyadapt.{name}"] for name in ("format", "base_id", "family", "form", "task")} == {
        "format": "1",
        "base_id": exported.model.base_id,
        "family": "vit",
        "form": "slots",
        "task": "classification",
    }
    assert json.loads(found["polyadapt.labels"]) == exported.manifest["task"]["labels"] == list(exported.model.task.labels)
    assert json.loads(found["polyadapt.preprocess"]) == exported.manifest["preprocess"]
    counts = json.loads(found["polyadapt.slots"])
    assert sum(counts.values()) == len(exported.manifest["slots"]) and set(counts) == {"lowrank", "scale", "scale~input", "prototypes"}
    assert found["polyadapt.generator"].startswith("polyadapt ") and all(name.startswith("polyadapt.") for name in found)


def model_config_class() -> Any:
    """The few fields of Triton's `ModelConfig` that are used here, with the numbers of its public schema."""
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    types = file.enum_type.add(name="DataType")
    for number, name in enumerate(
        [
            "TYPE_INVALID",
            "TYPE_BOOL",
            "TYPE_UINT8",
            "TYPE_UINT16",
            "TYPE_UINT32",
            "TYPE_UINT64",
            "TYPE_INT8",
            "TYPE_INT16",
            "TYPE_INT32",
            "TYPE_INT64",
            "TYPE_FP16",
            "TYPE_FP32",
            "TYPE_FP64",
        ]
    ):
        types.value.add(name=name, number=number)
    field = descriptor_pb2.FieldDescriptorProto
    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED

    def message(name: str, *fields: tuple[str, int, int, int, str]) -> None:
        made = file.message_type.add(name=name)
        for title, number, kind, label, type_name in fields:
            made.field.add(name=title, number=number, type=kind, label=label, type_name=type_name or None)

    common = (("name", 1, field.TYPE_STRING, one, ""), ("data_type", 2, field.TYPE_ENUM, one, ".inference.DataType"))
    message("ModelInput", *common, ("dims", 4, field.TYPE_INT64, many, ""), ("optional", 8, field.TYPE_BOOL, one, ""))
    message("ModelOutput", *common, ("dims", 3, field.TYPE_INT64, many, ""), ("label_filename", 4, field.TYPE_STRING, one, ""))
    message(
        "ModelConfig",
        ("name", 1, field.TYPE_STRING, one, ""),
        ("platform", 2, field.TYPE_STRING, one, ""),
        ("max_batch_size", 4, field.TYPE_INT32, one, ""),
        ("input", 5, field.TYPE_MESSAGE, many, ".inference.ModelInput"),
        ("output", 6, field.TYPE_MESSAGE, many, ".inference.ModelOutput"),
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


EXPECTED = """
name: "birds"
platform: "onnxruntime_onnx"
max_batch_size: 0
input { name: "image" data_type: TYPE_FP32 dims: [ -1, 3, 32, 32 ] }
input { name: "block.0.attn.q:lowrank.a" data_type: TYPE_FP32 dims: [ 32, -1 ] optional: true }
output { name: "logits" data_type: TYPE_FP32 dims: [ -1, -1 ] label_filename: "labels.txt" }
output { name: "tokens" data_type: TYPE_INT64 dims: [ -1 ] }
"""


def test_a_configuration_is_the_hand_written_one() -> None:
    kind = model_config_class()
    graph = {
        "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 32, 32]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", "classes"]}, {"name": "tokens", "dtype": "int64", "shape": ["batch"]}],
    }
    slots = {"block.0.attn.q:lowrank.a": {"dtype": "float32", "shape": [32, "r"]}}
    assert text_format.Parse(config("birds", graph, slots, has_labels=True), kind()) == text_format.Parse(EXPECTED, kind())
    with pytest.raises(ExportError, match=r"Triton has no type for image \(bfloat16\)"):
        config("birds", {"inputs": [{"name": "image", "dtype": "bfloat16", "shape": []}], "outputs": []}, {})


def test_a_repository_holds_graph_variants_and_artifacts(exported: Exported, tmp_path: Path) -> None:
    """Every name, type and size of the configuration is one that the graph beside it has, and that graph runs from there."""
    assert write_repository(exported.folder, tmp_path) == ["pictures", "pictures_fp16"]
    for name, variant in (("pictures", "float32"), ("pictures_fp16", "float16")):
        found = text_format.Parse((tmp_path / name / "config.pbtxt").read_text(), model_config_class()())
        session = session_of(tmp_path / name / "1" / "model.onnx")
        assert found.name == name and found.max_batch_size == 0
        for given, real in ((found.input, [*session.get_inputs(), *session.get_overridable_initializers()]), (found.output, session.get_outputs())):
            shapes = {port.name: [size if isinstance(size, int) else -1 for size in port.shape] for port in real}
            assert {port.name: list(port.dims) for port in given} == shapes
        assert {port.name for port in found.input if port.optional} == set(exported.manifest["slots"])
        assert (tmp_path / name / "labels.txt").read_text().split() == list(exported.model.task.labels)
        expected = Bundle(exported.folder, device="cpu", threads=1, variant=variant).run(exported.feeds)
        assert np.allclose(session.run(["features"], exported.feeds)[0], expected["features"], rtol=0, atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "pictures" / "artifacts").iterdir()) == ["ia3", "lora"]


def test_an_export_as_a_repository_leaves_no_bundle(exported: Exported, tmp_path: Path) -> None:
    made = export(exported.model, {}, tmp_path / "served", options={"layout": "triton"})
    assert sorted(path.relative_to(tmp_path / "served").as_posix() for path in made.directory.rglob("*") if path.is_file()) == [
        "served/1/model.onnx",
        "served/1/model.onnx.data",
        "served/config.pbtxt",
        "served/labels.txt",
    ]
    assert onnx.load(str(made.directory / "served/1/model.onnx"), load_external_data=False).graph.input[0].name == "image"


def test_a_repository_is_known_by_a_model_that_it_has(tmp_path: Path) -> None:
    """One of an encoder and a decoder may be written again, as that of a single model may."""
    assert marker(tmp_path, "my voice") == "my_voice/config.pbtxt"
    for part in ("decoder", "encoder"):
        (tmp_path / f"my_voice_{part}").mkdir()
        (tmp_path / f"my_voice_{part}" / "config.pbtxt").touch()
    assert marker(tmp_path, "my voice") == "my_voice_decoder/config.pbtxt"


def test_several_graphs_become_models_with_the_slots_that_each_has(tmp_path: Path) -> None:
    """An encoder, a decoder with a slot, and a graph in front that has no variants."""
    bundle, slot = tmp_path / "speech.bundle", "decoder.block.0.attn.q:lowrank.a"
    graphs = {"encoder": ("encoder_model", ["audio"]), "decoder": ("decoder_model_merged", ["ids", slot]), "preprocess": ("preprocess", ["picture"])}
    (bundle / "onnx").mkdir(parents=True)
    for stem, inputs in graphs.values():
        values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n"]) for name in inputs]
        output = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, ["n"])
        model = onnx.helper.make_model(onnx.helper.make_graph([onnx.helper.make_node("Identity", inputs[:1], ["out"])], "g", values, [output]))
        for suffix in ("", "_fp16"):
            onnx.save(model, str(bundle / "onnx" / f"{stem}{suffix}.onnx"))

    def port(name: str) -> dict[str, Any]:
        return {"name": name, "dtype": "float32", "shape": ["n"]}

    manifest = {
        "name": "speech",
        "task": {"labels": []},
        "graphs": {title: {"file": f"onnx/{stem}.onnx", "data": [], "inputs": [port(inputs[0])], "outputs": [port("out")]} for title, (stem, inputs) in graphs.items()},
        "slots": {slot: port(slot)},
        "variants": {"float16": {"graphs": {title: {"file": f"onnx/{graphs[title][0]}_fp16.onnx", "data": []} for title in ("encoder", "decoder")}}},
    }
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    names = write_repository(bundle, tmp_path / "repository")
    assert names == ["speech_encoder", "speech_encoder_fp16", "speech_decoder", "speech_decoder_fp16", "speech_preprocess"]
    assert [name for name in names if slot in (tmp_path / "repository" / name / "config.pbtxt").read_text()] == ["speech_decoder", "speech_decoder_fp16"]
