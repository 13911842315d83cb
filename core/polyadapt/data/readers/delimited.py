"""`csv:` and `tsv:` read one example a row; a broken row is reported with file and line."""

from __future__ import annotations

import csv
from pathlib import Path

from polyadapt.data.dataset import Dataset
from polyadapt.data.readers.card import TableOptions
from polyadapt.data.rows import Row, find_manifest, table_dataset, unique_columns
from polyadapt.errors import UserError


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


def _rows(manifest: Path, delimiter: str) -> tuple[list[str], list[Row]]:
    rows: list[Row] = []
    columns: list[str] = []
    line = 1
    with open(manifest, encoding="utf-8-sig", newline="") as stream:
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
