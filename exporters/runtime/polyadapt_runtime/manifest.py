"""`manifest.json`, format 1: read, checked field by field, and handed out as plain data."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from polyadapt_runtime.errors import ManifestError
from polyadapt_runtime.fields import check_generation, check_postprocess, strange_condition
from polyadapt_runtime.files import MANIFEST, check_external_data, check_plain, check_tree, safe_relative
from polyadapt_runtime.seal import check_seal
from polyadapt_runtime.tensors import unique_keys

FORMAT = 1
FORMS = ("slots", "merged", "bank")
MAXIMUM_BYTES = 16 << 20  # of a JSON file; as Python's tables it takes some twenty times as much
LARGEST_WHOLE = 1 << 63
PLAIN = "float32"  # what the graphs of every bundle are
NUMBERS = "artifact_id"  # the input of a bank that says which artifact each row has
MEASURES = ("max-relative", "rmse-std")
DEFAULT_TOLERANCE = 1e-5

T = TypeVar("T")


@dataclass(frozen=True)
class Slot:
    """One overridable tensor. `shape` mixes numbers and symbols; a symbol is shared within the slot's group."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    site: str
    kind: str
    variant: str
    tensor: str

    @property
    def group(self) -> str:
        """`site:kind[~variant]`: the slots of one edit."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class ArtifactEntry:
    """An artifact as a manifest, or the file beside it, describes it."""

    file: str
    base_id: str
    slots: tuple[str, ...]
    method: str = ""
    labels: tuple[str, ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    condition: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Port:
    """A named input or output of a graph."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    meaning: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Graph:
    """One ONNX file of the bundle, with the files that hold its weights.

    `slots_file` is its form with required slots, over the same weights, and `slots_defaults` what those default to.
    """

    file: str
    data: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    slots_file: str = ""
    slots_defaults: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """Every file of the bundle that belongs to this graph."""
        return tuple(path for path in (self.file, *self.data, self.slots_file, self.slots_defaults) if path)


