"""The sections about single classes and examples: confusion matrix, commonest mistakes, what was answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polyadapt.report import charts
from polyadapt.report.figures import THIN
from polyadapt.report.html import Html, join, table, tag
from polyadapt.report.sections import View

MAXIMUM_CLASSES = 30
COMMONEST = 8


def confusions(view: View) -> Html | None:
    """One matrix an evaluated arm, the best one open."""
    arms = [arm for arm in view.ranked if arm["evaluation"].get("confusion") and arm["role"] == "arm"] or [arm for arm in view.ranked if arm["evaluation"].get("confusion")]
    if not arms:
        return None
    parts = [tag("details", tag("summary", tag("strong", arm["name"])), _matrix(arm["evaluation"]), open=index == 0) for index, arm in enumerate(arms)]
    note = tag("p", "Rows are true classes, columns are answers; shades are shares of a row.", class_="quiet")
    return tag("section", tag("h2", "Which classes are confused"), note, *parts)


def examples(view: View) -> Html | None:
    """Cards of single examples."""
    if not view.run["examples"]:
        return None
    cards = [_card(view, shown) for shown in view.run["examples"]]
    note = "Chosen where arms disagree, then where all fail, then where all are right. They are no fair sample."
    return tag("section", tag("h2", "Examples"), tag("p", note, class_="quiet"), tag("div", *cards, class_="cards"))


def commonest(table_: Sequence[Sequence[int]], labels: Sequence[str]) -> list[tuple[str, str, int, int]]:
    """Wrong answers by how often they were given: (truth, answer, times, examples of that truth)."""
    found = [(labels[truth], labels[answer], times, sum(row)) for truth, row in enumerate(table_) for answer, times in enumerate(row) if times and truth != answer]
    return sorted(found, key=lambda row: (-row[2], row[0], row[1]))[:COMMONEST]


def _matrix(evaluation: Mapping[str, Any]) -> Html:
    counts, labels = evaluation["confusion"], evaluation["labels"]
    mistakes = commonest(counts, labels)
    rows = [[truth, tag("td", "taken for "), answer, f"{times} of {of}"] for truth, answer, times, of in mistakes]
    listed = table(["truth", "", "answer", "times"], rows, "numbers narrow") if rows else tag("p", "No mistake was made.", class_="quiet")
    return tag("div", _grid(counts, labels) if len(labels) <= MAXIMUM_CLASSES else _picture(counts, labels), tag("div", tag("h3", "Commonest mistakes"), listed), class_="two")


def _grid(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> Html:
    is_short = max(len(label) for label in labels) <= 3
    head = tag("tr", tag("th"), *(tag("th", tag("span", label), scope="col") for label in labels), class_="short" if is_short else None)
    body = []
    for truth, row in enumerate(counts):
        total = sum(row) or 1
        cells = [_cell(times, times / total, truth == answer, f"{labels[truth]} taken for {labels[answer]}: {times} of {sum(row)}") for answer, times in enumerate(row)]
        body.append(tag("tr", tag("th", labels[truth], scope="row"), *cells))
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body), class_="matrix"), class_="scroll")


def _cell(times: int, share: float, is_right: bool, title: str) -> Html:
    strength = f"--p:{round(100 * share)}%" if times else None
    name = ("right" if is_right else "wrong") + (" strong" if share > 0.55 else "")
    return tag("td", times or "", title=title, class_=name, style=strength)


def _picture(counts: Sequence[Sequence[int]], labels: Sequence[str]) -> Html:
    """Many classes: squares without numbers."""
    side = 480 / len(labels)
    squares = []
    for truth, row in enumerate(counts):
        total = sum(row) or 1
        for answer, times in enumerate(row):
            if times:
                title = tag("title", f"{labels[truth]} taken for {labels[answer]}: {times} of {sum(row)}")
                place = {"x": f"{answer * side:.2f}", "y": f"{truth * side:.2f}", "width": f"{side:.2f}", "height": f"{side:.2f}"}
                squares.append(tag("rect", title, **place, class_="right" if truth == answer else "wrong", fill_opacity=f"{0.15 + 0.85 * times / total:.2f}"))
    frame = tag("rect", x=0, y=0, width=480, height=480, class_="frame")
    return tag("svg", frame, *squares, viewBox="0 0 480 480", class_="heat", role="img", aria_label=f"confusion matrix of {len(labels)} classes")


def _card(view: View, shown: Mapping[str, Any]) -> Html:
    answers = [_answer(view, name, row) for name, row in shown["answers"].items()]
    truth = tag("div", tag("span", "truth ", class_="quiet"), tag("strong", shown["truth"]), class_="truth") if shown["truth"] else None
    foot = tag("div", shown["id"], class_="id", title=shown["id"])
    return tag("article", _medium(shown), tag("div", truth, tag("ul", *answers), foot, class_="body"), class_=f"card {shown['media']}")


def _medium(shown: Mapping[str, Any]) -> Html:
    uri, parts = str(shown["data_uri"]), []
    if uri.startswith("data:image/"):
        parts.append(tag("img", src=uri, alt=f"example {shown['id']}", loading="lazy", class_="small" if uri.startswith("data:image/png") else None))
    if shown["values"]:
        parts.append(charts.bars(shown["values"]))
    if uri.startswith("data:audio/"):
        parts.append(tag("audio", controls=True, preload="none", src=uri))
    if shown["text"]:
        parts.append(tag("blockquote", shown["text"]))
    return tag("div", *(parts or [tag("span", "no preview", class_="quiet")]), class_="medium")


def _answer(view: View, name: str, row: Mapping[str, Any]) -> Html:
    sign = {True: tag("span", "✓", class_="good", title="right"), False: tag("span", "✗", class_="bad", title="wrong"), None: tag("span", "·")}[row["is_correct"]]
    confidence = None if row["confidence"] is None else tag("span", f" {100 * row['confidence']:.0f}{THIN}%", class_="quiet")
    swatch = tag("i", class_="swatch" if name in view.colours else "swatch hollow", style=f"--c:{view.colours.get(name, 'var(--muted)')}")
    return tag("li", tag("span", swatch, name, class_="who"), tag("span", join(sign, " "), row["answer"] or "–", confidence, class_="said"))
