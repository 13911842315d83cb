"""Examples, data sets and opening them by URI."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import polyadapt as pa
from polyadapt.data.card import ReaderCard
from polyadapt.data.dataset import Dataset, Example, natural_key, open_data
from polyadapt.data.readers.card import CARDS
from polyadapt.errors import PluginError, UserError
from polyadapt.host import Host
from polyadapt.options import Options

READERS = {card.scheme: card for card in CARDS}


def make(count: int = 6) -> Dataset:
    rows = [Example(f"e{row}", np.full((2, 2), row, np.uint8), f"class {row % 3 * 10}", source=f"x.csv:{row + 2}") for row in range(count)]
    return Dataset("made", rows, "image")


def test_labels_come_in_natural_order_and_targets_follow_them() -> None:
    dataset = make()
    assert dataset.labels == ("class 0", "class 10", "class 20")
    assert dataset.targets().tolist() == [0, 1, 2, 0, 1, 2]
    assert sorted(["b10", "b9", "a"], key=natural_key) == ["a", "b9", "b10"]


def test_subset_keeps_labels_and_slices_are_datasets() -> None:
    dataset = make()
    part = dataset.subset([4, 0])
    assert [example.id for example in part] == ["e4", "e0"]
    assert part.labels == dataset.labels
    assert [example.id for example in dataset[1:3]] == ["e1", "e2"]
    chosen = dataset.of_labels(["class 20", "class 0"])
    assert chosen.labels == ("class 20", "class 0")
    assert chosen.targets().tolist() == [1, 0, 1, 0]


def test_hash_follows_content_and_not_places(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.bin").write_bytes(b"same bytes")

    def dataset(path: Path, label: str = "cat", name: str = "x") -> Dataset:
        return Dataset("d", [Example(name, path, label), Example("y", "text", "dog")], "text", ["cat", "dog"])

    first = dataset(tmp_path / "a" / "x.bin")
    assert first.hash == dataset(tmp_path / "b" / "x.bin").hash
    assert first.hash != dataset(tmp_path / "a" / "x.bin", label="dog").hash
    assert first.hash != dataset(tmp_path / "a" / "x.bin", name="z").hash
    (tmp_path / "b" / "x.bin").write_bytes(b"Same bytes")
    assert first.hash != dataset(tmp_path / "b" / "x.bin").hash
    assert first.subset([1, 0]).hash != first.hash
    assert first.subset([0, 1]).hash == first.hash


def test_hash_sees_arrays_and_extra_columns() -> None:
    def hash_of(raw: np.ndarray, **extra: object) -> str:
        return Dataset("d", [Example("x", raw, None, None, extra)], "array").hash

    ones = np.ones((2, 3), np.float32)
    assert hash_of(ones) == hash_of(ones.copy())
    assert hash_of(ones) != hash_of(ones.reshape(3, 2))
    assert hash_of(ones) != hash_of(ones.astype(np.float64))
    assert hash_of(ones, target=np.array([1.0])) != hash_of(ones, target=np.array([2.0]))


def test_targets_name_the_row_without_a_label() -> None:
    dataset = Dataset("d", [Example("a", "x", "cat"), Example("b", "y", source="rows.csv:7")], "text")
    assert not dataset.is_labelled
    with pytest.raises(UserError, match=r"rows\.csv:7: this row has no label"):
        dataset.targets()
    with pytest.raises(UserError, match=r"rows\.csv:7: no target numbers"):
        _ = dataset[1].target


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        ([], None, "is empty"),
        ([Example("a", "x", source="f:1"), Example("a", "y", source="f:2")], None, r"two examples have the id 'a' \(f:1 and f:2\)"),
        ([Example("a", "x", "catt", source="f:1")], ["cat"], r"f:1: label 'catt' is not one of this data set's; did you mean 'cat'\?"),
    ],
)
def test_what_is_no_data_set_is_refused(rows: list[Example], labels: list[str] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Dataset("d", rows, "text", labels)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("foldr:x", "unknown data scheme 'foldr'; did you mean 'folder'"),
        ("birds.csv", "has no scheme; write for instance 'csv:birds.csv'"),
        ("birds", "has no scheme; write for instance 'folder:birds'"),
        ("birds?media=image", "has no scheme; write for instance 'folder:birds?media=image'"),
        ("folder:birds?medja=image", "reader 'folder' has no option 'medja'; did you mean 'media'"),
        ("folder:birds?media=image&media=text", "data 'folder:birds' gives option 'media' twice; keep one"),
        ("folder:birds?media=image&text", "data 'folder:birds': 'text' is not an option; write ?key=value"),
        ("data:sonic-pie", "unknown data set 'data:sonic-pie'; did you mean 'data:sonic-pi'"),
        ("sklearn:digit", "unknown scikit-learn data set 'digit'; did you mean 'digits'"),
    ],
)
def test_unknown_uris_get_the_nearest_name(uri: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        open_data(uri, READERS)
    with pytest.raises(UserError, match=re.escape(message)):
        Host().open_dataset(uri)


def test_options_stand_behind_a_uri_or_are_given(tmp_path: Path) -> None:
    """As for models; a file's own question mark stays with it."""
    for name in ("rows.csv", "what?.csv"):
        (tmp_path / name).write_text("a,b,label\n1,2,x\n3,4,y\n", encoding="utf-8")
    behind = pa.open_dataset(f"csv:{tmp_path}/rows.csv?features=b,a")
    assert [row.raw.tolist() for row in behind] == [[2.0, 1.0], [4.0, 3.0]]
    assert [row.raw.tolist() for row in pa.open_dataset(f"csv:{tmp_path}/rows.csv?features=b,a", features=["a"])] == [[1.0], [3.0]]
    assert len(pa.open_dataset(f"csv:{tmp_path}/what?.csv", features=["a"])) == 2
    assert len(pa.open_dataset(f"csv:{tmp_path}/what?.csv?features=a%2Cb")) == 2
    assert pa.open_dataset(behind) is behind


