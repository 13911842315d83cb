"""Write a report: `report.html` and `report.json`, each whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from polyadapt.files import replacing_file, write_json
from polyadapt.report import mistakes, sections
from polyadapt.report.html import Html, join, tag
from polyadapt.report.privacy import public
from polyadapt.report.result import RunResult
from polyadapt_runtime.seal import finite

# Whatever a text may smuggle in: no script runs and nothing is fetched.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"


def write_report(result: RunResult | Mapping[str, Any], directory: Path, examples: bool = True) -> Path:
    """Write `report.html` (one file that needs nothing else) and `report.json`.

    Args:
        result: of a run, or the content of a `report.json`.
        directory: where to; made when missing.
        examples: with single examples and predictions; without them nothing of the data is left but class names,
            sizes and hashes.

    Returns:
        The path of `report.html`.

    Raises:
        UserError: a mapping that is no run's result, or a directory that cannot be written.
    """
    run = result if isinstance(result, RunResult) else RunResult.from_dict(result)
    row = _public_run(run, examples)
    directory = Path(directory)
    page = render(row)
    target = directory / "report.html"
    with replacing_file(target) as staging:
        staging.write_text(page, encoding="utf-8")
    light = {**row, "examples": [{**shown, "data_uri": ""} for shown in row["examples"]]}
    write_json(directory / "report.json", finite(light))
    return target


def render(run: Mapping[str, Any]) -> str:
    """A run's JSON as one HTML page."""
    view = sections.View.of(run)
    about = " · ".join(str(part) for part in (run["model"], run["reference"], run["data"].get("uri", ""), f"seed {run['seed']}") if part)
    body = join(
        tag("header", tag("h1", run["title"]), tag("p", about, class_="quiet")),
        sections.headline(view),
        sections.notes(view),
        sections.tiles(view),
        sections.results(view),
        sections.comparisons(view),
        sections.curves(view),
        mistakes.confusions(view),
        mistakes.examples(view),
        sections.export(view),
        sections.data(view),
        sections.setup(view),
        tag("footer", "Made by Polyadapt. This page is one file, runs no script and loads nothing."),
    )
    head = join(
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", run["title"]),
        tag("style", Html(files("polyadapt.report").joinpath("style.css").read_text(encoding="utf-8"))),
    )
    return f'<!doctype html>\n<html lang="en">{tag("head", head)}{tag("body", tag("main", body))}</html>\n'


def _public_run(run: RunResult, examples: bool) -> dict[str, Any]:
    """The run's JSON without absolute paths. Texts of examples are data and stay as they are; their ids do not."""
    row = run.to_dict(examples)
    kept = [asdict(shown) for shown in run.examples] if examples else []
    predictions = [(arm["evaluation"] or {}).pop("predictions", None) for arm in row["arms"]]
    row.pop("examples")
    cleaned: dict[str, Any] = public(row)
    cleaned["examples"] = [{**shown, "id": public(shown["id"])} for shown in kept]
    for arm, rows in zip(cleaned["arms"], predictions, strict=True):
        if rows is not None:
            arm["evaluation"]["predictions"] = [{**prediction, "id": public(prediction["id"])} for prediction in rows]
    return cleaned
