"""Parts of reports: previews, choice of examples, numbers, charts, paths."""

from __future__ import annotations

import base64
import io
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyadapt.data.dataset import Dataset, Example
from polyadapt.evaluation.evaluation import Evaluation
from polyadapt.evaluation.interval import Interval
from polyadapt.evaluation.prediction import Prediction
from polyadapt.report import charts, examples, figures
from polyadapt.report.html import Html, join, table, tag
from polyadapt.report.mistakes import commonest
from polyadapt.report.privacy import public, public_text


def evaluation(rights: list[bool], dataset: Dataset) -> Evaluation:
    rows = tuple(Prediction(row.id, "x", "x" if right else "y") for row, right in zip(dataset, rights, strict=True))
    return Evaluation("accuracy", 0.5, Interval(0.4, 0.6), len(rows), rows)


def test_examples_show_where_arms_differ_then_failures_then_successes() -> None:
    dataset = Dataset("d", [Example(str(row), f"text {row}", "x") for row in range(100)], "text")
    first = [row % 10 != 0 for row in range(100)]
    second = [row % 10 not in (0, 1) for row in range(100)]
    shown = examples.pick_examples(dataset, {"a": evaluation(first, dataset), "b": evaluation(second, dataset)}, limit=12)
    kinds = [sum(bool(answer["is_correct"]) for answer in row.answers.values()) for row in shown]
    assert kinds == [1] * 6 + [0] * 3 + [2] * 3
    assert len({row.id for row in shown}) == 12
    assert shown[0].text == f"text {shown[0].id}" and shown[0].truth == "x"
    everything = examples.pick_examples(dataset.subset(range(3)), {"a": evaluation([True] * 3, dataset.subset(range(3)))}, limit=12)
    assert [row.id for row in everything] == ["0", "1", "2"]
    assert examples.pick_examples(dataset, {}) == []


def test_numbers_are_neither_right_nor_wrong() -> None:
    dataset = Dataset("d", [Example(str(row), f"text {row}") for row in range(30)], "text")
    rows = tuple(Prediction(row.id, (0.5,), (0.5000001,)) for row in dataset)
    shown = examples.pick_examples(dataset, {"a": Evaluation("mse", 0.0, Interval(0, 0), len(rows), rows)}, limit=3)
    assert [row.id for row in shown] == ["0", "14", "29"]
    assert {row.answers["a"]["is_correct"] for row in shown} == {None}


def test_thumbnails_are_small_pictures(tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 600, 3), dtype=np.uint8)).save(large)
    kind, _, content = examples.thumbnail(large).partition(",")
    assert kind == "data:image/webp;base64" and len(content) < 40_000
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert max(image.size) == examples.SIDE_PX and image.size[0] < image.size[1]
    kind, _, content = examples.thumbnail(np.arange(64, dtype=np.uint8).reshape(8, 8)).partition(",")
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert kind == "data:image/png;base64"
        np.testing.assert_array_equal(np.asarray(image), np.arange(64).reshape(8, 8))


def test_clips_are_short_sounds(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(2)
        stream.setsampwidth(2)
        stream.setframerate(44100)
        loud = np.concatenate([np.zeros(44100 * 2), np.full(44100 * 8, 20000)]).astype("<i2")
        stream.writeframes(np.stack([loud, loud], axis=1).tobytes())
    uri, heights = examples.clip(path)
    assert uri.startswith("data:audio/") and len(uri) < 200_000
    assert len(heights) == examples.BARS
    assert heights[0] == 0 and heights[-1] == pytest.approx(20000 / 32768, abs=1e-3)
    assert sum(height > 0.1 for height in heights) == examples.BARS // 2  # 2 s silent, 2 s loud, the rest cut off


def test_previews_never_lose_a_report_and_keep_their_budget(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (300, 300), "red").save(tmp_path / "red.png")
    rows = [Example("0", tmp_path / "broken.png", "x"), Example("1", tmp_path / "red.png", "x"), Example("2", tmp_path / "red.png", "x")]
    dataset = Dataset("d", rows, "image")
    shown = {row.id: row for row in examples.pick_examples(dataset, {"a": evaluation([True] * 3, dataset)})}
    assert shown["0"].data_uri == "" and shown["1"].data_uri and shown["2"].data_uri
    tight = examples.pick_examples(dataset, {"a": evaluation([True] * 3, dataset)}, budget_bytes=len(shown["1"].data_uri))
    assert [bool(row.data_uri) for row in tight] == [False, True, False]


def test_long_texts_and_numbers_are_shortened() -> None:
    dataset = Dataset("d", [Example("0", "word " * 500), Example("1", "x")], "text")
    rows = (Prediction("0", tuple([0.5] * 20), tuple([0.25] * 20)), Prediction("1", "x", None, {}, {"nll": 2.0, "tokens": 2.0}))
    shown = examples.pick_examples(dataset, {"a": Evaluation("mse", 0, Interval(0, 0), 2, rows)})
    by_id = {row.id: row for row in shown}
    assert len(by_id["0"].text) == examples.TEXT_CHARACTERS and by_id["0"].text.endswith("…")
    assert by_id["0"].truth == "0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, …"
    assert by_id["1"].answers["a"] == {"answer": "2.72 per token", "is_correct": None, "confidence": None}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("folder:/home/jane/data/birds/", "folder:birds"),
        ("/srv/x.bundle", "x.bundle"),
        ("hf:/models/tiny?task=ctc", "hf:tiny?task=ctc"),
        ("folder:~/birds", "folder:birds"),
        ("folder:/home/jane", "folder:…"),
        ("folder:~", "folder:…"),
        ("~jane", "…"),
        ("/root", "…"),
        ("csv:/home/jane doe/my data/list.csv", "csv:list.csv"),
        (r"C:\Users\jane\birds", "birds"),
        ("folder:data/birds", "folder:data/birds"),
        ("timm:vit_tiny_patch16_224", "timm:vit_tiny_patch16_224"),
        ("https://arxiv.org/abs/2106.09685", "https://arxiv.org/abs/2106.09685"),
        ("read from /home/jane/a.txt, then stopped", "read from a.txt, then stopped"),
        ("kept in ~/secret/place", "kept in place"),
        ("and/or 1/2 of it, 3 / 4", "and/or 1/2 of it, 3 / 4"),
        ("<b>bold</b>", "<b>bold</b>"),
    ],
)
def test_paths_are_cut_to_their_last_part(text: str, shown: str) -> None:
    assert public_text(text) == shown