@dataclass(frozen=True)
class Manifest:
    """Everything a bundle says about itself.

    Attributes:
        conditioners: pre-processing of another medium, by the name of the graph and of the input that it computes from it.
        raw: the whole table as it stands in the file.
        variant: which number format `graphs` are of.
        measure: how its outputs are compared with torch's.
        tolerance: of that measure, on the provider on which the bundle was proven, onnxruntime's CPU.
        format_tolerance: of a variant's number format whatever runs it; other providers round at other places and are held to this one.
    """

    name: str
    base_id: str
    form: str
    task: str
    labels: tuple[str, ...]
    details: Mapping[str, Any]
    graphs: Mapping[str, Graph]
    slots: Mapping[str, Slot]
    artifacts: Mapping[str, ArtifactEntry]
    preprocess: Mapping[str, Any]
    postprocess: Mapping[str, Any]
    assets: Mapping[str, str]
    generation: Mapping[str, Any]
    conditioners: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, tuple[str, int]]
    sha256: str
    raw: Mapping[str, Any]
    variant: str = PLAIN
    measure: str = MEASURES[0]
    tolerance: float = DEFAULT_TOLERANCE
    format_tolerance: float = 0.0

    @property
    def chain(self) -> tuple[str, ...]:
        """Names of the graphs that answer, in their order: the first takes raw input, the last gives the answer."""
        return ("model",) if "model" in self.graphs else ("encoder", "decoder")

    @property
    def runnable(self) -> tuple[str, ...]:
        """Names of all graphs that `run` takes: those that answer, and those that compute an input for them."""
        return (*self.chain, *self.conditioners)

    def strange_condition(self, names: Iterable[str]) -> str:
        """What is wrong with inputs that an artifact brings; empty where nothing is."""
        taken = [port.name for port in self.graphs[self.chain[0]].inputs if port.name != NUMBERS]
        return strange_condition(list(names), taken, self.preprocess, list(self.conditioners))

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Slot names by group."""
        groups: dict[str, tuple[str, ...]] = {}
        for slot in self.slots.values():
            groups[slot.group] = (*groups.get(slot.group, ()), slot.name)
        return groups


def read_manifest(root: Path, verify: bool = True) -> Manifest:
    """Read a bundle's manifest and compare the folder with it.

    Args:
        root: the bundle's folder.
        verify: whether to compare digests; names, links and sizes are always checked.

    Raises:
        ManifestError: no manifest, another format, or a field that is wrong.
        IntegrityError: the folder is not what the manifest lists.
    """
    path = root / MANIFEST
    if not path.is_file():
        raise ManifestError(f"{root} is not a bundle: it has no {MANIFEST}; give the folder that `export` wrote")
    check_plain(path)
    manifest = parse_manifest(read_table(path), str(path))
    if verify:
        check_seal(path, manifest.sha256)
    check_tree(root, manifest.files, verify)
    for graph in manifest.graphs.values():
        for file in filter(None, (graph.file, graph.slots_file)):
            check_external_data(root, file, graph.data)
    return manifest


def parse_manifest(table: Mapping[str, Any], where: str = MANIFEST) -> Manifest:
    """Check a manifest's table.

    Raises:
        ManifestError: another format, or a field that is missing or of the wrong sort.
        UnsafePathError: a path that leaves the bundle.
    """
    if table.get("format") != FORMAT:
        raise ManifestError(f"{where}: bundle format {table.get('format')!r}, this version reads format {FORMAT}; update polyadapt-runtime")
    form = need(table, "form", str, where)
    if form not in FORMS:
        raise ManifestError(f"{where}: form {form!r}; this version knows {', '.join(FORMS)}")
    files = {str(safe_relative(path)): _digest(entry, f"{where}: files[{path!r}]") for path, entry in need(table, "files", dict, where).items()}
    task, assets = need(table, "task", dict, where), need(table, "assets", dict, where)
    manifest = Manifest(
        name=need(table, "name", str, where),
        base_id=need(table, "base_id", str, where),
        form=form,
        task=need(task, "kind", str, f"{where}: task"),
        labels=strings(task, "labels", f"{where}: task"),
        details=optional(task, "details", f"{where}: task"),
        graphs={name: _graph(entry, f"{where}: graphs.{name}") for name, entry in need(table, "graphs", dict, where).items()},
        slots={name: _slot(name, entry, f"{where}: slots[{name!r}]") for name, entry in need(table, "slots", dict, where).items()},
        artifacts={name: artifact_entry(entry, f"{where}: artifacts.{name}") for name, entry in need(table, "artifacts", dict, where).items()},
        preprocess=optional(table, "preprocess", where),
        postprocess=need(table, "postprocess", dict, where),
        assets={name: need(assets, name, str, f"{where}: assets") for name in assets},
        generation=optional(table, "generation", where),
        conditioners={name: _preprocess(entry, f"{where}: conditioners.{name}") for name, entry in optional(table, "conditioners", where).items()},
        files=files,
        sha256=_hexadecimal(need(table, "sha256", str, where), where),
        raw=table,
        tolerance=tolerance_in(optional(table, "parity", where), where),
    )
    _check_references(manifest, where)
    return manifest


def artifact_entry(table: object, where: str, file: str | None = None) -> ArtifactEntry:
    """An artifact's description; `file` says where its tensors are when the table does not. A merged one has none of its own.

    Raises:
        ManifestError: a field is missing or of the wrong sort.
    """
    if not isinstance(table, dict):
        raise ManifestError(f"{where} must be a table")
    return ArtifactEntry(
        file=str(table.get("file", "")) if file is None else file,
        base_id=need(table, "base_id", str, where),
        slots=strings(table, "slots", where),
        method=str(table.get("method", "")),
        labels=strings(table, "labels", where) if table.get("labels") is not None else (),
        metrics=optional(table, "metrics", where),
        condition={name: _numbers(values, f"{where}: condition.{name}") for name, values in optional(table, "condition", where).items()},
    )


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ManifestError: it cannot be read, is too large or no JSON.
    """
    try:
        if path.stat().st_size > MAXIMUM_BYTES:
            raise ManifestError(f"{path} has more than {MAXIMUM_BYTES} bytes")
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_keys, parse_int=_whole)
    except OSError as error:
        raise ManifestError(f"cannot read {path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise ManifestError(f"{path} needs more memory than there is") from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path} is not valid JSON ({error}); copy it again") from error


def _whole(text: str) -> int:
    value = int(text)
    if not -LARGEST_WHOLE <= value < LARGEST_WHOLE:
        raise ValueError(f"a whole number of more than 64 bits, {text[:20]}")
    return value


def read_table(path: Path) -> dict[str, Any]:
    """The table in a JSON file.

    Raises:
        ManifestError: it cannot be read, or is something else.
    """
    table = read_json(path)
    if not isinstance(table, dict):
        raise ManifestError(f"{path} must hold a table, found {type(table).__name__}")
    return table


def need(table: Mapping[str, Any], key: str, kind: type[T], where: str) -> T:
    """A field of a given type.

    Raises:
        ManifestError: it is missing or of another type.
    """
    value = table.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ManifestError(f"{where}: {key} must be {kind.__name__}, found {type(value).__name__ if key in table else 'nothing'}")
    return value


