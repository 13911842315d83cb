"""Rows of activations in memory or in a memory-mapped safetensors file that is written row by row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from polyadapt.errors import UserError
from polyadapt.files import replacing_file

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64"}
NAME = "activations"


class Rows(Protocol):
    """Activations by row."""

    def take(self, rows: Sequence[int]) -> torch.Tensor:
        """[rows, …] on the CPU, or wherever they are held."""


class RowsInMemory:
    """All rows as one tensor on the training device."""

    def __init__(self, values: torch.Tensor) -> None:
        self._values = values

    def take(self, rows: Sequence[int]) -> torch.Tensor:
        return self._values[torch.tensor(rows, device=self._values.device)]


class RowsOnDisk:
    """Rows of a file that `write_rows` wrote, read as they are needed."""

    def __init__(self, path: Path) -> None:
        header, offset = read_header(path)
        entry = header[NAME]
        self.dtype = next(dtype for dtype, code in _DTYPES.items() if code == entry["dtype"])
        self.shape: tuple[int, ...] = tuple(entry["shape"])
        width = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r", offset=offset, shape=(self.shape[0], width))

    def take(self, rows: Sequence[int]) -> torch.Tensor:
        picked = np.ascontiguousarray(self._bytes[np.asarray(rows)])  # (rows, bytes)
        return torch.from_numpy(picked).view(self.dtype).reshape(len(rows), *self.shape[1:])


def write_rows(path: Path, pieces: Iterable[torch.Tensor], rows: int, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Write [rows, *shape] as safetensors from consecutive pieces, never holding more than one of them.

    Raises:
        UserError: there is not enough room on the disk.
    """
    size = rows * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    path.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise UserError(f"cached activations need {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free in {path.parent}; free space, or set train.frozen_prefix = 'off'")
    entry = {"dtype": _DTYPES[dtype], "shape": [rows, *shape], "data_offsets": [0, size]}
    header = json.dumps({NAME: entry}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with replacing_file(path) as staging:
        with open(staging, "wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            for piece in pieces:
                stream.write(piece.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """(header, offset of the first value) of a safetensors file.

    Raises:
        UserError: it is cut off.
    """
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length)) if 0 < length < 1 << 20 else {}
    end = header.get(NAME, {}).get("data_offsets", [0, -1])[1]
    if path.stat().st_size != 8 + length + end:
        raise UserError(f"{path} is cut off or altered; remove it, it is computed again")
    return header, 8 + length
