"""Seeded damage to bundles and to folders of artifacts: bytes, JSON fields, headers, protobuf fields, paths and links.

Every function takes a `random.Random`; equal seeds do equal damage. `mutate` is the only entry.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from polyadapt_runtime.seal import sealed

NUMBERS = (0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64, 1e308, -0.0, 0.5)
NAMES = ("", ".", "..", "../canary/secret.bin", "/etc/hostname", "a\\b", "C:/a", "a\0b", "*/_ORT_MEM_ADDR_/*", "model.ort", "\ud800", "é", "x" * 5000, "onnx/model.onnx", "head")
FLAT: tuple[Any, ...] = (None, True, [], {}, [[]], [{}], {"": None}, [1, "a", None], *NUMBERS, *NAMES)

WEIGHTS = {".onnx": 6, ".json": 2}  # a bundle has many small files and one graph


def mutate(root: Path, generator: random.Random, canary: Path, reseals: bool) -> str:
    """Damage one folder; returns what was done, in words.

    Args:
        root: a copy that may be damaged.
        generator: decides everything.
        canary: a file outside of `root` that links and paths try to reach.
        reseals: whether digests and sizes are written anew, as an attacker does.
    """
    told = []
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        files = sorted(path for path in root.rglob("*") if path.is_file() and is_own(path, root))
        weights = [WEIGHTS.get(path.suffix, 1) for path in files]
        if not files:
            break
        path = generator.choices(files, weights)[0]
        done = generator.choice(_choices(path))(path, generator, canary)
        told.append(f"{path.relative_to(root)}: {done}")
    if reseals:
        reseal(root)
    return "; ".join(told) + (" (digests written anew)" if reseals else "")


def is_own(path: Path, root: Path) -> bool:
    """Whether writing to a file of the damaged folder changes nothing outside."""
    return path.resolve() == root.resolve() / path.relative_to(root) and path.lstat().st_nlink == 1


def reseal(root: Path) -> None:
    """Write the digests of what lies there, as far as what is left of the JSON allows."""
    for name in ("manifest.json", "artifact.json"):
        path = root / name
        try:
            table = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and not path.is_symlink() else None
        except (ValueError, RecursionError):
            table = None
        if not isinstance(table, dict):
            continue
        if name == "artifact.json" and (root / "artifact.safetensors").is_file():
            table["sha256"] = _digest(root / "artifact.safetensors")
        elif name == "manifest.json":
            listed = [other for other in sorted(root.rglob("*")) if other.is_file() and other != path]
            table["files"] = {other.relative_to(root).as_posix(): {"sha256": _digest(other), "size": other.stat().st_size} for other in listed}
        with contextlib.suppress(UnicodeEncodeError):  # half a character in a string: no manifest can be written of it
            path.write_text(sealed(table) if name == "manifest.json" else json.dumps(table), encoding="utf-8")


def _digest(path: Path) -> str:
    return "0" * 64 if path.stat().st_size > 1 << 26 else hashlib.sha256(path.read_bytes()).hexdigest()


Damage = Callable[[Path, random.Random, Path], str]


def _choices(path: Path) -> list[Damage]:
    """What can be done to a file; what knows its format more often than the rest."""
    common: list[Damage] = [damage_bytes, damage_bytes, damage_tree]
    if path.suffix == ".json":
        return [*common, *[damage_json] * 6]
    if path.suffix == ".safetensors":
        return [*common, *[damage_safetensors] * 6]
    if path.suffix == ".onnx":
        return [*common, *[damage_protobuf] * 9]
    return common


def damage_bytes(path: Path, generator: random.Random, canary: Path) -> str:
    """Flip, overwrite, cut, put in, or repeat."""
    data = bytearray(path.read_bytes())
    done = damaged(data, generator)
    path.write_bytes(data)
    return done


def damaged(data: bytearray, generator: random.Random) -> str:
    """Change bytes in place."""
    at = generator.randrange(len(data) + 1)
    end = min(len(data), at + generator.choice((1, 2, 8, 100)))
    match generator.choice(("flip", "flip", "overwrite", "cut", "truncate", "insert", "repeat", "append")):
        case "flip" if at < len(data):
            data[at] ^= 1 << generator.randrange(8)
            return f"bit flipped at {at}"
        case "overwrite":
            data[at:end] = generator.choice((b"\0", b"\xff", b"\x80", b"\x7f")) * (end - at)
        case "cut":
            del data[at:end]
        case "truncate":
            del data[at:]
        case "repeat":
            data[at:at] = data[at:end]
        case "append":
            data += generator.randbytes(generator.choice((1, 8, 4096)))
        case _:
            data[at:at] = generator.randbytes(generator.choice((1, 4, 8)))
    return f"bytes changed at {at}"


def damage_json(path: Path, generator: random.Random, canary: Path) -> str:
    """Change one value of a document, or break the text around it."""
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    kind = generator.randrange(20)
    if kind == 0:
        text = generator.choice(("[" * 100_000, '{"a":' * 100_000, "9" * 5000, "null", "", "\ufeff" + text, text.replace("{", '{"format": 1, ', 1)))
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        return "another document"
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return damage_bytes(path, generator, canary)
    document, where = changed_document(document, generator)
    path.write_text(json.dumps(document), encoding="utf-8")
    return where


def changed_document(document: Any, generator: random.Random) -> tuple[Any, str]:
    """A document with one value replaced, removed, renamed or put elsewhere."""
    holder, trail = document, ""
    while isinstance(holder, dict | list) and holder:
        key = generator.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        inner = holder[key]
        trail += f"/{key}"
        if isinstance(inner, dict | list) and inner and generator.random() < 0.85:
            holder = inner
            continue
        match generator.randrange(5):
            case 0:
                del holder[key]
                return document, f"{trail} removed"
            case 1 if isinstance(holder, dict):
                holder[generator.choice(NAMES)] = holder.pop(key)
                return document, f"{trail} renamed"
            case 2:
                holder[key] = [inner] * generator.choice((0, 2, 40))
            case _:
                holder[key] = generator.choice(FLAT)
        return document, f"{trail} = {str(holder[key])[:40]!r}"
    return generator.choice(FLAT), "the whole document"


def damage_safetensors(path: Path, generator: random.Random, canary: Path) -> str:
    """Another length of the header, or another header over the same data."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    if generator.random() < 0.2:
        length = generator.choice((0, 1, length - 1, length + 1, len(data), 2**32, 2**63, 2**64 - 1)) % 2**64
        path.write_bytes(length.to_bytes(8, "little") + data[8:])
        return f"header of {length} bytes"
    try:
        header, where = changed_document(json.loads(data[8 : 8 + length]), generator)
    except (ValueError, RecursionError):
        return damage_bytes(path, generator, canary)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    return f"header {where}"


