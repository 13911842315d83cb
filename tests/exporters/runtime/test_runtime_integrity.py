"""What a bundle's folder must be before a byte of it is used."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from polyadapt_runtime import Bundle, BundleError, GraphError, IntegrityError, ManifestError, UnsafePathError
from polyadapt_runtime.files import external_locations, safe_relative
from polyadapt_runtime.seal import sealed

FILES = [
    "onnx/model.onnx",
    "artifacts/birds/slots.safetensors",
    "artifacts/birds/slots.json",
    "artifacts/fish/slots.safetensors",
    "parity/cases.json",
    "parity/report.json",
    "parity/cases.safetensors",
]


def edit(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    table = json.loads((root / "manifest.json").read_text())
    change(table)
    (root / "manifest.json").write_text(sealed(table))


def open_bundle(root: Path, verify: bool = True) -> Bundle:
    return Bundle(root, device="cpu", verify=verify)


@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("path", FILES)
def test_a_flipped_byte_is_found(bundle_copy: Path, path: str, place: float) -> None:
    data = bytearray((bundle_copy / path).read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    (bundle_copy / path).write_bytes(data)
    with pytest.raises(IntegrityError, match=f"{path} was altered"):
        open_bundle(bundle_copy)


@pytest.mark.parametrize("path", FILES)
def test_sizes_are_checked_even_without_verify(bundle_copy: Path, path: str) -> None:
    with open(bundle_copy / path, "ab") as stream:
        stream.write(b"\0")
    with pytest.raises(IntegrityError, match="bytes"):
        open_bundle(bundle_copy, verify=False)
    (bundle_copy / path).unlink()
    with pytest.raises(IntegrityError, match="not there"):
        open_bundle(bundle_copy, verify=False)


@pytest.mark.parametrize("keep", [0, 1, 100, -2])
def test_a_truncated_manifest_is_no_manifest(bundle_copy: Path, keep: int) -> None:
    path = bundle_copy / "manifest.json"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ManifestError, match="not valid JSON"):
        open_bundle(bundle_copy)


def test_an_artifact_changed_after_opening_is_found(bundle_copy: Path) -> None:
    bundle = open_bundle(bundle_copy)
    path = bundle_copy / "artifacts/fish/slots.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="was altered"):
        bundle([[0.0] * 6], "fish")


def test_a_manifest_is_json_whatever_was_measured() -> None:
    """Readers in other languages know no NaN."""
    table = json.loads(sealed({"metrics": {"novel": float("nan"), "loss": [1.5, float("inf")]}}), parse_constant=pytest.fail)
    assert table["metrics"] == {"novel": None, "loss": [1.5, None]}


def test_an_unlisted_file_is_refused(bundle_copy: Path) -> None:
    (bundle_copy / "onnx/extra.bin").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"onnx/extra.bin not listed"):
        open_bundle(bundle_copy)


@pytest.mark.parametrize("verify", [True, False])
def test_links_are_refused(bundle_copy: Path, tmp_path: Path, verify: bool) -> None:
    target = bundle_copy / "artifacts/birds/slots.safetensors"
    outside = tmp_path / "outside.safetensors"
    shutil.copy(target, outside)
    target.unlink()
    target.symlink_to(outside)
    with pytest.raises(UnsafePathError, match="link"):
        open_bundle(bundle_copy, verify)
    target.unlink()
    os.link(outside, target)
    with pytest.raises(UnsafePathError, match="hard link"):
        open_bundle(bundle_copy, verify)


def test_a_linked_folder_and_a_pipe_are_refused(bundle_copy: Path, tmp_path: Path) -> None:
    shutil.move(bundle_copy / "artifacts", tmp_path / "elsewhere")
    (bundle_copy / "artifacts").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafePathError, match="link"):
        open_bundle(bundle_copy)
    (bundle_copy / "artifacts").unlink()
    shutil.move(tmp_path / "elsewhere", bundle_copy / "artifacts")
    os.mkfifo(bundle_copy / "pipe")
    with pytest.raises(UnsafePathError, match="no plain file"):
        open_bundle(bundle_copy)


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../b", "./a", "a//b", "a\\b", "C:/a", "", ".", "..", "a/", "a\0b", "a/.."])
def test_unsafe_paths_are_refused(bundle_copy: Path, path: str) -> None:
    with pytest.raises(UnsafePathError):
        safe_relative(path)
    edit(bundle_copy, lambda table: table["artifacts"]["birds"].update(file=path))
    with pytest.raises(UnsafePathError):
        open_bundle(bundle_copy, verify=False)


def test_only_listed_files_are_used(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda table: table["artifacts"]["birds"].update(file="artifacts/cats/slots.safetensors"))
    with pytest.raises(ManifestError, match="not among its files"):
        open_bundle(bundle_copy)


BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "format 2, this version reads format 1": lambda t: t.update(format=2),
    "format None": lambda t: t.pop("format"),
    "form 'banks'": lambda t: t.update(form="banks"),
    "name must be str, found int": lambda t: t.update(name=3),
    "base_id must be str, found nothing": lambda t: t.pop("base_id"),
    "has no 'model'": lambda t: t["graphs"].pop("model"),
    "graphs.model: data must be list, found nothing": lambda t: t["graphs"]["model"].pop("data"),
    "labels must be a list of strings": lambda t: t["task"].update(labels=[1]),
    "give 'head:prototypes.bias'": lambda t: t["slots"].update({"head:prototypes.extra": t["slots"]["head:prototypes.bias"]}),
    "whole numbers and names of axes": lambda t: t["slots"]["head:prototypes.bias"].update(shape=[-1]),
    "64 hexadecimal digits": lambda t: t["files"]["onnx/model.onnx"].update(sha256="00"),
    "size must be int, found bool": lambda t: t["files"]["onnx/model.onnx"].update(size=True),
    "uses slots that the bundle does not have": lambda t: t["slots"].pop("block.0.ffn:shift.b"),
    "pre-processing of kind 'smell'": lambda t: t.update(preprocess={"kind": "smell"}),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_manifest_says_where(bundle_copy: Path, message: str) -> None:
    edit(bundle_copy, BROKEN[message])
    with pytest.raises(ManifestError, match=message):
        open_bundle(bundle_copy)


def test_a_manifest_with_a_name_twice_is_refused(bundle_copy: Path) -> None:
    path = bundle_copy / "manifest.json"
    path.write_text('{"form": "merged",' + path.read_text()[1:])
    with pytest.raises(ManifestError, match="twice"):
        open_bundle(bundle_copy)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="is not a bundle"):
        open_bundle(tmp_path)


def test_the_graph_must_be_what_the_manifest_describes(bundle_copy: Path) -> None:
    edit(bundle_copy, lambda table: table["graphs"]["model"]["inputs"][0].update(name="pixels"))
    with pytest.raises(GraphError, match="its manifest says pixels"):
        open_bundle(bundle_copy)


def test_a_slot_that_the_graph_lacks_is_found(bundle_copy: Path) -> None:
    extra = {"dtype": "float32", "shape": [4], "default_shape": [4], "site": "block.1.ffn", "kind": "shift", "variant": "", "tensor": "b"}
    edit(bundle_copy, lambda table: table["slots"].update({"block.1.ffn:shift.b": extra}))
    with pytest.raises(GraphError, match=r"no overridable initializer block.1.ffn:shift.b"):
        open_bundle(bundle_copy)


@pytest.fixture
def external_bundle(kit: Any, tmp_path: Path) -> Path:
    made = kit.classifier()
    made.external = True
    return Path(kit.write(tmp_path / "external.bundle", made))


def relocate(kit: Any, root: Path, location: str) -> None:
    model = onnx.load(root / "onnx/model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (root / "onnx/model.onnx").write_bytes(model.SerializeToString())
    kit.seal(root)


def test_weights_in_a_listed_file_are_read(external_bundle: Path, bundle_path: Path) -> None:
    row = [0.1, 0.2, 0.3, -0.1, -0.2, -0.3]
    listed = json.loads((external_bundle / "manifest.json").read_text())["graphs"]["model"]["data"]
    assert listed == ["onnx/model.onnx.data"]
    assert open_bundle(external_bundle)([row])[0].top == open_bundle(bundle_path)([row])[0].top


@pytest.mark.parametrize(("location", "error"), [("../../secret", UnsafePathError), ("/etc/passwd", UnsafePathError), ("other.data", IntegrityError), ("", UnsafePathError)])
def test_weights_from_elsewhere_are_refused(kit: Any, external_bundle: Path, location: str, error: type[BundleError]) -> None:
    (external_bundle.parent / "secret").write_bytes(b"\0" * 4096)
    shutil.copy(external_bundle / "onnx/model.onnx.data", external_bundle / "onnx/other.data")
    relocate(kit, external_bundle, location)
    with pytest.raises(error):
        open_bundle(external_bundle)


def test_locations_are_found_wherever_a_tensor_can_be(external_bundle: Path) -> None:
    """In initializers, constants, subgraphs of control flow, sparse values and functions."""

    def tensor(place: str) -> onnx.TensorProto:
        made = onnx.TensorProto(name=place, data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
        made.external_data.add(key="location", value=place)
        made.external_data.add(key="offset", value="0")
        return made

    inner = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["c"], value=tensor("nested"))], "inner", [], [], [tensor("initializer")])
    node = onnx.helper.make_node("If", ["t"], ["y"], then_branch=inner)
    sparse = onnx.SparseTensorProto(values=tensor("values"), indices=tensor("indices"), dims=[3])
    graph = onnx.helper.make_graph([node], "outer", [], [], sparse_initializer=[sparse])
    listed = onnx.helper.make_node("Other", [], ["z"])
    listed.attribute.append(onnx.AttributeProto(name="many", type=onnx.AttributeProto.TENSORS, tensors=[tensor("many")]))
    thin = onnx.SparseTensorProto(values=tensor("thin"), indices=tensor("thin indices"), dims=[3])
    listed.attribute.append(onnx.AttributeProto(name="one", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=thin))
    function = onnx.helper.make_function("local", "F", [], ["c"], [onnx.helper.make_node("Constant", [], ["c"], value=tensor("function")), listed], [])
    model = onnx.helper.make_model(graph, functions=[function])
    assert external_locations(model.SerializeToString()) == {"nested", "initializer", "values", "indices", "function", "many", "thin", "thin indices"}


@pytest.mark.parametrize("data", [b"\xff" * 40, b"\x3a\x7f", b"\x0f", b"no model at all"])
def test_what_is_no_model_is_refused(kit: Any, bundle_copy: Path, data: bytes) -> None:
    (bundle_copy / "onnx/model.onnx").write_bytes(data)
    kit.seal(bundle_copy)
    with pytest.raises(GraphError):
        open_bundle(bundle_copy)
    (bundle_copy / "onnx/model.onnx").write_bytes(b"")
    kit.seal(bundle_copy)
    with pytest.raises(GraphError, match="empty"):
        open_bundle(bundle_copy)


def test_deeply_nested_graphs_end_in_an_error() -> None:
    data = b""
    for _ in range(200):  # graph > node > attribute > graph …
        for tag in (0x32, 0x2A, 0x0A):
            size = len(data)
            data = bytes([tag]) + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + data
    size = len(data)
    with pytest.raises(GraphError, match="nested"):
        external_locations(bytes([0x3A, size & 127 | 128, size >> 7]) + data)
