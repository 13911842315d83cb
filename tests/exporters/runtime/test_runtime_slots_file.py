"""The form of a graph whose slots are required, as a manifest names it: listed, complete, and over the same weights only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from polyadapt_runtime import Bundle, BundleError, IntegrityError, ManifestError, UnsafePathError
from polyadapt_runtime.seal import sealed

FILE, DEFAULTS = "onnx/model_slots.onnx", "onnx/model_slots.safetensors"


@pytest.fixture
def folder(kit: Any, tmp_path: Path) -> Path:
    """A bundle whose weights lie in a file of their own, read by both forms of its graph."""
    made = kit.classifier()
    made.external = True
    root = Path(kit.write(tmp_path / "forms.bundle", made))
    shutil.copy(root / "onnx/model.onnx", root / FILE)
    shutil.copy(root / "parity/cases.safetensors", root / DEFAULTS)
    change(root, lambda graph: graph.update(slots_file=FILE, slots_defaults=DEFAULTS))
    kit.seal(root)
    return root


def change(root: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    table = json.loads((root / "manifest.json").read_text())
    edit(table["graphs"]["model"])
    (root / "manifest.json").write_text(sealed(table))


def test_both_forms_are_read(folder: Path) -> None:
    graph = Bundle(folder, device="cpu").manifest.graphs["model"]
    assert (graph.slots_file, graph.slots_defaults) == (FILE, DEFAULTS)
    assert graph.files == ("onnx/model.onnx", "onnx/model.onnx.data", FILE, DEFAULTS)


def test_a_graph_without_that_form_is_read(folder: Path) -> None:
    change(folder, lambda graph: (graph.pop("slots_file"), graph.pop("slots_defaults")))
    assert Bundle(folder, device="cpu").manifest.graphs["model"].files == ("onnx/model.onnx", "onnx/model.onnx.data")


@pytest.mark.parametrize("location", ["../../secret", "/etc/passwd", "other.data"])
def test_its_weights_come_from_the_graphs_own_file(kit: Any, folder: Path, location: str) -> None:
    (folder / "onnx/other.data").write_bytes((folder / "onnx/model.onnx.data").read_bytes())
    model = onnx.load(folder / FILE, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / FILE).write_bytes(model.SerializeToString())
    kit.seal(folder)
    with pytest.raises(IntegrityError if location == "other.data" else UnsafePathError):
        Bundle(folder, device="cpu")


@pytest.mark.parametrize(
    ("edit", "error", "words"),
    [
        (lambda graph: graph.update(slots_file="onnx/elsewhere.onnx"), ManifestError, "'onnx/elsewhere.onnx' is used but not among its files"),
        (lambda graph: graph.update(slots_defaults="onnx/elsewhere.safetensors"), ManifestError, "is used but not among its files"),
        (lambda graph: graph.update(slots_file="../model.onnx"), UnsafePathError, "not a plain path"),
        (lambda graph: graph.update(slots_file=3), ManifestError, "slots_file must be str, found int"),
        (lambda graph: graph.pop("slots_defaults"), ManifestError, "slots_defaults must be str, found nothing"),
    ],
)
def test_what_the_manifest_says_is_checked(folder: Path, edit: Callable[[dict[str, Any]], Any], error: type[BundleError], words: str) -> None:
    change(folder, edit)
    with pytest.raises(error, match=words):
        Bundle(folder, device="cpu")
