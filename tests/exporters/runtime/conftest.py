"""Small bundles written by hand with the onnx package: what the runtime reads is not made by the code under test."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from safetensors.numpy import save_file

from polyadapt_runtime.seal import sealed

BASE_ID = "b" * 64
SITE = "block.0.ffn"
LOWRANK, SCALE, SHIFT, BOTTLENECK, HEAD = f"{SITE}:lowrank", f"{SITE}:scale", f"{SITE}:shift", f"{SITE}:bottleneck~sequential-relu", "head:prototypes"

CLASSIFIER = f"""
agraph (float[batch, 6] x) => (float[batch, classes] logits, float[batch, 4] features)
{{
    base = MatMul(x, W)
    low = MatMul(x, "{LOWRANK}.a")
    delta = MatMul(low, "{LOWRANK}.b")
    h0 = Add(base, delta)
    h1 = Mul(h0, "{SCALE}.g")
    h2 = Add(h1, "{SHIFT}.b")
    down = MatMul(h2, "{BOTTLENECK}.down")
    down_biased = Add(down, "{BOTTLENECK}.down_bias")
    inner = Relu(down_biased)
    up = MatMul(inner, "{BOTTLENECK}.up")
    up_biased = Add(up, "{BOTTLENECK}.up_bias")
    features = Add(h2, up_biased)
    squares = Mul(features, features)
    total = ReduceSum(squares, last_axis)
    kept = Max(total, tiny)
    length = Sqrt(kept)
    unit = Div("{HEAD}.cosine", length)
    linear = Sub(one, "{HEAD}.cosine")
    factor = Add(unit, linear)
    scaled = Mul(features, factor)
    scores = MatMul(scaled, "{HEAD}.weight")
    logits = Add(scores, "{HEAD}.bias")
}}
"""
CLASSIFIER_SLOTS: dict[str, tuple[list[int | str], list[int]]] = {
    f"{LOWRANK}.a": ([6, "r"], [6, 0]),
    f"{LOWRANK}.b": (["r", 4], [0, 4]),
    f"{SCALE}.g": ([4], [4]),
    f"{SHIFT}.b": ([4], [4]),
    f"{BOTTLENECK}.down": ([4, "r"], [4, 0]),
    f"{BOTTLENECK}.down_bias": (["r"], [0]),
    f"{BOTTLENECK}.up": (["r", 4], [0, 4]),
    f"{BOTTLENECK}.up_bias": ([4], [4]),
    f"{HEAD}.weight": ([4, "c"], [4, 4]),
    f"{HEAD}.bias": (["c"], [4]),
    f"{HEAD}.cosine": ([1], [1]),
}


@dataclass
class Made:
    """What a bundle is made of, before it is written."""

    model: onnx.ModelProto
    slots: dict[str, tuple[list[int | str], list[int]]]
    manifest: dict[str, Any]
    artifacts: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    assets: dict[str, bytes] = field(default_factory=dict)
    cases: list[dict[str, Any]] = field(default_factory=list)
    recorded: dict[str, np.ndarray] = field(default_factory=dict)
    external: bool = False


@dataclass(frozen=True)
class Kit:
    """What tests use from this file: test modules cannot import one another."""

    write: Callable[[Path, Made], Path]
    seal: Callable[[Path], None]
    classifier: Callable[..., Made]
    adapter: Callable[..., dict[str, np.ndarray]]
    classifier_reference: Callable[..., tuple[np.ndarray, np.ndarray]]
    graph: Callable[..., onnx.ModelProto]


def build_graph(text: str, constants: Mapping[str, np.ndarray], slots: Mapping[str, np.ndarray], shapes: Mapping[str, list[Any]], opset: int = 20) -> onnx.ModelProto:
    """A model from onnx's text form; slots become inputs with an initializer of the same name."""
    codes: dict[str, str] = {}
    for name in sorted(shapes, key=len, reverse=True):  # the text form allows plain identifiers only
        codes[f"s{len(codes)}_"] = name
        text = text.replace(f'"{name}"', f"s{len(codes) - 1}_")
    graph = onnx.parser.parse_graph(text)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = codes.get(name, name)
    for name, value in {**constants, **slots}.items():
        graph.initializer.append(numpy_helper.from_array(value, name))
    for name in slots:
        group = name.rpartition(".")[0]
        sizes = [f"{group}.{size}" if isinstance(size, str) else size for size in shapes[name]]
        graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def classifier(labels: tuple[str, ...] = (), identity_head: bool = True, seed: int = 0) -> Made:
    """Inputs [batch, 6] -> features [batch, 4] -> logits, with a slot of every common kind."""
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((6, 4)).astype(np.float32)
    head = np.eye(4, dtype=np.float32) if identity_head else generator.standard_normal((4, len(labels))).astype(np.float32)
    defaults = {name: np.zeros(shape, np.float32) for name, (_, shape) in CLASSIFIER_SLOTS.items()}
    defaults |= {f"{SCALE}.g": np.ones(4, np.float32), f"{HEAD}.weight": head, f"{HEAD}.bias": np.zeros(head.shape[1], np.float32)}
    constants: dict[str, np.ndarray] = {"W": weight, "last_axis": np.array([-1], np.int64), "tiny": np.array([1e-24], np.float32), "one": np.ones(1, np.float32)}
    shapes = {name: shape for name, (shape, _) in CLASSIFIER_SLOTS.items()}
    slots = {name: (shape, list(defaults[name].shape)) for name, shape in shapes.items()}
    manifest = {
        "task": {"kind": "classification", "labels": list(labels), "metric": "accuracy", "details": {}},
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 6], "meaning": "numbers", "unit": ""}],
        "outputs": [
            {"name": "logits", "dtype": "float32", "shape": ["batch", "classes"], "meaning": "scores", "unit": ""},
            {"name": "features", "dtype": "float32", "shape": ["batch", 4], "meaning": "features", "unit": ""},
        ],
        "preprocess": {"kind": "array", "input": "x", "shape": [6], "dtype": "float32"},
        "postprocess": {"kind": "classification"},
    }
    return Made(build_graph(CLASSIFIER, constants, defaults, shapes), slots, manifest)