def test_a_path_that_is_too_long_for_a_file_is_one_short_line() -> None:
    for scheme in ("csv", "folder"):
        with pytest.raises(UserError, match=r"reading '\w+:x+': File name too long; check the path") as refusal:
            Host().open_dataset(f"{scheme}:" + "x" * 400)
        assert len(str(refusal.value)) < 200 and "\n" not in str(refusal.value)


def test_options_of_readers_are_checked_by_name() -> None:
    with pytest.raises(UserError, match=r"reader 'folder' has no option 'medja'; did you mean 'media'\?"):
        open_data("folder:x", READERS, {"medja": "image"})


def test_a_card_that_names_nothing_is_the_plugins_fault() -> None:
    card = ReaderCard("x", "x", (), Options, "polyadapt.data.readers.folder:nothing")
    with pytest.raises(PluginError, match="reader 'x' names 'polyadapt.data.readers.folder:nothing'"):
        open_data("x:y", {"x": card})
    wrong = ReaderCard("x", "x", (), Options, "operator:eq")
    with pytest.raises(PluginError, match="reader 'x' returned bool, expected a Dataset"):
        open_data("x:y", {"x": wrong})


def test_cards_import_nothing_heavy() -> None:
    code = "import sys, polyadapt.data.readers.card; sys.exit(', '.join({'torch', 'numpy', 'transformers', 'sklearn', 'PIL'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_card_names_a_reader() -> None:
    from importlib import import_module

    for card in CARDS:
        module, _, name = card.implementation.partition(":")
        assert callable(getattr(import_module(module), name)), card.scheme
    assert len(READERS) == len(CARDS)


def test_a_moved_folder_keeps_its_hash(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "one" / label).mkdir(parents=True)
        (tmp_path / "one" / label / "x.txt").write_text(f"text of {label}")
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere" / "two")
    first, second = open_data(f"folder:{tmp_path}/one", READERS), open_data(f"folder:{tmp_path}/elsewhere/two", READERS)
    assert first.hash == second.hash
    assert str(tmp_path) not in repr([(example.id, example.source) for example in first])
