"""Rows of a manifest (csv, tsv, jsonl) to examples: columns are checked before anything trains.

Columns play these parts: `path` (an image or audio file, relative to the manifest), `text` (the input, or what
goes with the file), `prompt` and `target` (a text and what should follow it, or numbers to be predicted), `label`.
Every other column, and one whose part this sort of table does not use, stays with the example under its own name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyadapt.data.dataset import Dataset, Example
from polyadapt.data.media import medium_of
from polyadapt.data.readers.card import TableOptions
from polyadapt.data.readers.recordings import prepared
from polyadapt.errors import UserError, nearest

PARTS = ("path", "text", "prompt", "target", "label")


@dataclass(frozen=True)
class Row:
    """One row of a manifest with the line where it starts."""

    line: int
    values: Mapping[str, Any]


def table_dataset(manifest: Path, scheme: str, rows: Sequence[Row], columns: Sequence[str], options: TableOptions) -> Dataset:
    """Turn rows into a data set.

    Args:
        manifest: the file; its folder is where relative paths start.
        scheme: of the reader, for the data set's name.
        rows: all rows.
        columns: names of the columns, in order.
        options: the reader's.

    Raises:
        UserError: a column or a value is missing, a file does not exist or does not open; with file and line.
    """
    if not rows:
        raise UserError(f"{manifest} has no rows below its header; add examples")
    table = _Table(manifest, _parts(manifest, columns, options), columns, options)
    examples = [table.example(row) for row in rows]
    media = table.media(examples)
    return Dataset(f"{scheme}:{manifest.name}", prepared(examples, options), media, options.labels or None)


def find_manifest(rest: str, scheme: str) -> Path:
    """The manifest that a URI names.

    Raises:
        UserError: it does not exist.
    """
    path = Path(rest).expanduser()
    if not rest or not path.is_file():
        beside = [entry.name for entry in path.parent.iterdir() if entry.is_file()] if path.parent.is_dir() else []
        raise UserError(f"{scheme}: no file {rest!r}{nearest(path.name, beside) if beside else ''}; give the path of a .{scheme} file")
    return path


def _parts(manifest: Path, columns: Sequence[str], options: TableOptions) -> dict[str, str]:
    """Which column plays which part: what the user named, then columns that bear a part's name."""
    for part, column in options.columns.items():
        if part not in PARTS:
            raise UserError(f"{manifest}: columns maps {part!r}, which is no part of an example{nearest(part, PARTS)}")
        if column not in columns:
            raise UserError(f"{manifest}:1: no column {column!r} (asked for as {part}){nearest(column, columns)}")
    for column in options.features:
        if column not in columns:
            raise UserError(f"{manifest}:1: no column {column!r} (asked for as a feature){nearest(column, columns)}")
    taken = set(options.columns.values()) | set(options.features)
    parts = dict(options.columns)
    for part in PARTS:
        if part not in parts and part in columns and part not in taken:
            parts[part] = part
    if not options.features and not {"path", "text", "prompt"} & set(parts):
        raise UserError(f'{manifest}:1: no column to learn from; expected path, text or prompt, found: {", ".join(columns)}; name it, as in columns = {{path = "file"}}')
    if "prompt" in _used_parts(parts, options) and "target" not in parts:
        raise UserError(f"{manifest}:1: a column prompt needs a column target with the text that should follow; found: {', '.join(columns)}")
    return parts