def damage_protobuf(path: Path, generator: random.Random, canary: Path) -> str:
    """Change one field somewhere in the tree of messages and write the lengths around it anew."""
    data, done = changed_message(path.read_bytes(), generator, 0)
    path.write_bytes(data)
    return done


def changed_message(data: bytes, generator: random.Random, depth: int) -> tuple[bytes, str]:
    """A message with one field changed; where the bytes are none, with its bytes changed."""
    fields = read_fields(data)
    if not fields or depth > 12:
        raw = bytearray(data)
        return (generator.choice(NAMES).encode("utf-8", "replace"), "text replaced") if generator.random() < 0.5 else (bytes(raw), damaged(raw, generator))
    index = generator.randrange(len(fields))
    tag, value = fields[index]
    if isinstance(value, bytes) and generator.random() < 0.9:
        inner, done = changed_message(value, generator, depth + 1)
        fields[index] = (tag, inner)
    elif generator.random() < 0.2:
        fields.insert(index, fields[generator.randrange(len(fields))])
        done = "field repeated"
    elif generator.random() < 0.3:
        del fields[index]
        done = "field removed"
    elif isinstance(value, int):
        fields[index] = (tag, generator.choice([int(number) % 2**64 for number in NUMBERS if number < 1e300] + [value + 1]))
        done = "number replaced"
    else:
        fields[index] = (generator.choice((tag ^ 8, tag + 8, tag | 1 << 35)), value)
        done = "tag replaced"
    return b"".join(written(tag, value) for tag, value in fields), f"field {tag >> 3}, {done}"


def read_fields(data: bytes) -> list[tuple[int, int | bytes]] | None:
    """(tag, number or bytes) of a message whose fields fill it exactly; None for other bytes."""
    at, fields = 0, list[tuple[int, int | bytes]]()
    while at < len(data):
        tag, at = _varint(data, at)
        if tag == 0 or tag >> 3 == 0 or at > len(data):
            return None
        size = {1: 8, 5: 4}.get(tag & 7, 0)
        if tag & 7 == 0:
            number, at = _varint(data, at)
            fields.append((tag, number))
            continue
        if tag & 7 == 2:
            size, at = _varint(data, at)
        if tag & 7 not in (1, 2, 5) or at + size > len(data):
            return None
        fields.append((tag, data[at : at + size]))
        at += size
    return fields if at == len(data) else None


def written(tag: int, value: int | bytes) -> bytes:
    """A field as bytes."""
    if isinstance(value, int):
        return _encoded(tag) + _encoded(value)
    return _encoded(tag) + (_encoded(len(value)) if tag & 7 == 2 else b"") + value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at
    return 0, len(data) + 1


def _encoded(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def damage_tree(path: Path, generator: random.Random, canary: Path) -> str:
    """Links, pipes, folders, and files that are too many, too few or somewhere else."""
    kind = generator.choice(("symlink", "hard link", "linked folder", "pipe", "folder", "removed", "renamed", "added", "empty", "sparse"))
    if kind == "added":
        path.with_name(generator.choice(("extra.bin", ".hidden", "signature.json", "manifest.json"))).write_bytes(b"x")
        return kind
    if kind == "linked folder":
        folder = path.parent / "linked"
        if not folder.exists():
            folder.symlink_to(canary.parent, target_is_directory=True)
        return kind
    if kind == "sparse":
        os.truncate(path, 1 << 26)
        return kind
    if kind == "renamed":
        path.rename(path.with_name(f"{path.name}.moved"))
        return kind
    path.unlink()
    match kind:
        case "symlink":
            path.symlink_to(canary)
        case "hard link":
            os.link(canary, path)
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "empty":
            path.touch()
    return kind


def copy(source: Path, target: Path) -> Path:
    """A fresh copy in place of an older one."""
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target))
