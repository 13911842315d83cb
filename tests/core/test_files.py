"""Folders that take another's place: whole or not at all, and never over somebody else's files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polyadapt.errors import UserError
from polyadapt.files import WriteError, read_json, replacing_directory

MARK = "artifact.json"


def write(target: Path, text: str) -> None:
    with replacing_directory(target, MARK) as staging:
        (staging / MARK).write_text(text, encoding="utf-8")


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_of_ours_is_replaced_and_an_empty_folder_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for text in ("first", "second"):
        write(tmp_path / "out", text)
        assert (tmp_path / "out" / MARK).read_text(encoding="utf-8") == text and listed(tmp_path) == ["out"]


def test_other_files_are_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, file = tmp_path / "papers", tmp_path / "notes.txt"
    folder.mkdir()
    for path in (folder / "thesis.txt", file):
        path.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"papers: it holds other files and no artifact.json.*choose another directory"):
        write(folder, "x")
    with pytest.raises(UserError, match="notes.txt: it is a file; choose another"):
        write(file, "x")
    write(tmp_path / "here", "x")
    monkeypatch.chdir(tmp_path / "here")
    for place in (".", ".."):
        with pytest.raises(UserError, match="it is the current directory, or lies above it"):
            write(Path(place), "y")
    assert listed(tmp_path) == ["here", "notes.txt", "papers"] and (folder / "thesis.txt").read_text(encoding="utf-8") == file.read_text(encoding="utf-8") == "mine"


def test_a_link_stays_and_leads_to_what_is_new(tmp_path: Path) -> None:
    write(tmp_path / "real", "first")
    (tmp_path / "link").symlink_to("real", target_is_directory=True)
    for text in ("second", "third"):
        write(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / MARK).read_text(encoding="utf-8") == text
    assert listed(tmp_path) == ["link", "real"]


def test_what_was_there_is_put_back_where_the_new_one_cannot_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows answers where a file of the folder is open."""
    write(tmp_path / "out", "first")
    rename = Path.rename

    def refuses(path: Path, target: str | os.PathLike[str]) -> Path:
        if path.name.endswith(".partial"):
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuses)
    with pytest.raises(WriteError, match="cannot write .*out: Permission denied"):
        write(tmp_path / "out", "second")
    assert listed(tmp_path) == ["out"] and (tmp_path / "out" / MARK).read_text(encoding="utf-8") == "first"


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5_000, "{", b"\xff"], ids=("brackets without end", "a number without end", "cut off", "no text"))
def test_a_file_that_is_no_json_is_named(text: str | bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"envelope: .*x.json is not valid JSON"):
        read_json(tmp_path / "x.json", "envelope")
