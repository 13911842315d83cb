"""`csv:` and `tsv:` read one example a row; a broken row is reported with file and line."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path

from polyadapt.data.dataset import Dataset
from polyadapt.data.readers.card import TableOptions
from polyadapt.data.rows import Row, find_manifest, table_dataset, unique_columns
from polyadapt.errors import UserError

LONGEST = 2**31 - 1  # what the library takes on every platform


def read_csv(rest: str, options: TableOptions) -> Dataset:
    """Read a table with commas. Raises UserError for a broken row or column."""
    return _read(rest, "csv", ",", options)


def read_tsv(rest: str, options: TableOptions) -> Dataset:
    """Read a table with tabs. Raises UserError for a broken row or column."""
    return _read(rest, "tsv", "\t", options)


def _read(rest: str, scheme: str, delimiter: str, options: TableOptions) -> Dataset:
    manifest = find_manifest(rest, scheme)
    columns, rows = _rows(manifest, delimiter)
    return table_dataset(manifest, scheme, rows, columns, options)


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Fields of any length: a document, or a list of numbers, may be longer than the library's own limit, which is the whole process's."""
    before = csv.field_size_limit(LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _rows(manifest: Path, delimiter: str) -> tuple[list[str], list[Row]]:
    rows: list[Row] = []
    columns: list[str] = []
    line = 1
    with open(manifest, encoding="utf-8-sig", newline="") as stream, _long_fields():
        reader = csv.reader(stream, delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                if not columns:
                    columns = unique_columns(manifest, cells)
                elif cells:
                    if len(cells) != len(columns):
                        raise UserError(f"{manifest}:{line}: {len(cells)} fields, expected {len(columns)} ({', '.join(columns)}); quote fields that hold {delimiter!r}")
                    rows.append(Row(line, dict(zip(columns, cells, strict=True))))
                line = reader.line_num + 1
        except csv.Error as error:
            raise UserError(f"{manifest}:{line}: not a valid row ({error}); repair its quotes") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{manifest}:{line} or below: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    if not columns:
        raise UserError(f"{manifest} is empty; the first line has to name the columns")
    return columns, rows
