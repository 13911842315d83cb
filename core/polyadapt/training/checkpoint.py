"""Checkpoints: everything a run needs to go on as if nothing had happened, without a pickle.

`checkpoints/step-<step>-<epoch>/` holds the form's trained tensors, the optimiser's state, the random states of every
process and `state.json` with the position and what decides the result. A checkpoint is written beside and renamed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from polyadapt.errors import UserError
from polyadapt.files import read_json, replacing_directory, sha256_file, write_json
from polyadapt.tensors import load_tensors, save_tensors
from polyadapt.training.processes import Processes
from polyadapt.training.settings import TrainSettings

FORMAT = 1
FOLDER = "checkpoints"
RECORDED_LATER = ("processor", "front", "start_ids")
"""Parts of a fingerprint that were added to it: where a checkpoint has none of them, nothing speaks against it."""
ALONE = Processes(torch.device("cpu"))
_NAME = re.compile(r"step-(\d{8})-(\d{4})")

_log = logging.getLogger(__name__)

Tensors = Mapping[str, torch.Tensor]


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: epochs that are over.
        batch: batches of the present epoch that are over.
        step: optimiser steps taken.
        seconds: that training took, over all sessions.
        loss_sum, loss_count: of the present epoch.
        window_sum, window_count: the same since the last `step` event.
        best: the best validation metric so far (higher is better), its epoch, and the epochs since.
        history: one row an epoch.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
    window_sum: float = 0.0
    window_count: int = 0
    best: float | None = None
    best_epoch: int = 0
    waited: int = 0
    is_finished: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """What was read back: position, and tensors by file."""

    name: str
    progress: Progress
    form: Tensors
    optimiser: Tensors
    random: Tensors
    best: Tensors | None


def save_checkpoint(directory: Path, progress: Progress, fingerprint: Mapping[str, Any], parts: Mapping[str, Tensors], keep: int) -> str:
    """Write one checkpoint, whole or not at all, then remove the oldest beyond `keep`, and those of later steps, which were damaged and passed over.

    Args:
        directory: of the run.
        progress: the position.
        fingerprint: what decides the result; a checkpoint is resumed only under an equal one.
        parts: tensors by file: `form`, `optimiser`, `random`, and `best` where there is a best state.
        keep: newest checkpoints to leave.

    Returns:
        The checkpoint's name.
    """
    name = f"step-{progress.step:08d}-{progress.epoch:04d}"
    folder = directory / FOLDER
    with replacing_directory(folder / name) as staging:
        for part, tensors in parts.items():
            save_tensors(staging / f"{part}.safetensors", tensors)
        files = {f"{part}.safetensors": sha256_file(staging / f"{part}.safetensors") for part in parts}
        state = {"format": FORMAT, "progress": asdict(progress), "fingerprint": dict(fingerprint), "digest": digest(fingerprint), "files": files}
        write_json(staging / "state.json", state)
    names = _names(folder)
    for other in [*names[names.index(name) + 1 :], *names[: names.index(name) + 1][:-keep]]:
        shutil.rmtree(folder / other)
    return name


def load_checkpoint(directory: Path, fingerprint: Mapping[str, Any], processes: Processes = ALONE) -> Checkpoint | None:
    """The newest whole checkpoint of a run; None when there is none.

    What a killed run left half-written is removed; a checkpoint without a state, or whose files are not what its state recorded, is passed over.

    Args:
        directory: of the run.
        fingerprint: what decides the result now.
        processes: that read it together: the main one alone removes, before any of them looks.

    Raises:
        UserError: it was made under other settings, data or another base; the first difference is named.
    """
    folder = directory / FOLDER
    if processes.is_main:
        remove_leftovers(folder)
    processes.wait()
    for name in reversed(_names(folder)):
        state = _whole_state(folder / name)
        if state is None:
            _log.warning("checkpoint %s is damaged and was passed over", name)
            continue
        _refuse_differences(name, state, fingerprint)
        tensors = {file.removesuffix(".safetensors"): load_tensors(folder / name / file, f"checkpoint {name}") for file in state["files"]}
        return Checkpoint(name, _progress(state["progress"]), tensors["form"], tensors["optimiser"], tensors["random"], tensors.get("best"))
    return None


def clear_checkpoints(directory: Path) -> None:
    """Remove the checkpoints of an earlier run, so that a later `resume` cannot take them for this one's."""
    folder = directory / FOLDER
    remove_leftovers(folder)
    for name in _names(folder):
        shutil.rmtree(folder / name)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed runs left half-written or half-replaced in a folder of ours."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if entry.name.startswith(".") and (entry.name.endswith(".partial") or ".retired-" in entry.name):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def digest(fingerprint: Mapping[str, Any]) -> str:
    """sha256 of what decides a result."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if _NAME.fullmatch(entry.name))


def _progress(recorded: Mapping[str, Any]) -> Progress:
    """The position of a checkpoint; what other versions recorded besides is left out."""
    known = {item.name for item in fields(Progress)}
    return Progress(**{name: value for name, value in recorded.items() if name in known})


def _whole_state(folder: Path) -> dict[str, Any] | None:
    """The state of a checkpoint, or None when a file is missing, cut short or altered."""
    try:
        state: dict[str, Any] = read_json(folder / "state.json", "checkpoint")
    except UserError:
        return None
    try:
        if state["format"] != FORMAT:
            raise UserError(f"{folder}: checkpoint format {state['format']!r}, this version reads format {FORMAT}; finish the run with the version that began it")
        is_whole = all((folder / file).is_file() and sha256_file(folder / file) == recorded for file, recorded in state["files"].items())
    except (KeyError, TypeError):
        return None
    return state if is_whole else None


def _refuse_differences(name: str, state: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
    if state["digest"] == digest(fingerprint):
        return
    if state["digest"] != digest(state["fingerprint"]):
        raise UserError(f"cannot resume: the state of checkpoint {name} was altered; remove it to go on from the one before")
    present = json.loads(json.dumps(dict(fingerprint)))
    then, now = flattened(_completed(state["fingerprint"], present)), flattened(present)
    for key in sorted({*then, *now}):
        if then.get(key) != now.get(key):
            raise UserError(f"cannot resume: checkpoint {name} was made with {key} = {then.get(key)!r}, now it is {now.get(key)!r}; use that, or another directory")


def _completed(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint recorded, with what came to be recorded since: a run from before a setting existed trained as the setting's default does."""
    later = {part: present[part] for part in RECORDED_LATER if part in present}
    train = {"train": {**TrainSettings().deciding(), **recorded["train"]}} if "train" in recorded else {}
    return {**later, **recorded, **train}


def flattened(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat.update(flattened(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat
