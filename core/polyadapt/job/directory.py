"""The directory of a run: what lies where, and whether it may be used.

recipe.json         what was asked, with its digest, and the hash of the data
artifacts/<arm>/    finished artifacts of arms
work/<name>/        events, checkpoints, predictions and, for baselines, the artifact
work/exported.json  what of the recipe the bundle was made by
bundle/             what was exported (or as the recipe calls it)
report.html  report.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyadapt.errors import UserError
from polyadapt.files import read_json, write_json
from polyadapt.recipe import Recipe


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run."""

    root: Path

    @property
    def recipe(self) -> Path:
        """What was asked."""
        return self.root / "recipe.json"

    def work(self, name: str) -> Path:
        """Everything that belongs to one arm or baseline while it is made."""
        return self.root / "work" / name

    def training(self, name: str) -> Path:
        """Checkpoints; removed when the arm is finished."""
        return self.work(name) / "training"

    def artifact(self, name: str, role: str) -> Path:
        """Arms are for the user; artifacts of baselines stay with the work."""
        return self.root / "artifacts" / name if role == "arm" else self.work(name) / "artifact"

    def result(self, name: str) -> Path:
        """Written last: an arm with a result is finished."""
        return self.work(name) / "result.json"

    @property
    def exported(self) -> Path:
        """Written when a bundle is there: by what section of the recipe."""
        return self.root / "work" / "exported.json"

    def events(self, name: str) -> Path:
        """One event a line."""
        return self.work(name) / "events.jsonl"


def open_directory(root: Path, recipe: Recipe, data_hash: str, resume: bool) -> RunDirectory:
    """Make the directory of a run, or find it again.

    Args:
        root: the directory.
        recipe: what is asked.
        data_hash: of the whole data set that the recipe names: its rows may change while the recipe stays.
        resume: whether to go on with a run that lies there.

    Raises:
        UserError: it holds something already and `resume` was not asked for, or it belongs to another recipe, or to other data.
    """
    directory = RunDirectory(root)
    asked = {"format": 1, "digest": recipe.digest, "data": data_hash, "recipe": recipe.model_dump(mode="json")}
    if directory.recipe.is_file():
        found = read_json(directory.recipe, "run")
        if found.get("digest") != recipe.digest:
            raise UserError(f"{root} holds the run of another recipe (or of an earlier version of this one); give another --out, or remove it")
        if found.get("data", data_hash) != data_hash:  # runs of before the hash was kept are taken at their word
            raise UserError(
                f"{root} holds a run over other data: {recipe.data.uri} had hash {found['data'][:12]} and now has {data_hash[:12]}; "
                "bring the data back as they were, or give another --out, or remove it"
            )
        if not resume:
            raise UserError(f"{root} holds this run already; --resume goes on where it stopped, or give another --out")
        write_json(directory.recipe, asked)  # its name and its export may have changed
    elif root.exists() and not root.is_dir():
        raise UserError(f"{root} is a file; give the folder of a run, or one that is not there yet")
    elif root.exists() and any(root.iterdir()):
        raise UserError(f"{root} is not empty and holds no run; give another --out")
    else:
        write_json(directory.recipe, asked)
    return directory


class EventLog:
    """Events of one arm on disk, so that curves survive a kill.

    Args:
        path: one JSON object a line.
        resume: keep what is there; events of steps that are done again replace the earlier ones.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self._path = path
        if not resume:
            path.unlink(missing_ok=True)

    def __call__(self, event: Mapping[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(dict(event), default=str) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All events in order. A last line that a kill cut short is left out."""
        events = []
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []:
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return events

    def curves(self) -> dict[str, list[list[float]]]:
        """Loss by step, and validation metrics by step; where a step was done twice the later one holds."""
        curves: dict[str, dict[int, float]] = {}
        for event in self.read():
            step = event.get("step")
            if not isinstance(step, int):
                continue
            if event["kind"] == "step" and isinstance(event.get("loss"), (int, float)):
                curves.setdefault("train loss", {})[step] = float(event["loss"])
            for name, value in (event.get("validation") or {}).items():
                if isinstance(value, (int, float)):
                    curves.setdefault(f"validation {name}", {})[step] = float(value)
        return {name: [[float(step), points[step]] for step in sorted(points)] for name, points in curves.items()}

    def last(self, kind: str) -> dict[str, Any]:
        """The newest event of a kind; empty when there was none."""
        return next((event for event in reversed(self.read()) if event.get("kind") == kind), {})


def clear(path: Path) -> None:
    """Remove a folder that is not needed any more."""
    shutil.rmtree(path, ignore_errors=True)
