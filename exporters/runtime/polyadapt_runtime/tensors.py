"""safetensors files, read and written with numpy alone.

A file is an 8-byte little-endian length, a JSON header, and the bytes of the tensors. Everything the header
claims is checked before a byte of data is touched, and the tensors must tile the data exactly:
no holes, no overlaps, nothing behind the last one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyadapt_runtime.errors import IntegrityError, TensorFileError

DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAXIMUM_HEADER_BYTES = 100_000_000  # the limit of the format itself

Tensors = dict[str, np.ndarray]


def read_safetensors(path: Path | str, sha256: str | None = None) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a file.

    Args:
        path: the file.
        sha256: digest that its bytes must have; the very bytes that were hashed are then parsed.

    Raises:
        TensorFileError: it cannot be read, or is not a whole safetensors file.
        IntegrityError: it has another digest.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise TensorFileError(f"cannot read {path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise TensorFileError(f"{path} has {os.path.getsize(path)} bytes, more than there is memory for") from error
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise IntegrityError(f"{path} was altered: its sha256 is not the recorded one; copy it again")
    try:
        return parse_safetensors(data)
    except TensorFileError as error:
        raise TensorFileError(f"{path} is not a whole safetensors file: {error}") from error


def parse_safetensors(data: bytes) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata from the bytes of a file. The arrays are copies.

    Raises:
        TensorFileError: header and bytes do not fit together.
    """
    header, start = _header(data)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise TensorFileError("__metadata__ is not a table of strings")
    spans = sorted((_entry(name, entry, len(data) - start) for name, entry in header.items()), key=lambda span: (span[0], span[1]))
    at, tensors = 0, {}
    for begin, end, name, dtype, shape in spans:
        if begin != at:
            raise TensorFileError(f"tensor {name!r} begins at byte {begin}, expected {at}: a hole or an overlap")
        at = end
        flat = np.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=start + begin)
        tensors[name] = flat.reshape(shape).copy()
    if at != len(data) - start:
        raise TensorFileError(f"{len(data) - start - at} bytes belong to no tensor")
    return {name: tensors[name] for name in header}, metadata


def write_safetensors(path: Path | str, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors beside `path` and rename. Equal tensors give equal bytes.

    Raises:
        TensorFileError: a dtype that the format does not know, or the place cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    arrays, at = [], 0
    for name in sorted(tensors, key=lambda key: (-tensors[key].dtype.itemsize, key)):  # wide types first keep every tensor aligned
        dtype = tensors[name].dtype.newbyteorder("<")
        if dtype not in NAMES:
            raise TensorFileError(f"tensor {name!r} has dtype {tensors[name].dtype}, which safetensors does not hold; known: {', '.join(map(str, NAMES))}")
        array = np.asarray(tensors[name], dtype=dtype, order="C")
        header[name] = {"dtype": NAMES[dtype], "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        arrays.append(array)
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    try:
        _replace(Path(path), [len(text).to_bytes(8, "little"), text, *(array.tobytes() for array in arrays)])
    except OSError as error:
        raise TensorFileError(f"cannot write {path}: {error.strerror or error}; nothing was left there") from error


def _replace(path: Path, pieces: list[bytes]) -> None:
    staging = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with open(staging, "xb") as stream:
            stream.writelines(pieces)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    if len(data) < 8:
        raise TensorFileError(f"{len(data)} bytes, the length of the header alone takes 8")
    length = int.from_bytes(data[:8], "little")
    if length > min(MAXIMUM_HEADER_BYTES, len(data) - 8):
        raise TensorFileError(f"the header claims {length} bytes, {len(data) - 8} follow")
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"), object_pairs_hook=unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise TensorFileError(f"the header is not valid JSON ({str(error)[:200]})") from error
    if not isinstance(header, dict):
        raise TensorFileError("the header is not a table")
    return header, 8 + length


def _entry(name: str, entry: object, available: int) -> tuple[int, int, str, np.dtype[Any], list[int]]:
    """(begin, end, name, dtype, shape) of one tensor, with its own claims checked."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise TensorFileError(f"tensor {name!r} must have dtype, shape and data_offsets and nothing else")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise TensorFileError(f"tensor {name!r} has dtype {str(entry['dtype'])[:40]}; this reader knows {', '.join(DTYPES)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2 or len(shape) > 32:
        raise TensorFileError(f"tensor {name!r}: shape and data_offsets must be short lists of whole numbers, 0 or above")
    begin, end = offsets
    if not begin <= end <= available:
        raise TensorFileError(f"tensor {name!r} lies at bytes {begin} to {end} of {available}")
    too_wide = math.prod(size or 1 for size in shape) >= 1 << 58  # an empty tensor can still have axes that numpy refuses
    if math.prod(shape) * dtype.itemsize != end - begin or too_wide:
        raise TensorFileError(f"tensor {name!r}: shape {shape} of {entry['dtype']} does not take {end - begin} bytes")
    return begin, end, name, dtype, shape


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Hook for `json.loads` that refuses a table with a name twice: the readers of one file must not disagree.

    Raises:
        ValueError: a name stands there twice.
    """
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name stands there twice")
    return table


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON")
