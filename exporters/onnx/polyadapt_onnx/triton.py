"""A model repository for NVIDIA Triton, from a bundle: its ONNX Runtime backend serves the graphs as they are.

    <name>/config.pbtxt                      inputs, outputs, and slots as optional inputs
    <name>/1/model.onnx [model.onnx.data]    the graph
    <name>/labels.txt                        of the base, where it has classes
    <name>/artifacts/<artifact>/             what a client sends in the slots to adapt a call

Variants are models of their own, `<name>_fp16` and `<name>_quantized`. A slot that a request leaves out keeps its
default, so a plain request is answered by the base. The backend takes optional inputs without batching by the server
only, so `max_batch_size` is 0 and the batch axis is an ordinary one.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from polyadapt.errors import ExportError
from polyadapt.files import read_json

TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "float64": "TYPE_FP64",
    "int64": "TYPE_INT64",
    "int32": "TYPE_INT32",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}


def write_repository(bundle: Path, repository: Path) -> list[str]:
    """Write every graph and variant of a bundle as a model; returns the models' names.

    Raises:
        ExportError: a graph that the backend cannot serve.
    """
    manifest = read_json(bundle / "manifest.json", "manifest")
    models = dict(_models(manifest))
    for name, (graph, file, data) in models.items():
        folder = repository / name
        (folder / "1").mkdir(parents=True)
        _copy_graph(bundle, file, data, folder / "1")
        labels = manifest["task"]["labels"] if any(port["name"] == "logits" for port in graph["outputs"]) else []
        if labels:
            (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        reached = {slot: manifest["slots"][slot] for slot in _inputs(folder / "1" / "model.onnx") if slot in manifest["slots"]}
        (folder / "config.pbtxt").write_text(config(name, graph, reached, has_labels=bool(labels)), encoding="utf-8")
    if (bundle / "artifacts").is_dir():
        shutil.copytree(bundle / "artifacts", repository / next(iter(models)) / "artifacts")
    return list(models)


def model_name(name: str) -> str:
    """A bundle's name as Triton takes it."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)


def config(name: str, graph: Mapping[str, Any], slots: Mapping[str, Any], has_labels: bool = False) -> str:
    """The model's configuration in protobuf's text format.

    Raises:
        ExportError: a type that Triton does not have.
    """
    blocks: list[tuple[str, str, Mapping[str, Any], list[str]]] = [("input", port["name"], port, []) for port in graph["inputs"]]
    blocks += [("input", slot, entry, ["optional: true"]) for slot, entry in slots.items()]
    blocks += [("output", port["name"], port, ['label_filename: "labels.txt"'] if has_labels and port["name"] == "logits" else []) for port in graph["outputs"]]
    lines = [f"name: {json.dumps(name)}", 'platform: "onnxruntime_onnx"', "max_batch_size: 0"]
    for field, title, entry, more in blocks:
        if entry["dtype"] not in TYPES:
            raise ExportError(f"Triton has no type for {title} ({entry['dtype']}); known: {', '.join(TYPES)}")
        dims = ", ".join(str(size) if isinstance(size, int) else "-1" for size in entry["shape"])
        body = [f"name: {json.dumps(title)}", f"data_type: {TYPES[entry['dtype']]}", f"dims: [ {dims} ]", *more]
        lines += [f"{field} {{", *(f"  {line}" for line in body), "}"]
    return "\n".join(lines) + "\n"


def _models(manifest: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Mapping[str, Any], str, list[str]]]]:
    """(graph, file, data) by the name of a model; the graph `model` carries the bundle's own name."""
    base = model_name(manifest["name"])
    for title, graph in manifest["graphs"].items():
        name = base if title == "model" else f"{base}_{title}"
        yield name, (graph, graph["file"], graph["data"])
        for entry in manifest.get("variants", {}).values():
            place = entry["graphs"].get(title, graph)  # the graph in front of models of pictures has no variants
            suffix = PurePosixPath(place["file"]).stem.removeprefix(PurePosixPath(graph["file"]).stem)
            if suffix:
                yield f"{name}{suffix}", (graph, place["file"], place["data"])


def marker(repository: Path, name: str) -> str:
    """A file that a repository of a bundle of this name has, by which one that lies there is known for one."""
    base = model_name(name)
    parts = sorted(repository.glob(f"{base}_*/config.pbtxt"))  # an encoder and a decoder have no model of the plain name
    return f"{(parts[0].parent.name if parts else base)}/config.pbtxt"


def _inputs(graph: Path) -> list[str]:
    """Names of a graph's inputs, its slots among them: of several graphs each has its own."""
    import onnx

    return [value.name for value in onnx.load(str(graph), load_external_data=False).graph.input]


def _copy_graph(bundle: Path, file: str, data: list[str], folder: Path) -> None:
    """The graph as `model.onnx`, its weights under the name that it looks for."""
    shutil.copyfile(bundle / file, folder / "model.onnx")
    for weights in data:
        shutil.copyfile(bundle / weights, folder / PurePosixPath(weights).name)
