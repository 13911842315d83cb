"""What a half-finished table of the matrix may be taken up by."""

from __future__ import annotations

from pathlib import Path

from polyadapt.testing.matrix import Cell, State


def test_a_table_of_some_methods_is_no_table_of_all(tmp_path: Path) -> None:
    cell = Cell("vit", "features", "lora", "slots", "passed")
    some = State(tmp_path / "partial", ["lora"])
    some.load()
    some.add([cell])
    assert State(tmp_path / "partial", ["lora"]).load() == {("vit", "features"): [cell]}
    assert State(tmp_path / "partial").load() == {}