def adapter(
    seed: int, rank: int = 2, classes: int | None = 3, cosine: bool = True, bottleneck: int | None = None, kinds: tuple[str, ...] = (LOWRANK, SCALE, SHIFT)
) -> dict[str, np.ndarray]:
    """Seeded tensors without a zero factor."""
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    every = {f"{LOWRANK}.a": normal(6, rank), f"{LOWRANK}.b": normal(rank, 4), f"{SCALE}.g": 1 + normal(4), f"{SHIFT}.b": normal(4)}
    made = {name: value for name, value in every.items() if name.rpartition(".")[0] in kinds}
    if bottleneck is not None:
        made |= {f"{BOTTLENECK}.down": normal(4, bottleneck), f"{BOTTLENECK}.down_bias": normal(bottleneck)}
        made |= {f"{BOTTLENECK}.up": normal(bottleneck, 4), f"{BOTTLENECK}.up_bias": normal(4)}
    if classes is not None:
        columns = normal(4, classes)
        if cosine:
            columns = columns / np.linalg.norm(columns, axis=0) * np.float32(8.0)
        made |= {f"{HEAD}.weight": columns, f"{HEAD}.bias": np.zeros(classes, np.float32) if cosine else normal(classes)}
        made[f"{HEAD}.cosine"] = np.array([1.0 if cosine else 0.0], np.float32)
    return made


