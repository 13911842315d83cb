"""`jsonl:` reads one JSON object a line; a broken line is reported with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from polyadapt.data.dataset import Dataset
from polyadapt.data.readers.card import TableOptions
from polyadapt.data.rows import Row, find_manifest, table_dataset
from polyadapt.errors import UserError


def read(rest: str, options: TableOptions) -> Dataset:
    """Read a file of JSON objects.

    Raises:
        UserError: a line is no object, or a column or value is missing.
    """
    manifest = find_manifest(rest, "jsonl")
    rows: list[Row] = []
    columns: dict[str, None] = {}
    with open(manifest, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                values = _object(manifest, number, line)
                rows.append(Row(number, values))
                columns.update(dict.fromkeys(values))
    if not rows:
        raise UserError(f"{manifest} is empty; write one JSON object a line")
    return table_dataset(manifest, "jsonl", rows, list(columns), options)


def _object(manifest: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        values = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except (ValueError, RecursionError) as error:  # also of bytes that are no text, of numbers without end and of brackets without end
        raise UserError(f"{manifest}:{number}: not valid JSON ({error}); repair or remove the line") from error
    if not isinstance(values, dict):
        raise UserError(f'{manifest}:{number}: expected an object like {{"path": …}}, found {type(values).__name__}')
    return values
