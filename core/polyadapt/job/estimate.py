"""What a job would take, for `--dry-run`: two real steps of every arm, and sizes by arithmetic. Nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyadapt import api
from polyadapt.data.split import Parts
from polyadapt.host import Host
from polyadapt.job.arms import Arm
from polyadapt.job.run import Prepared, prepare
from polyadapt.methods.base import Method, load_method
from polyadapt.model import Model
from polyadapt.options import read_options
from polyadapt.recipe import Recipe
from polyadapt.sites import tensor_bytes
from polyadapt.training import estimate
from polyadapt.training.settings import TrainSettings


def estimate_adaptation(host: Host, model: Model, method: str, options: Mapping[str, Any], train: Mapping[str, Any], parts: Parts) -> dict[str, Any]:
    """Steps, seconds, memory and disk of one adaptation.

    A method with a training procedure of its own is planned, and its time is not known before it runs: then `seconds` is None.

    Raises:
        UserError: what does not fit, as training would say it.
    """
    card = host.registry.methods.get(method).card
    chosen = read_options(card.options, options, f"method {method!r}")
    settings = read_options(TrainSettings, train, "training")
    loaded = load_method(card)
    if getattr(loaded, "fit", None) is not None or type(loaded).form is Method.form:
        return {"method": method, "trainable": None, "steps": None, "seconds": None, "memory_bytes": None, "disk_bytes": None}
    found = estimate(api.fit_labels(model, parts.train), loaded, chosen, parts, settings)
    return {
        "method": method,
        "trainable": found.parameters,
        "steps": found.steps,
        "seconds": round(found.seconds, 1),
        "memory_bytes": found.memory_bytes,
        "disk_bytes": found.disk_bytes,
    }


def estimate_recipe(recipe: Recipe, host: Host, root: Path, allow_download: bool = False, has_export: bool = True) -> dict[str, Any]:
    """Everything that a run of a recipe would do and take.

    Raises:
        UserError: anything in the recipe that does not fit.
    """
    prepared = prepare(recipe, host, allow_download, has_export)
    rows = [_row(recipe, host, prepared, arm) for arm in prepared.arms]
    base_bytes = tensor_bytes([*prepared.model.module.parameters(), *prepared.model.module.buffers()])
    is_exported = has_export and recipe.export is not None
    artifacts_bytes = sum(row["disk_bytes"] or 0 for row in rows)
    return {
        "model": prepared.model.reference,
        "parameters": sum(parameter.numel() for parameter in prepared.model.backbone.parameters()),
        "data": recipe.data.uri,
        "examples": {name: len(part) for name, part in prepared.parts.parts.items()},
        "split": prepared.parts.by,
        "metrics": list(prepared.metrics),
        "directory": str(root),
        "exports": f"{recipe.export.target}, {recipe.export.form}" if is_exported and recipe.export is not None else "nothing",
        "seconds": round(sum(row["seconds"] or 0.0 for row in rows), 1),
        "memory_bytes": max([base_bytes, *(row["memory_bytes"] or 0 for row in rows)]),
        "disk_bytes": artifacts_bytes + (base_bytes if is_exported else 0),
        "disk_free_bytes": shutil.disk_usage(next(parent for parent in (root.absolute(), *root.absolute().parents) if parent.exists())).free,
        "arms": rows,
    }


def _row(recipe: Recipe, host: Host, prepared: Prepared, arm: Arm) -> dict[str, Any]:
    if arm.is_plain:
        return {"name": arm.name, "role": arm.role, "method": arm.method, "trainable": 0, "steps": 0, "seconds": 0.0, "memory_bytes": 0, "disk_bytes": 0}
    train = {"seed": recipe.seed, **recipe.train, **arm.train}
    return {"name": arm.name, "role": arm.role, **estimate_adaptation(host, prepared.model, arm.method, arm.options, train, prepared.parts)}