def optional(table: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """A table that may be left out.

    Raises:
        ManifestError: it is something else.
    """
    return {} if table.get(key) is None else need(table, key, dict, where)


def tolerance_in(table: Mapping[str, Any], where: str, key: str = "tolerance", usual: float = DEFAULT_TOLERANCE) -> float:
    """A table's tolerance under `key`, or the usual one.

    Raises:
        ManifestError: it is no number, or below 0.
    """
    value = table.get(key, usual)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ManifestError(f"{where}: {key} must be a number, 0 or above, found {str(value)[:40]}; export the bundle again")
    return float(value)


def strings(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """A field that is a list of strings.

    Raises:
        ManifestError: it is something else.
    """
    value = need(table, key, list, where)
    if not all(isinstance(item, str) for item in value):
        raise ManifestError(f"{where}: {key} must be a list of strings")
    return tuple(value)


def _numbers(values: object, where: str) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        raise ManifestError(f"{where} must be a list of finite numbers")
    return tuple(float(value) for value in values)


def _preprocess(table: object, where: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ManifestError(f"{where} must be a table")
    return need(table, "preprocess", dict, where)


def _graph(table: object, where: str) -> Graph:
    if not isinstance(table, dict):
        raise ManifestError(f"{where} must be a table")
    inputs, outputs = (tuple(_port(entry, f"{where}.{key}") for entry in need(table, key, list, where)) for key in ("inputs", "outputs"))
    required = ("", "")
    if "slots_file" in table or "slots_defaults" in table:
        required = (onnx_file(table, "slots_file", where), need(table, "slots_defaults", str, where))
    return Graph(onnx_file(table, "file", where), strings(table, "data", where), inputs, outputs, *required)


def onnx_file(table: Mapping[str, Any], key: str, where: str) -> str:
    """The path of a graph. onnxruntime reads other formats by other endings, and those are not looked through.

    Raises:
        ManifestError: it is missing, or ends otherwise.
    """
    path = need(table, key, str, where)
    if not path.endswith(".onnx"):
        raise ManifestError(f"{where}: {key} must end with .onnx, found {path!r}")
    return path


def _port(table: object, where: str) -> Port:
    if not isinstance(table, dict):
        raise ManifestError(f"{where} must hold tables")
    return Port(need(table, "name", str, where), need(table, "dtype", str, where), _shape(table, where), str(table.get("meaning", "")), str(table.get("unit", "")))


def _slot(name: str, table: object, where: str) -> Slot:
    if not isinstance(table, dict):
        raise ManifestError(f"{where} must be a table")
    site, kind, variant, tensor = (need(table, key, str, where) for key in ("site", "kind", "variant", "tensor"))
    expected = f"{site}:{kind}{'~' if variant else ''}{variant}.{tensor}"
    if name != expected:
        raise ManifestError(f"{where}: site, kind, variant and tensor give {expected!r}")
    return Slot(name, need(table, "dtype", str, where), _shape(table, where), site, kind, variant, tensor)


def _shape(table: Mapping[str, Any], where: str) -> tuple[int | str, ...]:
    shape = need(table, "shape", list, where)
    if not all(isinstance(size, str) or (type(size) is int and size >= 0) for size in shape):
        raise ManifestError(f"{where}: shape must hold whole numbers and names of axes, found {shape}")
    return tuple(shape)


def _digest(table: object, where: str) -> tuple[str, int]:
    if not isinstance(table, dict):
        raise ManifestError(f"{where} must be a table")
    digest, size = _hexadecimal(need(table, "sha256", str, where), where), need(table, "size", int, where)
    if size < 0:
        raise ManifestError(f"{where}: size must be 0 or above, found {size}")
    return digest, size


def _hexadecimal(digest: str, where: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ManifestError(f"{where}: sha256 must be 64 hexadecimal digits, found {digest[:70]!r}")
    return digest


def _check_references(manifest: Manifest, where: str) -> None:
    """Every path that the manifest uses is a listed file; every slot of an artifact exists."""
    if "model" not in manifest.graphs and not {"encoder", "decoder"} <= set(manifest.graphs):
        raise ManifestError(f"{where}: graphs has no 'model', and not 'encoder' and 'decoder' together; it has: {', '.join(manifest.graphs) or 'none'}")
    for name in manifest.conditioners:
        taken = {port.name: port for title in manifest.chain for port in manifest.graphs[title].inputs}
        given = {port.name: port for port in manifest.graphs[name].outputs} if name in manifest.graphs and name not in manifest.chain else {}
        if name not in taken or name not in given or (taken[name].dtype, taken[name].shape) != (given[name].dtype, given[name].shape):
            raise ManifestError(f"{where}: conditioners.{name} needs a graph {name!r} of its own with an output {name!r} that is an input of {' or '.join(manifest.chain)}")
    used = [path for graph in manifest.graphs.values() for path in graph.files]
    used += [entry.file for entry in manifest.artifacts.values() if manifest.form == "slots" and entry.slots] + list(manifest.assets.values())
    for path in used:
        if str(safe_relative(path)) not in manifest.files:
            raise ManifestError(f"{where}: {path!r} is used but not among its files")
    for name, entry in manifest.artifacts.items() if manifest.form == "slots" else ():
        if unknown := [slot for slot in entry.slots if slot not in manifest.slots]:
            raise ManifestError(f"{where}: artifact {name!r} uses slots that the bundle does not have: {', '.join(unknown[:3])}")
    for name, entry in manifest.artifacts.items():
        if reason := manifest.strange_condition(entry.condition):
            raise ManifestError(f"{where}: artifact {name!r} {reason}")
    writer = manifest.graphs[manifest.chain[-1]]
    vocabulary = next((port.shape[-1] for port in writer.outputs if port.name == "logits" and port.shape), "")
    check_postprocess(manifest.postprocess, f"{where}: postprocess")
    check_generation(manifest.generation, len(writer.inputs), vocabulary, f"{where}: generation")
