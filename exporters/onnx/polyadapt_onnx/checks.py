"""What is refused before anything is traced: names, artifacts that hold nothing, and numbers that are none."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from polyadapt.artifact import Artifact
from polyadapt.errors import UserError
from polyadapt.model import Model
from polyadapt_runtime.fields import OWN_CASES, strange_condition


def check_precision(model: Model) -> None:
    """Refuse a base that is not in float32, which graphs are written in; half precision is a variant of them.

    Raises:
        UserError: parameters in another precision.
    """
    for parameter in model.module.parameters():
        if parameter.is_floating_point() and parameter.dtype != torch.float32:
            found = str(parameter.dtype).removeprefix("torch.")
            raise UserError(f"{model.reference} is in {found}, and graphs are written from float32; load it anew for the export, what was trained on it fits")


def check_artifacts(model: Model, artifacts: Mapping[str, Artifact], form: str = "slots") -> None:
    """Refuse artifacts that no bundle of a form can hold.

    Raises:
        UserError: a name that is none or is the gate's own, no edits where the form needs some, a number that is not finite, or a
            value for what is no input of its own.
    """
    spec = model.processor.spec if model.processor is not None else {}
    for name, artifact in artifacts.items():
        _check_name(name)
        _check_content(name, artifact, form)
        _check_numbers(name, artifact)
        if reason := strange_condition(list(artifact.conditions), [given.name for given in model.signature.inputs], spec, list(model.family.conditioners(model.backbone))):
            raise UserError(f"artifact {name} {reason}")


def _check_name(name: str) -> None:
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise UserError(f"{name!r} cannot name an artifact in a bundle; use letters, digits and . + - _, beginning with a letter or digit")
    if name in OWN_CASES:
        raise UserError(f"{name!r} cannot name an artifact in a bundle: the recorded cases without an artifact are called so; give another name, as in NAME=FOLDER")


def _check_content(name: str, artifact: Artifact, form: str) -> None:
    if artifact.edits:
        return
    if not artifact.conditions:
        raise UserError(f"artifact {name} holds no edits and brings no input of its own, so it is the base; leave it out")
    if form != "slots":
        raise UserError(f"artifact {name} holds no edits, only a value of {', '.join(artifact.conditions)}, and form {form!r} takes edits; use form 'slots'")


def _check_numbers(name: str, artifact: Artifact) -> None:
    tensors = {f"{edit.key}.{part}": value for edit in artifact.edits for part, value in edit.tensors.items()}
    for key, value in {**tensors, **artifact.conditions}.items():
        if not bool(value.isfinite().all()):
            raise UserError(f"artifact {name}: {key} holds numbers that are not finite; its training went wrong, train it again")
