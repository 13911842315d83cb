"""Reports: whole, escaped, self-contained, and silent about the machine."""

from __future__ import annotations

import getpass
import json
import re
import socket
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyadapt.data.dataset import Dataset, Example
from polyadapt.errors import UserError
from polyadapt.evaluation.baselines import majority
from polyadapt.evaluation.evaluation import Evaluation, compare, evaluate
from polyadapt.evaluation.interval import Comparison, Interval
from polyadapt.evaluation.prediction import Prediction
from polyadapt.report import ArmResult, RunResult, write_report
from polyadapt.report.examples import Shown, pick_examples

EVIL = "<script>alert('x')</script>"
VOID = {"meta", "img", "br", "hr"}


class Page(HTMLParser):
    """Checks that elements nest, and gathers what a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: dict[str, int] = {}
        self.sources: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def pictures(count: int = 60) -> Dataset:
    generator = np.random.default_rng(0)
    rows = [Example(f"{row}.png", generator.integers(0, 255, (9, 7, 3), dtype=np.uint8), ("cat", "dog", EVIL)[row % 3], EVIL if row == 0 else None) for row in range(count)]
    return Dataset("folder:pets", rows, "image")


def evaluated(dataset: Dataset, seed: int, right: float) -> Evaluation:
    def predict(rows: Dataset) -> list[Prediction]:
        generator = np.random.default_rng(seed)
        found = []
        for row in rows:
            answer = str(row.label) if generator.random() < right else dataset.labels[int(generator.integers(3))]
            found.append(Prediction(row.id, row.label, answer, {answer: 0.8}, {"nll": 0.5}))
        return found

    return evaluate(predict, dataset, ("accuracy", "macro-f1"), generator=np.random.default_rng(1), draws=200)


def run(home: str = "/home/jane/work") -> RunResult:
    dataset = pictures()
    good, base = evaluated(dataset, 1, 0.8), evaluated(dataset, 2, 0.3)
    curve = [[step, 2.0 / (step + 1)] for step in range(120)]
    options = {"rank": 4, "init": f"{home}/init.safetensors"}
    arms = [
        ArmResult("lora", "lora", "arm", options, 3084, 12648, 41.5, {"train loss": curve, "accuracy": [[0, 0.3], [50, float("nan")]]}, good),
        ArmResult(EVIL, "bottleneck", "arm", {"note": EVIL}, 10, 99, 1.0, {EVIL: curve}, evaluated(dataset, 3, 0.5)),
        ArmResult("linear probe", "linear-probe", "baseline", {}, 21, 300, 2.0, {}, base),
        ArmResult("majority", "majority", "baseline", evaluation=evaluate(majority(dataset), dataset, generator=np.random.default_rng(1), draws=200)),
    ]
    return RunResult(
        f"Pets {EVIL}",
        "vit",
        f"hf:{home}/vit-tiny?task=classification",
        "ab" * 32,
        "classification",
        5_700_000,
        {"uri": f"folder:{home}/pets", "hash": dataset.hash, "by": "label", "parts": {"train": {"n": 300, "hash": "11" * 32}, "test": {"n": 60, "hash": dataset.hash}}},
        arms,
        [compare(good, base, ("lora", "linear probe"), generator=np.random.default_rng(1), draws=200)],
        {"path": f"{home}/runs/pets.bundle", "parity": {"ok": True, "max_relative_error": 2.4e-6, "tolerance": 1e-5}, "latency_ms": {"median": 11.25, "p95": 13.9}},
        {"torch": "2.11.0"},
        7,
        pick_examples(dataset, {"lora": good, "linear probe": base}),
        [f"Weights were read from {home}/weights.safetensors.", EVIL],
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(run(), tmp_path_factory.mktemp("report"))


def test_the_page_is_well_formed_and_shows_everything(written: Path) -> None:
    page = Page(written.read_text(encoding="utf-8"))
    for section in ("Results", "Differences, pair by pair", "Training", "Which classes are confused", "Examples", "Export", "Data", "Set-up"):
        assert section in page.text
    row = json.loads((written.parent / "report.json").read_text(encoding="utf-8"))
    value = row["arms"][0]["evaluation"]["value"]
    assert f"{100 * value:.1f}\u202f%" in page.text
    for fact in ("3\u202f084", "12.6\u202fkB", "rank", "2.11.0", "11.2\u202fms", "equal to torch", "linear probe", "ab" * 32, "11" * 8):
        assert fact in page.text, fact
    assert page.tags["img"] == len(row["examples"]) == 18
    assert page.tags["svg"] >= 2


def test_user_texts_are_escaped_everywhere(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert "<script" not in text.lower()
    assert text.count("&lt;script&gt;") > 10
    assert Page(text).tags.get("script") is None


def test_the_page_needs_nothing_else(written: Path) -> None:
    text = written.read_text(encoding="utf-8")
    page = Page(text)
    assert page.sources and all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "default-src 'none'" in unescape(text)
    assert "link" not in page.tags and "iframe" not in page.tags
    assert "prefers-color-scheme: dark" in text


def test_nothing_of_the_machine_is_told(tmp_path: Path) -> None:
    write_report(run(str(tmp_path)), tmp_path / "out")
    for name in ("report.json", "report.html"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert str(tmp_path) not in text
        assert tmp_path.parts[2] not in text
        assert str(Path.home()) + "/" not in text
        assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", re.sub(r"base64,[^\"]*", "", text))
        assert f"/{getpass.getuser()}/" not in text
    row = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert row["data"]["uri"] == "folder:pets"
    assert row["reference"] == "hf:vit-tiny?task=classification"
    assert row["bundle"]["path"] == "pets.bundle"
    assert row["arms"][0]["options"]["init"] == "init.safetensors"
    assert row["notes"][0] == "Weights were read from weights.safetensors."


def test_private_data_stays_out(tmp_path: Path) -> None:
    write_report(run(), tmp_path, examples=False)
    text, row = (tmp_path / "report.html").read_text(encoding="utf-8"), json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    page = Page(text)
    assert "img" not in page.tags and "Examples" not in page.text
    assert row["examples"] == []
    assert all("predictions" not in arm["evaluation"] for arm in row["arms"])
    assert "0.png" not in text and "0.png" not in json.dumps(row)
    assert "Which classes are confused" in page.text


def test_a_report_can_be_written_again_from_its_json(written: Path, tmp_path: Path) -> None:
    row = json.loads((written.parent / "report.json").read_text(encoding="utf-8"))
    assert all(shown["data_uri"] == "" for shown in row["examples"])
    assert row["arms"][0]["curves"]["accuracy"] == [[0.0, 0.3], [50.0, None]]
    write_report(row, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == row
    assert "img" not in Page((tmp_path / "report.html").read_text(encoding="utf-8")).tags


def test_values_without_an_end_are_shown_and_kept(tmp_path: Path) -> None:
    dataset = Dataset("d", [Example(str(row), "x", None, "y") for row in range(4)], "text")

    def predict(rows: Dataset) -> list[Prediction]:
        return [Prediction(row.id, row.text, None, {}, {"nll": float("inf"), "tokens": 1.0}) for row in rows]

    result = evaluate(predict, dataset, ("perplexity",), generator=np.random.default_rng(0), draws=20)
    arm = ArmResult("a", "a", curves={"loss": [[0, float("nan")]]}, evaluation=result)
    other = replace(arm, name="b", role="baseline")
    nan = float("nan")
    compared = Comparison("a", "b", "perplexity", nan, Interval(nan, nan), nan, 4)
    write_report(RunResult("t", arms=[arm, other], comparisons=[compared]), tmp_path)
    row = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    write_report(row, tmp_path)
    assert "no finite value was recorded" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_headline_is_honest(tmp_path: Path) -> None:
    dataset = pictures()
    same = evaluated(dataset, 1, 0.6)
    arms = [ArmResult("mine", "lora", evaluation=same), ArmResult("base", "frozen", "baseline", evaluation=same)]

    def headline(result: RunResult) -> str:
        return Page(write_report(result, tmp_path).read_text(encoding="utf-8")).text

    compared = [compare(same, same, ("mine", "base"), generator=np.random.default_rng(0), draws=50)]
    assert "this test set cannot tell the two apart" in headline(RunResult("t", arms=arms, comparisons=compared))
    assert "not compared pair by pair" in headline(RunResult("t", arms=arms))
    assert "No baseline was run" in headline(RunResult("t", arms=arms[:1]))
    worse = [ArmResult("mine", "lora", evaluation=evaluated(dataset, 1, 0.0)), ArmResult("base", "frozen", "baseline", evaluation=evaluated(dataset, 1, 1.0))]
    assert re.search(r"mine reaches accuracy .*, −\d.* against the best baseline, base", headline(RunResult("t", arms=worse)))


def test_almost_nothing_is_a_report_too(tmp_path: Path) -> None:
    page = Page(write_report(RunResult("nothing"), tmp_path / "deep" / "er").read_text(encoding="utf-8"))
    assert "Set-up" in page.text and "Results" not in page.text


def test_arms_that_differ_in_their_training_alone_are_told_apart(tmp_path: Path) -> None:
    arms = [ArmResult("plain", "lora"), ArmResult("masked", "lora", train={"mask_bands": 24})]
    page = Page(write_report(RunResult("t", arms=arms, data={"uri": "folder:clips", "options": {"trim_db": 35.0}}), tmp_path).read_text(encoding="utf-8"))
    assert all(word in page.text for word in ("mask_bands", "24", "trim_db", "35.0"))
    row = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [arm["train"] for arm in row["arms"]] == [{}, {"mask_bands": 24}]


def test_many_classes_become_a_picture(tmp_path: Path) -> None:
    dataset = Dataset("d", [Example(str(row), "x", f"class {row % 40}") for row in range(80)], "text")
    result = evaluate(lambda rows: [Prediction(row.id, row.label, "class 0") for row in rows], dataset, generator=np.random.default_rng(0), draws=20)
    page = Page(write_report(RunResult("t", arms=[ArmResult("a", "a", evaluation=result)]), tmp_path).read_text(encoding="utf-8"))
    assert page.tags["rect"] == 41  # 40 classes with one answer each, and the frame
    assert "class 9 taken for class 0: 2 of 2" in page.text


def test_unknown_entries_and_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no entry 'titel'; did you mean 'title'"):
        write_report({"titel": "x"}, tmp_path)
    with pytest.raises(UserError, match="has format 9, expected 1"):
        write_report({"format": 9, "title": "x"}, tmp_path)
    with pytest.raises(UserError, match="role 'basline' is unknown"):
        ArmResult("a", "a", "basline")


def test_a_stranger_data_uri_is_not_embedded(tmp_path: Path) -> None:
    shown: list[Any] = [Shown("0", "image", "cat", data_uri="javascript:alert(1)"), Shown("1", "audio", "cat", data_uri="https://example.org/x.mp3")]
    text = write_report(RunResult("t", examples=shown), tmp_path).read_text(encoding="utf-8")
    assert "javascript:" not in text and "example.org" not in text
