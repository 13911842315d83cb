"""Teaching a class to a cosine head: one column more, the mean direction of a few examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from polyadapt_runtime.errors import ArtifactError, InputError
from polyadapt_runtime.manifest import Manifest
from polyadapt_runtime.tensors import Tensors

if TYPE_CHECKING:
    from polyadapt_runtime.store import ArtifactStore

GROUP = "head:prototypes"
NAMES = {tensor: f"{GROUP}.{tensor}" for tensor in ("weight", "bias", "cosine")}
TEMPERATURE = 10.0  # ours: of the first class, when no column is there to take it from


def learnable(manifest: Manifest, outputs: Sequence[str], store: ArtifactStore, artifact: str | None, label: str) -> tuple[Tensors, tuple[str, ...], str]:
    """What a class is added to: the slots of an artifact or none, its labels, its method.

    Raises:
        ArtifactError: no prototypes here, a linear head, or a class that is there already.
    """
    if manifest.task != "classification" or manifest.form == "bank" or GROUP not in manifest.groups or "features" not in outputs:
        raise ArtifactError("this bundle has no head:prototypes slots with features; export a classification model with form='slots'")
    held: Tensors = {} if artifact is None else store.tensors(artifact)
    labels = store.labels(artifact)
    check_learnable(held, labels, label)
    return held, labels, "prototypes" if artifact is None else store.info(artifact).method


def check_learnable(slots: Mapping[str, np.ndarray], labels: Sequence[str], label: str) -> None:
    """Refuse what cannot be taught to the classes that are there.

    Raises:
        ArtifactError: they are scored by the base's linear head, one has that label, or one has none; or the label is no text.
    """
    if not isinstance(label, str) or not label:
        raise ArtifactError(f"the label of a class is a text that is not empty, found {label!r}")
    if label in labels:
        raise ArtifactError(f"there is a class {label!r} already; give another label, or learn from an artifact without it")
    if NAMES["weight"] not in slots and labels:
        raise ArtifactError("the classes here are scored by the base's own linear head; start from an artifact whose head holds prototypes")
    columns = slots[NAMES["bias"]].shape[0] if NAMES["bias"] in slots else 0
    if len(labels) != columns:
        raise ArtifactError(f"there are {columns} classes and {len(labels)} labels; a class can be added where each has a label")


def with_class(slots: Mapping[str, np.ndarray], examples: Sequence[np.ndarray], label: str) -> Tensors:
    """Slots of an artifact with one class more.

    The new column is the normalised mean of the normalised features, times the mean length of the
    columns that are there: p = t * m / |m| with m = mean(f / |f|) (nearest class mean on the sphere).

    Shape:
        features of one example [d]; weight [d, C] -> [d, C + 1], bias [C] -> [C + 1], cosine [1].

    Raises:
        ArtifactError: the head is there but linear.
        InputError: no example, or features without a direction.
    """
    if not len(examples):
        raise InputError(f"learning class {label!r} needs at least one example")
    features = np.stack(examples)  # (examples, d)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)  # (examples, 1)
    mean = (features / np.maximum(lengths, 1e-12)).mean(axis=0)  # (d,)
    if not np.isfinite(features).all() or (lengths == 0).any() or np.linalg.norm(mean) < 1e-6:
        raise InputError("the examples' features have no common direction; give other examples")
    if NAMES["weight"] in slots:
        weight, bias, cosine = (slots[NAMES[tensor]] for tensor in ("weight", "bias", "cosine"))
        if cosine[0] != 1.0:
            raise ArtifactError("the head of this artifact is linear (cosine 0); classes can be learned where the head holds prototypes (cosine 1)")
    else:
        weight, bias, cosine = np.zeros((len(mean), 0), np.float32), np.zeros(0, np.float32), np.ones(1, np.float32)
    temperature = np.linalg.norm(weight, axis=0).mean() if weight.shape[1] else TEMPERATURE
    column = (temperature * mean / np.linalg.norm(mean)).astype(weight.dtype)
    head = {"weight": np.column_stack([weight, column]), "bias": np.append(bias, bias.dtype.type(0)), "cosine": cosine}
    return {**slots, **{NAMES[tensor]: value for tensor, value in head.items()}}