def test_paths_are_cut_at_any_depth() -> None:
    assert public({"a": [{"/x/y": Path("/home/jane/z"), "n": 1.5, "t": ("/a/b",)}], "none": None}) == {"a": [{"y": "z", "n": 1.5, "t": ["b"]}], "none": None}


def test_markup_escapes_all_but_itself() -> None:
    assert tag("p", "<b>", tag("i", "&"), 3, None, False, class_='a"b', data_x=None, hidden=True) == '<p class="a&quot;b" hidden>&lt;b&gt;<i>&amp;</i>3</p>'
    assert tag("img", src="x'y") == '<img src="x&#x27;y">'
    assert join("<", Html("<hr>")) == "&lt;<hr>"
    assert "<td>&lt;td&gt;</td>" in table(["a", "b"], [["x", "<td>"]])


def test_numbers_as_people_read_them() -> None:
    assert figures.value_of("accuracy", 0.8734) == "87.3\u202f%"
    assert figures.value_of("accuracy", -0.031, signed=True) == "−3.1\u202fpt"
    assert figures.value_of("accuracy", 0.0, signed=True, is_tick=True) == "0"
    assert figures.value_of("accuracy", 0.5, is_tick=True) == "50\u202f%"
    assert figures.value_of("perplexity", 18.0371) == "18.04"
    assert figures.value_of("perplexity", float("inf")) == "∞"
    assert [figures.count(number) for number in (0, 950, 3084, 56_700, 5_717_416)] == ["0", "950", "3\u202f084", "56.7\u202fk", "5.72\u202fM"]
    assert [figures.size(number) for number in (312, 12_648, 98_000_000)] == ["312\u202fB", "12.6\u202fkB", "98\u202fMB"]
    assert [figures.duration(number) for number in (0.0123, 0.25, 2.44, 41.5, 200, 3900)] == [
        f"{text}\u202f{unit}" for text, unit in (("12.3", "ms"), ("250", "ms"), ("2.4", "s"), ("42", "s"))
    ] + [
        "3\u202fmin 20\u202fs",
        "1\u202fh 05\u202fmin",
    ]
    assert [figures.significant(number) for number in (0.012344, 1.5, 123456.0, 1e-7)] == ["0.01234", "1.5", "123456", "1.00e-07"]


def test_ticks_are_round_and_inside() -> None:
    assert figures.ticks(0.03, 0.97, 5) == [0.2, 0.4, 0.6, 0.8]
    assert figures.ticks(-1.0, 1.0, 4) == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert figures.ticks(3.0, 3.0) == [3.0]


def test_lines_break_at_gaps_and_thin_out() -> None:
    points = [[float(step), float("nan") if step == 5 else step * 1.0] for step in range(10)]
    drawn = charts.lines([charts.Series("a", points, "red")], "step")
    path = next(part for part in drawn.split('d="')[1:])
    assert path.split('"')[0].count("M") == 2
    long = charts.thinned([(float(step), 0.0) for step in range(5000)])
    assert len(long) <= charts.MAXIMUM_POINTS + 1 and long[0][0] == 0 and long[-1][0] == 4999
    flat = charts.smoothed([(float(step), float(step)) for step in range(100)])
    assert flat[50] == (50.0, 50.0) and flat[0][1] == 1.0


def test_forest_places_values_on_its_axis() -> None:
    rows = [charts.Row("a", 0.5, 0.4, 0.6, "50 %", "", "red"), charts.Row("b", 1.0, 0.9, 1.0, "100 %", "", "red")]
    low, high = charts.axis_of(rows, bounds=(0.0, 1.0))
    assert (low, high) == (pytest.approx(0.364), pytest.approx(1.001))
    drawn = charts.forest(rows, "accuracy", bounds=(0.0, 1.0))
    assert f"left:{100 * (0.5 - low) / (high - low):.2f}%;--c:red" in drawn
    assert charts.axis_of([charts.Row("x", float("inf"), 0, float("nan"), "", "", "red")], zero=True) == (-0.05, 0.05)
    assert "inf" not in charts.forest([charts.Row("x", float("inf"), float("inf"), float("inf"), "∞", "", "red")], "perplexity")


def test_commonest_mistakes_come_first() -> None:
    assert commonest([[5, 2, 0], [0, 4, 3], [1, 0, 0]], ["a", "b", "c"]) == [("b", "c", 3, 7), ("a", "b", 2, 7), ("c", "a", 1, 1)]