class _Table:
    """Reads one row after another with the same columns."""

    def __init__(self, manifest: Path, parts: Mapping[str, str], columns: Sequence[str], options: TableOptions) -> None:
        self.manifest, self.options = manifest, options
        used = _used_parts(parts, options)
        self.parts = {part: column for part, column in parts.items() if part in used}
        taken = {*self.parts.values(), *options.features}
        self.others = [column for column in columns if column not in taken]
        self.seen: set[str] = set()

    def example(self, row: Row) -> Example:
        """One checked example."""
        extra = {column: row.values.get(column) for column in self.others}
        text = self._text(row, "text") if "text" in self.parts else None
        label = self._label(row) if "label" in self.parts else None
        name = f"row {row.line}"
        raw: Path | str | np.ndarray
        if self.options.features:
            raw = np.concatenate([np.atleast_1d(self._number(row, column)) for column in self.options.features])  # (features,)
        elif "path" in self.parts:
            raw, name = self._file(row)
        elif "prompt" in self.parts:
            raw, text = self._text(row, "prompt"), self._text(row, "target")
        else:
            raw, text = text or "", None
        if "target" in self.parts and "prompt" not in self.parts:
            extra["target"] = self._target(row)
        return Example(name, raw, label, text, extra, f"{self.manifest.name}:{row.line}")

    def media(self, examples: Sequence[Example]) -> str:
        """The medium of the whole table; a mixture is refused."""
        if self.options.features:
            return "array"
        if "path" not in self.parts:
            return "text"
        first: dict[str, Example] = {}
        for example in examples:
            medium = None if example.file is None else medium_of(example.file)
            if medium not in ("image", "audio"):
                raise UserError(f"{self._at(example)}: {example.id!r} is neither an image nor an audio file by its name; supported: .png, .jpg, .wav, .flac, .ogg and their like")
            first.setdefault(medium, example)
        if len(first) > 1:
            one, two = first.values()
            raise UserError(f"{self.manifest} mixes images ({one.source}) and audio ({two.source}); one data set holds one medium, split the file")
        return next(iter(first))

    def _at(self, example: Example) -> str:
        return f"{self.manifest}:{example.source.rpartition(':')[2]}"

    def _value(self, row: Row, part: str) -> Any:
        column = self.parts[part]
        value = row.values.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise UserError(f"{self.manifest}:{row.line}: no {part} (column {column!r} is empty); fill it in or remove the row")
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise UserError(f"{self.manifest}:{row.line}: {part} (column {column!r}) holds half a character (a lone surrogate); repair or remove the row")
        return value

    def _text(self, row: Row, part: str) -> str:
        value = self._value(row, part)
        if not isinstance(value, str):
            raise UserError(f"{self.manifest}:{row.line}: {part} (column {self.parts[part]!r}) should be text, found {type(value).__name__} {value!r}")
        return value

    def _label(self, row: Row) -> str:
        value = self._value(row, "label")
        if isinstance(value, (list, dict)):
            raise UserError(f"{self.manifest}:{row.line}: label is {value!r}; several labels for one example are not supported, give one")
        label = str(value).strip()
        if self.options.labels and label not in self.options.labels:
            raise UserError(f"{self.manifest}:{row.line}: label {label!r} is not one of option labels{nearest(label, self.options.labels)}")
        return label

    def _file(self, row: Row) -> tuple[Path, str]:
        written = self._text(row, "path").strip()
        path = Path(written)
        found = path if path.is_absolute() else self.manifest.parent / path
        if not found.is_file():
            raise UserError(f"{self.manifest}:{row.line}: no file {written!r} (looked for {found}); paths start at the manifest's folder")
        name = path.name if path.is_absolute() else path.as_posix()
        if path.is_absolute() or name in self.seen:
            name = f"{name}#{row.line}"
        self.seen.add(name)
        return found, name

    def _target(self, row: Row) -> Any:
        """Numbers to be predicted; beside a file or a text it may be a text, which is kept as it stands."""
        column = self.parts["target"]
        value = row.values.get(column)
        return np.atleast_1d(self._number(row, column)) if self.options.features or _holds_numbers(value) else value

    def _number(self, row: Row, column: str) -> np.ndarray:
        value = row.values.get(column)
        try:
            number = np.asarray(value if isinstance(value, list) else float(value if value is not None else ""), dtype=np.float32)  # scalar or (n,)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{self.manifest}:{row.line}: column {column!r} should be a number, found {str(value)[:80]!r}") from error
        if not np.isfinite(number).all():
            raise UserError(f"{self.manifest}:{row.line}: column {column!r} is {value!r}, which is not a finite number")
        return number


def _used_parts(parts: Mapping[str, str], options: TableOptions) -> set[str]:
    """The parts that this sort of table has a place for; a target has one everywhere."""
    if options.features:
        return {"text", "target", "label"}
    if "path" in parts:
        return {"path", "text", "target", "label"}
    return {"prompt", "target", "label"} if "prompt" in parts else {"text", "target", "label"}


def _holds_numbers(value: Any) -> bool:
    try:
        return np.asarray(value if isinstance(value, list) else float(value), dtype=np.float32).size > 0
    except OverflowError:
        return True  # and one that is refused by name
    except (TypeError, ValueError):
        return False


def unique_columns(manifest: Path, columns: Iterable[str]) -> list[str]:
    """The columns of a header.

    Raises:
        UserError: one appears twice or has no name.
    """
    names = [column.strip() for column in columns]
    for name in names:
        if not name:
            raise UserError(f"{manifest}:1: a column has no name; found: {', '.join(names)}; name every column in the first line")
        if names.count(name) > 1:
            raise UserError(f"{manifest}:1: column {name!r} appears {names.count(name)} times; rename all but one")
    return names
