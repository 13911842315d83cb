"""The form of a graph whose slots must be fed: a few kilobytes over the same weights, equal bit for bit, and the gate sees to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import polyadapt as pa
from polyadapt.artifact import Artifact
from polyadapt.errors import ExportError
from polyadapt.families.mlp_policy.card import CARD as POLICY
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.model import Model
from polyadapt.testing.conformance import tiny_model
from polyadapt.testing.exporting import adapted_artifact
from polyadapt_onnx import required
from polyadapt_onnx.exporter import export
from polyadapt_runtime import Bundle
from polyadapt_runtime.tensors import read_safetensors


def artifact_of(model: Model, method: str) -> Artifact:
    return adapted_artifact(load_method(Host().registry.methods.get(method).card), model)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model(POLICY)
    return export(model, {"a": artifact_of(model, "lora"), "b": artifact_of(model, "ia3")}, tmp_path_factory.mktemp("required") / "policy.bundle").directory


def graph_of(folder: Path) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads((folder / "manifest.json").read_text())["graphs"]["model"]
    return entry


def session(folder: Path, path: str) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(folder / path, options, providers=["CPUExecutionProvider"])


def test_slots_are_plain_inputs_without_defaults(folder: Path) -> None:
    entry, slots = graph_of(folder), json.loads((folder / "manifest.json").read_text())["slots"]
    opened = session(folder, entry["slots_file"])
    assert {value.name for value in opened.get_inputs()} == {"observation", *slots}
    assert opened.get_overridable_initializers() == []
    assert set(read_safetensors(folder / entry["slots_defaults"])[0]) == set(slots)


def test_nodes_and_weights_are_those_of_the_graph(folder: Path) -> None:
    """The same nodes in the same order; every tensor of some size lies in the one weights file, which is not copied."""
    entry = graph_of(folder)
    base, made = (onnx.load(folder / entry[key], load_external_data=False) for key in ("file", "slots_file"))
    assert [node.SerializeToString() for node in made.graph.node] == [node.SerializeToString() for node in base.graph.node]
    assert (made.opset_import, made.ir_version) == (base.opset_import, base.ir_version)
    places = {item.value for tensor in made.graph.initializer for item in tensor.external_data if item.key == "location"}
    assert places == {"model.onnx.data"} and entry["data"] == ["onnx/model.onnx.data"]
    assert (folder / entry["slots_file"]).stat().st_size <= (folder / entry["file"]).stat().st_size


def test_defaults_give_the_base_and_artifacts_the_adapted_model(folder: Path) -> None:
    """There and back on one session, at a batch that no gate saw."""
    entry, bundle = graph_of(folder), Bundle(folder, device="cpu", threads=1)
    opened, defaults = session(folder, entry["slots_file"]), read_safetensors(folder / entry["slots_defaults"])[0]
    feeds = {"observation": np.random.default_rng(5).standard_normal((6, *bundle.manifest.graphs["model"].inputs[0].shape[1:])).astype(np.float32)}
    first: dict[str | None, np.ndarray] = {}
    for name in (None, "a", "b", "a", None):
        own = {} if name is None else read_safetensors(folder / bundle.manifest.artifacts[name].file)[0]
        [found] = opened.run(["action"], {**feeds, **defaults, **own})
        assert np.array_equal(found, bundle.run(feeds, artifact=name)["action"])
        assert np.array_equal(found, first.setdefault(name, found))
    assert not np.array_equal(first[None], first["a"]) and not np.array_equal(first["a"], first["b"])


def test_the_report_has_a_row_for_the_base_random_edits_and_each_artifact(folder: Path) -> None:
    rows = [row for row in json.loads((folder / "parity" / "report.json").read_text())["effects"] if row["check"] == "required-slots"]
    assert [row["case"] for row in rows] == ["base/0", "random/0", "a/0", "b/0"] and all(row["ok"] for row in rows)


def test_a_merged_bundle_has_no_such_form(tmp_path: Path) -> None:
    model = tiny_model(POLICY)
    made = export(model, {"a": artifact_of(model, "lora")}, tmp_path / "merged.bundle", "merged").directory
    assert "slots_file" not in graph_of(made) and sorted(path.name for path in (made / "onnx").iterdir()) == ["model.onnx", "model.onnx.data"]


def test_a_form_that_differs_blocks_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One addition or product in place of the other."""
    honest = required.write_required

    def wrong(graph: Path, defaults: dict[str, torch.Tensor]) -> Path:
        model = onnx.load(honest(graph, defaults))
        node = next(node for node in model.graph.node if node.op_type in ("Mul", "Add"))
        node.op_type = {"Mul": "Add", "Add": "Mul"}[node.op_type]
        onnx.save(model, required.required_file(graph))
        return required.required_file(graph)

    monkeypatch.setattr("polyadapt_onnx.forms.slots.write_required", wrong)
    model = tiny_model(POLICY)
    with pytest.raises(ExportError, match=r"model_slots\.onnx, base/0: differs from the graph whose slots have defaults"):
        pa.export(model, {"b": artifact_of(model, "ia3")}, tmp_path / "wrong.bundle", legacy_fallback=False)
    assert not (tmp_path / "wrong.bundle").exists()


def test_no_default_is_empty_where_zeros_do_the_same(folder: Path) -> None:
    """onnxruntime-web 1.30 leaves the output of a convolution over no channels unwritten."""
    defaults = read_safetensors(folder / graph_of(folder)["slots_defaults"])[0]
    ranked = {name: value for name, value in defaults.items() if ":lowrank" in name}
    assert ranked and all(1 in value.shape and not value.any() for value in ranked.values())