def classifier_reference(made: Made, x: np.ndarray, slots: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(logits, features) of the graph's formula in float64."""
    held = {item.name: numpy_helper.to_array(item).astype(np.float64) for item in made.model.graph.initializer}
    held |= {name: value.astype(np.float64) for name, value in slots.items()}
    h = x.astype(np.float64) @ held["W"] + x.astype(np.float64) @ held[f"{LOWRANK}.a"] @ held[f"{LOWRANK}.b"]
    h = h * held[f"{SCALE}.g"] + held[f"{SHIFT}.b"]
    inner = np.maximum(h @ held[f"{BOTTLENECK}.down"] + held[f"{BOTTLENECK}.down_bias"], 0)
    features = h + inner @ held[f"{BOTTLENECK}.up"] + held[f"{BOTTLENECK}.up_bias"]
    cosine = held[f"{HEAD}.cosine"][0]
    seen = features / np.linalg.norm(features, axis=1, keepdims=True) if cosine == 1 else features
    return seen @ held[f"{HEAD}.weight"] + held[f"{HEAD}.bias"], features


def write(root: Path, made: Made) -> Path:
    """Write a bundle's folder."""
    (root / "onnx").mkdir(parents=True)
    (root / "parity").mkdir()
    data = ["onnx/model.onnx.data"] if made.external else []
    onnx.save(made.model, root / "onnx/model.onnx", save_as_external_data=made.external, location="model.onnx.data" if made.external else None, size_threshold=60)
    entries: dict[str, Any] = {}
    for name, tensors in made.artifacts.items():
        (root / "artifacts" / name).mkdir(parents=True)
        save_file(dict(tensors), root / "artifacts" / name / "slots.safetensors")
        entry = {"file": f"artifacts/{name}/slots.safetensors", "method": "lora", "base_id": BASE_ID, "labels": made.labels.get(name, []), "metrics": {}, "slots": list(tensors)}
        (root / "artifacts" / name / "slots.json").write_text(json.dumps(entry))
        entries[name] = entry
    for name, content in made.assets.items():
        (root / "assets").mkdir(exist_ok=True)
        (root / "assets" / name).write_bytes(content)
    (root / "parity/cases.json").write_text(json.dumps(made.cases))
    (root / "parity/report.json").write_text(json.dumps({"ok": True, "tolerance": 1e-5, "cases": []}))
    save_file(made.recorded or {"nothing": np.zeros(0, np.float32)}, root / "parity/cases.safetensors")
    manifest = {key: value for key, value in made.manifest.items() if key not in ("inputs", "outputs")}
    graph = {"file": "onnx/model.onnx", "data": data, "opset": 20, "ir": 10, "exporter": "hand", "inputs": made.manifest["inputs"], "outputs": made.manifest["outputs"]}
    table = {
        "format": 1,
        "name": root.name,
        "base_id": BASE_ID,
        "family": "hand",
        "form": "slots",
        "graphs": {"model": graph},
        "slots": {name: _slot(name, shape, default) for name, (shape, default) in made.slots.items()},
        "artifacts": entries,
        "assets": {name.partition(".")[0]: f"assets/{name}" for name in made.assets},
        "licences": {},
        "versions": {},
        "parity": {"ok": True, "max_relative_error": 0.0, "tolerance": 1e-5},
        "files": {},
        **manifest,
    }
    (root / "manifest.json").write_text(sealed(table))
    seal(root)
    return root


def seal(root: Path) -> None:
    """Write the digests of all files into the manifest, as an export does last."""
    table = json.loads((root / "manifest.json").read_text())
    found = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    table["files"] = {path.relative_to(root).as_posix(): {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size} for path in found}
    (root / "manifest.json").write_text(sealed(table))


def _slot(name: str, shape: list[int | str], default: list[int]) -> dict[str, Any]:
    site, _, rest = name.partition(":")
    group, _, tensor = rest.rpartition(".")
    kind, _, variant = group.partition("~")
    return {"dtype": "float32", "shape": shape, "default_shape": default, "site": site, "kind": kind, "variant": variant, "tensor": tensor}


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit(write, seal, classifier, adapter, classifier_reference, build_graph)


@pytest.fixture(scope="session")
def _written(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Made]:
    made = kit.classifier()
    made.artifacts = {"birds": kit.adapter(1), "fish": kit.adapter(2, rank=5, classes=4, bottleneck=3), "plain": kit.adapter(3, classes=None)}
    made.labels = {"birds": ["wren", "robin", "tit"], "fish": ["cod", "eel", "ray", "carp"]}
    generator = np.random.default_rng(9)
    made.cases = [{"name": "base", "artifact": None}, {"name": "birds", "artifact": "birds"}, {"name": "random", "artifact": None}]
    for name, slots in (("base", {}), ("birds", made.artifacts["birds"]), ("random", kit.adapter(7, rank=3, bottleneck=1))):
        x = generator.standard_normal((3, 6)).astype(np.float32)
        logits, features = kit.classifier_reference(made, x, slots)
        made.recorded |= {f"{name}/in/x": x, f"{name}/out/logits": logits.astype(np.float32), f"{name}/out/features": features.astype(np.float32)}
        if name == "random":
            made.recorded |= {f"random/slot/{slot}": value for slot, value in slots.items()}
    return kit.write(tmp_path_factory.mktemp("runtime") / "hand.bundle", made), made


@pytest.fixture(scope="session")
def made(_written: tuple[Path, Made]) -> Made:
    return _written[1]


@pytest.fixture(scope="session")
def bundle_path(_written: tuple[Path, Made]) -> Path:
    """A classifier with the artifacts birds, fish and plain. Not to be written to."""
    return _written[0]


@pytest.fixture
def bundle_copy(bundle_path: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(bundle_path, tmp_path / "copy.bundle"))
