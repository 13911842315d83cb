"""Read CTranslate2 model files (`model.bin`) with numpy, every length checked against the file.

Layout, little endian: u32 version; string spec; u32 revision; u32 count; then for each variable: string name,
u8 rank, u32 sizes, u8 type, u32 bytes, data; then u32 aliases, pairs of strings. A string is a u16 length that
counts a closing zero byte. Source: the converter of CTranslate2, binary version 6.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyadapt.errors import UserError

_VERSION = 6
_TYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<i1"), 2: np.dtype("<i2"), 3: np.dtype("<i4"), 4: np.dtype("<f2")}
_MAXIMUM_RANK = 8


@dataclass(frozen=True)
class CTranslate2File:
    """What a file holds. Arrays are read-only views of the file's bytes."""

    spec: str
    revision: int
    variables: dict[str, NDArray[Any]]
    aliases: dict[str, str]


def read_ctranslate2(path: Path) -> CTranslate2File:
    """Read a model file.

    Args:
        path: a `model.bin` of binary version 6.

    Raises:
        UserError: the file is missing, truncated, of another version, or its lengths contradict each other.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    cursor = _Cursor(content, path)
    version = cursor.number("<I", "version")
    if version != _VERSION:
        raise UserError(f"{path} is not a CTranslate2 file of version {_VERSION}: it begins with version {version}; convert the model again")
    spec, revision = cursor.text("spec"), cursor.number("<I", "revision")
    variables: dict[str, NDArray[Any]] = {}
    for _ in range(cursor.number("<I", "number of variables")):
        name = cursor.text("name of a variable")
        if name in variables:
            raise cursor.broken(f"variable {name!r} occurs twice")
        variables[name] = cursor.variable(name)
    aliases = {}
    for _ in range(cursor.number("<I", "number of aliases")):
        alias = cursor.text("alias")
        aliases[alias] = cursor.text(f"target of alias {alias!r}")
    cursor.finish()
    for alias, target in aliases.items():
        if target not in variables:
            raise cursor.broken(f"alias {alias!r} points to {target!r}, which is not there")
    return CTranslate2File(spec, revision, variables, aliases)


class _Cursor:
    """A place in the bytes that never moves past their end."""

    def __init__(self, content: bytes, path: Path) -> None:
        self._content, self._path, self._at = content, path, 0

    def broken(self, what: str) -> UserError:
        return UserError(f"{self._path} is not a whole CTranslate2 file: {what}; fetch or copy it again")

    def take(self, count: int, what: str) -> memoryview:
        if count > len(self._content) - self._at:
            raise self.broken(f"it ends at byte {len(self._content)} within {what}, which needs {count} bytes from byte {self._at}")
        piece = memoryview(self._content)[self._at : self._at + count]
        self._at += count
        return piece

    def number(self, form: str, what: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form), what))[0])

    def text(self, what: str) -> str:
        raw = bytes(self.take(self.number("<H", what), what))
        if not raw.endswith(b"\0"):
            raise self.broken(f"{what} has no closing zero byte")
        try:
            return raw[:-1].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.broken(f"{what} is not UTF-8") from error

    def variable(self, name: str) -> NDArray[Any]:
        rank = self.number("<B", name)
        if rank > _MAXIMUM_RANK:
            raise self.broken(f"{name!r} has {rank} dimensions")
        shape = [self.number("<I", name) for _ in range(rank)]
        code = self.number("<B", name)
        if code not in _TYPES:
            raise self.broken(f"{name!r} has the unknown type {code}")
        size = self.number("<I", name)
        if size != prod(shape) * _TYPES[code].itemsize:
            raise self.broken(f"{name!r} of shape {shape} and type {_TYPES[code]} cannot take {size} bytes")
        return np.frombuffer(self.take(size, name), dtype=_TYPES[code]).reshape(shape)

    def finish(self) -> None:
        if self._at != len(self._content):
            raise self.broken(f"{len(self._content) - self._at} bytes are left over")
