"""The files of a bundle: nothing leaves the folder, nothing is a link, nothing is unlisted, nothing was altered."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from polyadapt_runtime.errors import GraphError, IntegrityError, UnsafePathError

MANIFEST = "manifest.json"
SIGNATURE = "signature.json"  # made last, over all other files: no manifest can list it
Digests = Mapping[str, tuple[str, int]]

# Which fields of an ONNX file lead to tensors, by message. Field numbers are those of onnx.proto.
_FIELDS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "function": {7: "node", 11: "attribute"},
    "training": {1: "graph", 2: "graph"},
    "tensor": {13: "external"},
}
_DEPTH = 64
_MOST_FIELDS = 2_000_000  # some times what a graph of twenty thousand nodes has; more would only keep the reader busy


def safe_relative(path: str) -> PurePosixPath:
    """A path as manifests write it: relative, with forward slashes, inside the bundle.

    Raises:
        UnsafePathError: it is absolute, has `..`, a backslash, a drive or empty parts.
    """
    pure = PurePosixPath(path)
    plain = bool(pure.parts) and not pure.is_absolute() and str(pure) == path and not set(path) & set("\\:\0")
    if not plain or any(part in {".", ".."} for part in pure.parts):
        raise UnsafePathError(f"{path!r} is not a plain path inside the bundle; do not use this bundle")
    return pure


def check_plain(path: Path) -> None:
    """Refuse a file whose content lies, or may be changed, elsewhere.

    Raises:
        UnsafePathError: a symbolic link, a hard link, a device or a pipe.
        IntegrityError: there is no such file.
    """
    try:
        status = path.lstat()
    except (OSError, ValueError) as error:
        raise IntegrityError(f"cannot read {path}: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UnsafePathError(f"{path} is a link or no plain file; copy the folder with its content (cp -rL) and check where it came from")
    if status.st_nlink != 1:
        raise UnsafePathError(f"{path} is a hard link, so it can change from outside its folder; copy the folder (cp -r) and open the copy")


def check_tree(root: Path, files: Digests, hashes: bool) -> None:
    """Compare what lies in a folder with what its manifest lists.

    Args:
        root: the bundle's folder.
        files: (sha256, size in bytes) of every file but the manifest and its signature, by path.
        hashes: whether to read the files and compare their digests as well.

    Raises:
        UnsafePathError: a symbolic link, a hard link, a device or a pipe.
        IntegrityError: a file that is unlisted, missing, of another size or of other content.
    """
    found = dict(_walk(root))
    if unlisted := sorted(set(found) - set(files) - {MANIFEST, SIGNATURE}):
        raise IntegrityError(f"{root}: {', '.join(unlisted[:5])} not listed in {MANIFEST}; remove what was added or copy the bundle again")
    if missing := sorted(set(files) - set(found)):
        raise IntegrityError(f"{root}: {', '.join(missing[:5])} listed in {MANIFEST} but not there; copy the bundle again")
    for path, (_, size) in files.items():
        if found[path] != size:
            raise IntegrityError(f"{root / path} has {found[path]} bytes, {MANIFEST} says {size}; copy the bundle again")
    for path, (digest, _) in files.items() if hashes else ():
        if sha256_file(root / path) != digest:
            raise IntegrityError(f"{root / path} was altered: its sha256 is not the one in {MANIFEST}; copy the bundle again")


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_external_data(root: Path, graph: str, listed: Iterable[str]) -> None:
    """Refuse an ONNX file that reads weights from files which its manifest entry does not name.

    Raises:
        UnsafePathError: a location outside the bundle.
        IntegrityError: a location that is not listed as the graph's data.
        GraphError: the file is no ONNX model.
    """
    allowed = set(listed)
    folder = safe_relative(graph).parent
    for location in sorted(external_locations(_mapped(root / graph))):
        if "*" in location:  # onnxruntime's mark for addresses in memory
            raise UnsafePathError(f"{graph} reads weights from {location!r}, which is no file; do not use this bundle")
        path = str(folder / safe_relative(location))
        if path not in allowed:
            raise IntegrityError(f"{graph} reads weights from {path!r}, which {MANIFEST} does not list as its data; do not use this bundle")


def external_locations(model: bytes | memoryview) -> set[str]:
    """Names of the files in which an ONNX model keeps tensors, from its bytes, without the onnx package.

    Raises:
        GraphError: the bytes are no ONNX model.
    """
    try:
        return set(_locations(memoryview(model), "model", 0, iter(range(_MOST_FIELDS))))
    except (IndexError, ValueError) as error:
        raise GraphError(f"this is no ONNX model: {error}") from error


def _locations(message: memoryview, kind: str, depth: int, budget: Iterator[int]) -> Iterator[str]:
    if depth > _DEPTH:
        raise ValueError("graphs are nested too deeply")
    for number, value in _fields(message):
        if next(budget, None) is None:
            raise ValueError(f"it has more than {_MOST_FIELDS} fields")
        inner = _FIELDS[kind].get(number)
        if inner is None or value is None:
            continue
        if inner != "external":
            yield from _locations(value, inner, depth + 1, budget)
            continue
        entry = dict(_fields(value))
        if bytes(entry.get(1) or b"") == b"location":
            yield bytes(entry.get(2) or b"").decode("utf-8")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """(field number, bytes) of a protobuf message; None for numbers, which nothing here needs."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag >> 32 or not tag >> 3:  # other readers drop what is beyond 32 bits and would see another field
            raise ValueError("a tag of more than 32 bits, or of field 0")
        size, wire = {1: 8, 5: 4}.get(tag & 7, 0), tag & 7
        if wire == 0:
            _, at = _varint(message, at)
        elif wire == 2:
            size, at = _varint(message, at)
        elif wire not in (1, 5):
            raise ValueError(f"wire type {wire}")
        if at + size > len(message):
            raise ValueError("a field is longer than the file")
        yield tag >> 3, message[at : at + size] if wire == 2 else None
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number of more than ten bytes")


def _walk(root: Path) -> Iterator[tuple[str, int]]:
    """(path, bytes) of every file below `root`, none of them a link."""
    for folder, directories, names in os.walk(root, onerror=_raise):
        for name in [*directories, *names]:
            path = Path(folder) / name
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                continue
            check_plain(path)
            yield path.relative_to(root).as_posix(), status.st_size


def _mapped(path: Path) -> memoryview:
    if path.stat().st_size == 0:
        raise GraphError(f"{path} is empty; copy the bundle again")
    mapped: np.ndarray = np.memmap(path, dtype=np.uint8, mode="r")
    return mapped.data


def _raise(error: OSError) -> None:
    raise IntegrityError(f"cannot read {error.filename}: {error.strerror}")
