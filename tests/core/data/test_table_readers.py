"""`csv:`, `tsv:` and `jsonl:`: what is broken is named by file and line before anything trains."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polyadapt.data.dataset import Dataset, open_data
from polyadapt.data.readers.card import CARDS
from polyadapt.errors import UserError

READERS = {card.scheme: card for card in CARDS}


def read(path: Path, **options: Any) -> Dataset:
    return open_data(f"{path.suffix[1:]}:{path}", READERS, options)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for name in ("a", "b"):
        Image.fromarray(np.full((4, 5, 3), ord(name), np.uint8)).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path


def test_csv_paths_start_at_the_manifest(pictures: Path) -> None:
    dataset = read(write(pictures / "m.csv", 'path,label,who\npictures/a.png,cat,"Ann, B."\npictures/b.png,dog,Bo\n'))
    assert dataset.media == "image"
    assert dataset.labels == ("cat", "dog")
    assert dataset[0].raw == pictures / "pictures/a.png"
    assert dataset[0].id == "pictures/a.png"
    assert dataset[0].extra == {"who": "Ann, B."}
    assert dataset[1].source == "m.csv:3"


def test_columns_may_have_other_names_and_tabs(tmp_path: Path) -> None:
    path = write(tmp_path / "m.tsv", "sentence\tsort\nhello, you\tgreeting\nbye\tparting\n")
    dataset = read(path, columns={"text": "sentence", "label": "sort"})
    assert [(example.raw, example.label) for example in dataset] == [("hello, you", "greeting"), ("bye", "parting")]
    assert dataset.media == "text"


def test_jsonl_of_prompts_and_targets(tmp_path: Path) -> None:
    rows = [{"prompt": "1 + 1 =", "target": " 2", "from": "a"}, {"prompt": "1 + 2 =", "target": " 3", "from": "b"}]
    dataset = read(write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n"))
    assert (dataset[1].raw, dataset[1].text, dataset[1].label, dataset[1].extra) == ("1 + 2 =", " 3", None, {"from": "b"})


def test_numbers_make_vectors_with_targets(tmp_path: Path) -> None:
    dataset = read(write(tmp_path / "m.csv", "x1,x2,target\n1,2.5,3\n-1,0,4\n"), features=["x2", "x1"])
    assert dataset.media == "array"
    np.testing.assert_array_equal(np.asarray(dataset[0].raw), np.array([2.5, 1], np.float32))
    np.testing.assert_array_equal(dataset[1].target, np.array([4], np.float32))
    rows = read(write(tmp_path / "m.jsonl", '{"x": [1, 2], "y": 3, "target": [0, 1]}\n'), features=["x", "y"])
    np.testing.assert_array_equal(np.asarray(rows[0].raw), np.array([1, 2, 3], np.float32))
    np.testing.assert_array_equal(rows[0].target, np.array([0, 1], np.float32))


def test_a_target_beside_a_file_or_a_text_is_kept(pictures: Path) -> None:
    """Numbers are there to be predicted, under the name that `Example.target` looks for; anything else stays as it stands."""
    dataset = read(write(pictures / "m.csv", "path,angle,prompt\npictures/a.png,0.5,turn\npictures/b.png,-2,stay\n"), columns={"target": "angle"})
    np.testing.assert_array_equal(dataset[1].target, np.array([-2], np.float32))
    assert (dataset[0].raw, dataset[0].extra["prompt"]) == (pictures / "pictures/a.png", "turn")
    spoken = read(write(pictures / "n.jsonl", '{"path": "pictures/a.png", "text": "a", "target": "ein A"}\n{"path": "pictures/b.png", "text": "b", "target": [1, 2]}\n'))
    assert (spoken[0].text, spoken[0].extra) == ("a", {"target": "ein A"})
    np.testing.assert_array_equal(spoken[1].target, np.array([1, 2], np.float32))
    texts = read(write(pictures / "o.csv", "text,target\ngood,4.5\nbad,\n"))
    assert texts[0].target.tolist() == [4.5] and texts[1].extra == {"target": ""}


def test_columns_without_a_part_in_this_sort_of_table_are_kept(tmp_path: Path) -> None:
    asked = read(write(tmp_path / "m.csv", "prompt,target,text\n1 + 1 =, 2,sum\n1 + 2 =, 3,\n"))
    assert [(row.raw, row.text, row.extra["text"]) for row in asked] == [("1 + 1 =", " 2", "sum"), ("1 + 2 =", " 3", "")]
    measured = read(write(tmp_path / "n.csv", "x,path,target\n1,a.png,3\n"), features=["x"])
    assert measured[0].extra["path"] == "a.png" and measured[0].target.tolist() == [3]


def test_one_file_may_stand_in_several_rows(pictures: Path) -> None:
    dataset = read(write(pictures / "m.csv", "path,text\npictures/a.png,a cat\npictures/a.png,an animal\n"))
    assert [example.id for example in dataset] == ["pictures/a.png", "pictures/a.png#3"]
    assert dataset[1].text == "an animal"


def test_an_absolute_path_stays_out_of_ids(pictures: Path) -> None:
    dataset = read(write(pictures / "m.csv", f"path,label\n{pictures}/pictures/a.png,cat\n"))
    assert dataset[0].id == "a.png#2"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("text,label\na,b\nc\n", 3, r"1 fields, expected 2 \(text, label\)"),
        ('text,label\n"two\nlines",b\nc,d,e\n', 4, "3 fields, expected 2"),
        ("text,label\na,b\nc,\n", 3, r"no label \(column 'label' is empty\)"),
        ("text,label\n,b\n", 2, r"no text \(column 'text' is empty\)"),
        ('text,label\na,b\n"c,d\n', 3, "not a valid row"),
        ("text,text\na,b\n", 1, "column 'text' appears 2 times"),
        ("words,label\na,b\n", 1, "no column to learn from; expected path, text or prompt, found: words, label"),
        ("path,label\nmissing.png,b\n", 2, "no file 'missing.png'"),
        ("prompt,label\na,b\n", 1, "a column prompt needs a column target"),
    ],
)
def test_broken_csv_is_named_by_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = write(tmp_path / "m.csv", text)
    with pytest.raises(UserError, match=rf"m\.csv:{line}: .*{message}"):
        read(path)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ('{"text": "a"}\n{"text": \n', 2, "not valid JSON"),
        pytest.param('{"text": "a"}\n{"text": ' + "[" * 100_000 + "\n", 2, "not valid JSON", id="brackets without end"),
        pytest.param('{"text": "a"}\n{"text": "b", "target": ' + "9" * 5_000 + "}\n", 2, "not valid JSON", id="a number without end"),
        pytest.param('{"text": "a", "target": 1}\n{"text": "b", "target": ' + "9" * 400 + "}\n", 2, "column 'target' should be a number", id="a number beyond all floats"),
        ('{"text": "a"}\n{"text": "\\ud83d"}\n', 2, "holds half a character"),
        ('{"text": "a"}\n[1]\n', 2, "expected an object"),
        ('{"text": "a", "label": "x"}\n\n{"text": "b"}\n', 3, "no label"),
        ('{"text": 5}\n', 1, "text .* should be text, found int"),
        ('{"text": "a", "label": ["x", "y"]}\n', 1, "several labels for one example are not supported"),
    ],
)
def test_broken_jsonl_is_named_by_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = write(tmp_path / "m.jsonl", text)
    with pytest.raises(UserError, match=rf"m\.jsonl:{line}: .*{message}"):
        read(path)


def test_numbers_of_labels_are_names_too(tmp_path: Path) -> None:
    dataset = read(write(tmp_path / "m.jsonl", '{"text": "a", "label": 0}\n{"text": "b", "label": false}\n'))
    assert [example.label for example in dataset] == ["0", "False"]


def test_fields_may_be_longer_than_the_library_s_limit(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    assert len(read(write(tmp_path / "m.csv", "text,label\n" + "a" * (before + 1) + ",x\n"))[0].raw) == before + 1
    assert csv.field_size_limit() == before


def test_wrong_options_get_the_nearest_name(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "sentence,label\na,cat\n")
    with pytest.raises(UserError, match=r"m\.csv:1: no column 'sentense' \(asked for as text\); did you mean 'sentence'"):
        read(path, columns={"text": "sentense"})
    with pytest.raises(UserError, match="columns maps 'labels', which is no part of an example; did you mean 'label'"):
        read(path, columns={"text": "sentence", "labels": "label"})
    with pytest.raises(UserError, match=r"m\.csv:2: label 'cat' is not one of option labels; did you mean 'cats'"):
        read(path, columns={"text": "sentence"}, labels=["cats", "dog"])
    with pytest.raises(UserError, match=r"csv: no file .*; did you mean 'm\.csv'"):
        open_data(f"csv:{tmp_path}/n.csv", READERS)


@pytest.mark.parametrize(("name", "text"), [("m.csv", ""), ("m.csv", "text,label\n"), ("m.jsonl", "\n")])
def test_empty_files_are_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(UserError, match="is empty|no rows"):
        read(write(tmp_path / name, text))


def test_bytes_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes("text,label\ncafé,x\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read(tmp_path / "m.csv")
    (tmp_path / "m.csv").write_bytes("text,label\ncafé,x\n".encode("utf-8-sig"))
    assert read(tmp_path / "m.csv")[0].raw == "café"


def test_a_broken_picture_is_found_before_training(pictures: Path) -> None:
    whole = (pictures / "pictures" / "b.png").read_bytes()
    (pictures / "pictures" / "b.png").write_bytes(whole[:-30])
    path = write(pictures / "m.csv", "path,label\npictures/a.png,x\npictures/b.png,y\n")
    with pytest.raises(UserError, match=r"cannot open .*b\.png \(m\.csv:3: not a whole image"):
        read(path)
    assert len(read(path, check_files=False)) == 2


def test_pictures_and_audio_do_not_mix(pictures: Path) -> None:
    (pictures / "c.wav").write_bytes(b"")
    path = write(pictures / "m.csv", "path,label\npictures/a.png,x\nc.wav,y\n")
    with pytest.raises(UserError, match=r"mixes images \(m\.csv:2\) and audio \(m\.csv:3\)"):
        read(path)
    (pictures / "c.xyz").write_bytes(b"")
    with pytest.raises(UserError, match=r"n\.csv:2: 'c\.xyz' is neither an image nor an audio file"):
        read(write(pictures / "n.csv", "path,label\nc.xyz,x\n"))
