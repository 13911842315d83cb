"""Files written by somebody who wants to deceive, digests and all: refused by an error of the runtime's own, never used."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyadapt_runtime import Bundle, BundleError, GraphError, IntegrityError, ManifestError, TensorFileError, UnsafePathError
from polyadapt_runtime.files import external_locations
from polyadapt_runtime.manifest import parse_manifest
from polyadapt_runtime.preprocess import Processor
from polyadapt_runtime.seal import sealed
from polyadapt_runtime.tensors import read_safetensors

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "..", "/etc/passwd", "head", "model", "a\0", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["", "model", "x", ".."]), inner, max_size=3),
    max_leaves=6,
)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """As somebody does who writes the digests anew."""
    table = json.loads(path.read_text())
    change(table)
    path.write_text(sealed(table) if path.name == "manifest.json" else json.dumps(table))


def places(value: Any, trail: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a document has values, inner ones included."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in ((*trail, key), *places(inner, (*trail, key)))]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_manifest_is_read_or_refused(bundle_path: Path, data: st.DataObject) -> None:
    """Whatever stands in whatever place: the fields that code relies on have their types, or it is no manifest."""
    table = json.loads((bundle_path / "manifest.json").read_text())
    changed = copy.deepcopy(table)
    everywhere = places(table)
    *trail, key = data.draw(st.sampled_from([place for place in everywhere if len(place) < 3]) | st.sampled_from(everywhere))
    holder = changed
    for step in trail:
        holder = holder[step]
    if data.draw(st.booleans()):
        holder[key] = data.draw(JSON)
    else:
        del holder[key]
    try:
        manifest = parse_manifest(changed)
    except (ManifestError, UnsafePathError):
        return
    assert all(isinstance(value, dict) for value in (manifest.details, manifest.preprocess, manifest.postprocess, manifest.generation))
    assert all(isinstance(path, str) and path in manifest.files for path in manifest.assets.values())
    used = [path for graph in manifest.graphs.values() for path in (graph.file, *graph.data)] + [entry.file for entry in manifest.artifacts.values()]
    assert set(used) <= set(manifest.files) and all(slot in manifest.slots for entry in manifest.artifacts.values() for slot in entry.slots)
    assert not [path for path in manifest.files if path.startswith("/") or ".." in path.split("/")]


WRONG_FIELDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "details must be dict": lambda table: table["task"].update(details=[1]),
    "generation must be dict": lambda table: table.update(generation=["past"]),
    "preprocess must be dict": lambda table: table.update(preprocess="image"),
    "metrics must be dict": lambda table: table["artifacts"]["birds"].update(metrics=[1]),
    "must be str, found int": lambda table: table["assets"].update(tokenizer=7),
    "must end with .onnx": lambda table: table["graphs"]["model"].update(file="onnx/model.ort"),
    "input must be str": lambda table: table["preprocess"].update(input=["x"]),
}


@pytest.mark.parametrize("message", WRONG_FIELDS)
def test_fields_of_another_sort_are_refused(bundle_copy: Path, message: str) -> None:
    edit(bundle_copy / "manifest.json", WRONG_FIELDS[message])
    with pytest.raises(ManifestError, match=message):
        Bundle(bundle_copy, device="cpu")


@pytest.mark.parametrize(
    "spec", [{"kind": "parts", "parts": [1]}, {"kind": "parts", "parts": {"a": 1}}, {"kind": "text", "inputs": "ids"}, {"kind": "text", "inputs": {}, "tokenizer": []}]
)
def test_specs_of_another_sort_are_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match="pre-processing"):
        Processor(spec)


@pytest.mark.parametrize("tolerance", ["much", -1, True, float("nan"), float("inf"), [1e-5], None])
def test_tolerances_are_numbers(kit: Any, bundle_copy: Path, tolerance: Any) -> None:
    """A self-test never passes, nor breaks, by a tolerance that is none."""
    edit(bundle_copy / "manifest.json", lambda table: table["parity"].update(tolerance=tolerance))
    with pytest.raises(ManifestError, match="tolerance must be a number"):
        Bundle(bundle_copy, device="cpu").selftest()
    edit(bundle_copy / "manifest.json", lambda table: table["parity"].pop("tolerance"))
    edit(bundle_copy / "parity/report.json", lambda table: table.update(cases=[{"name": "base", "output": "logits", "tolerance": tolerance}]))
    kit.seal(bundle_copy)
    with pytest.raises(ManifestError, match="tolerance must be a number"):
        Bundle(bundle_copy, device="cpu").selftest()


@pytest.mark.parametrize("artifact", [["birds"], {}, 1])
def test_cases_name_artifacts_by_strings(kit: Any, bundle_copy: Path, artifact: Any) -> None:
    (bundle_copy / "parity/cases.json").write_text(json.dumps([{"name": "base", "artifact": artifact}]))
    kit.seal(bundle_copy)
    with pytest.raises(ManifestError, match="artifact must be str"):
        Bundle(bundle_copy, device="cpu").selftest()


def test_a_manifest_that_is_a_hard_link_is_not_read(bundle_copy: Path, tmp_path: Path) -> None:
    os.link(bundle_copy / "manifest.json", tmp_path / "other.json")
    with pytest.raises(UnsafePathError, match="hard link"):
        Bundle(bundle_copy, device="cpu")


@pytest.fixture
def guest(bundle_path: Path, tmp_path: Path) -> Path:
    return Bundle(bundle_path, device="cpu").save_artifact("birds", tmp_path / "guest")


@pytest.mark.parametrize("name", ["artifact.json", "artifact.safetensors"])
@pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe"])
def test_an_artifact_from_outside_is_made_of_plain_files(bundle_path: Path, guest: Path, tmp_path: Path, name: str, kind: str) -> None:
    """A pipe would keep a reader waiting for ever, a link shows what lies elsewhere."""
    moved = Path(shutil.move(guest / name, tmp_path / "elsewhere"))
    {"symlink": (guest / name).symlink_to, "hard link": (guest / name).hardlink_to, "pipe": lambda _: os.mkfifo(guest / name)}[kind](moved)
    with pytest.raises(BundleError, match="link|plain file|not an artifact"):
        Bundle(bundle_path, device="cpu").load_artifact(guest)


@pytest.mark.parametrize("digest", [None, 5, ["a"]])
def test_an_artifact_from_outside_has_its_digest(bundle_path: Path, guest: Path, digest: Any) -> None:
    edit(guest / "artifact.json", lambda table: table.update(sha256=digest))
    with pytest.raises(ManifestError, match="sha256 must be str"):
        Bundle(bundle_path, device="cpu").load_artifact(guest)


def test_a_file_beyond_all_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    path.touch()
    os.truncate(path, 1 << 43)  # it has holes only
    with pytest.raises(TensorFileError, match="more than there is memory for"):
        read_safetensors(path)


def external(location: bytes, tag: bytes = b"\x6a") -> bytes:
    """model > graph > initializer > external_data > {location}; every length fits one byte."""
    entry = b"\x0a\x08location\x12" + bytes([len(location)]) + location
    tensor = tag + bytes([len(entry)]) + entry
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    return b"\x3a" + bytes([len(graph)]) + graph


def test_tags_beyond_32_bits_hide_nothing() -> None:
    """Readers of protobuf drop the upper bits: this is field 13 to them, and it must not be an unknown field to us."""
    assert external_locations(external(b"weights")) == {"weights"}
    hidden = bytes([0x6A | 0x80, 0x80, 0x80, 0x80, 0x10])  # 13 << 3 | 2, and bit 32
    assert sum((byte & 0x7F) << 7 * index for index, byte in enumerate(hidden)) % 2**32 == 13 << 3 | 2
    with pytest.raises(GraphError, match="32 bits"):
        external_locations(external(b"weights", hidden))


def test_a_graph_of_countless_fields_is_refused() -> None:
    """Two bytes a field: a file of some megabytes would keep the reader busy for minutes."""
    with pytest.raises(GraphError, match="field 0"):
        external_locations(b"\0" * 64)
    with pytest.raises(GraphError, match="more than 2000000 fields"):
        external_locations(b"\x08\x01" * 2_000_001)


def test_a_manifest_is_not_endless(bundle_copy: Path) -> None:
    os.truncate(bundle_copy / "manifest.json", 1 << 25)
    with pytest.raises(ManifestError, match="more than 16777216 bytes"):
        Bundle(bundle_copy, device="cpu")


def test_weights_at_an_address_in_memory_are_refused(kit: Any, tmp_path: Path) -> None:
    """onnxruntime reads `*/_ORT_MEM_ADDR_/*` as memory of the process, even where a file of that name is listed."""
    made = kit.classifier()
    made.external = True
    root = kit.write(tmp_path / "memory.bundle", made)
    mark = "*/_ORT_MEM_ADDR_/*"
    model = onnx.load(root / "onnx/model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = mark
    (root / "onnx/model.onnx").write_bytes(model.SerializeToString())
    (root / "onnx/*/_ORT_MEM_ADDR_").mkdir(parents=True)
    (root / "onnx" / mark).write_bytes(b"\0" * 4096)
    edit(root / "manifest.json", lambda table: table["graphs"]["model"].update(data=[f"onnx/{mark}"]))
    kit.seal(root)
    with pytest.raises(UnsafePathError, match="no file"):
        Bundle(root, device="cpu")


def test_outputs_that_are_no_numbers_are_refused(kit: Any, bundle_copy: Path) -> None:
    model = onnx.load(bundle_copy / "onnx/model.onnx")
    model.graph.node.append(onnx.helper.make_node("SequenceConstruct", ["logits"], ["listed"]))
    model.graph.output.append(onnx.helper.make_tensor_sequence_value_info("listed", onnx.TensorProto.FLOAT, None))
    onnx.save(model, bundle_copy / "onnx/model.onnx")
    kit.seal(bundle_copy)
    with pytest.raises(GraphError, match=r"'listed' of type seq\(tensor\(float\)\)"):
        Bundle(bundle_copy, device="cpu")


def test_a_signature_is_the_one_file_that_is_not_listed(bundle_copy: Path) -> None:
    (bundle_copy / "signature.json").write_bytes(b"whatever: this package reads none")
    assert Bundle(bundle_copy, device="cpu").selftest().ok
    (bundle_copy / "onnx/signature.json").write_bytes(b"elsewhere it is a file like any other")
    with pytest.raises(IntegrityError, match="onnx/signature.json not listed"):
        Bundle(bundle_copy, device="cpu")
