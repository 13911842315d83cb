"""Artifacts as tensors for slots: read, checked against the bundle, scaled, and kept ready for a session."""

from __future__ import annotations

import math
import numbers
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyadapt_runtime.errors import ArtifactError
from polyadapt_runtime.manifest import Manifest, Slot
from polyadapt_runtime.session import Session
from polyadapt_runtime.tensors import Tensors

# What a call names: one artifact, several with the weights of their effects, in a bank one for each row; None is the base.
Artifact = str | Mapping[str, float]
Choice = Artifact | Sequence[str | None] | None

# Which tensors of a kind carry its effect as a factor. `scale` and `mask` are apart: their neutral value is 1.
_FACTORS = {"lowrank": ("b",), "shift": ("b",), "bottleneck": ("up", "up_bias", "skip"), "cross": ("scale",)}


Key = tuple[tuple[str, float], ...]  # names of artifacts with their weights


@dataclass(frozen=True)
class ArtifactInfo:
    """What is known of an artifact. `source` is `bundle`, `file`, `learned` or `mixed`; `condition` are inputs of its own, such as its speaker vector."""

    name: str
    method: str
    labels: tuple[str, ...]
    slots: tuple[str, ...]
    source: str
    metrics: Mapping[str, Any] = field(default_factory=dict)
    condition: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


def check_fit(manifest: Manifest, base_id: str, shapes: Mapping[str, tuple[tuple[int, ...], str]], what: str) -> None:
    """Refuse tensors that this bundle cannot take.

    Args:
        manifest: of the bundle.
        base_id: that the artifact was made for.
        shapes: (shape, dtype) of its tensors by slot name.
        what: how messages call the artifact.

    Raises:
        ArtifactError: another base, slots that the bundle lacks, half a group, a wrong shape or dtype.
    """
    if base_id != manifest.base_id:
        raise ArtifactError(f"{what} was made for base {base_id[:12]}, this bundle holds base {manifest.base_id[:12]}; use the bundle of its own base")
    if manifest.form != "slots":
        raise ArtifactError(f"{what} needs slots, but this bundle is {manifest.form}; export it with form='slots'")
    if missing := sorted(set(shapes) - set(manifest.slots)):
        raise ArtifactError(f"{what} needs slots that this bundle does not have: {', '.join(missing)}; export the bundle again with this artifact among its artifacts")
    check_groups(manifest, shapes, what)
    for group in {manifest.slots[name].group for name in shapes}:
        sizes: dict[str, int] = {}
        for name in manifest.groups[group]:
            _check_shape(manifest.slots[name], *shapes[name], sizes, what)


def check_groups(manifest: Manifest, names: Iterable[str], what: str) -> None:
    """All slots of a group are given, or none: half a group would give the base without a word.

    Raises:
        ArtifactError: half a group.
    """
    given = set(names)
    for group, members in manifest.groups.items():
        lacking = [name for name in members if name not in given]
        if lacking and len(lacking) < len(members):
            raise ArtifactError(f"{what} gives only a part of {group}: {', '.join(lacking)} missing; all slots of a group are given or none")


def scaled(tensors: Mapping[str, np.ndarray], slots: Mapping[str, Slot], weight: float, what: str) -> Tensors:
    """`weight` times the effect of an artifact; with weight 1 the very tensors.

    Raises:
        ArtifactError: a kind whose effect has no amount, or a weight that is no number.
    """
    check_scale(weight)
    if weight == 1.0:
        return dict(tensors)
    result: Tensors = {}
    for name, value in tensors.items():
        slot, factor = slots[name], value.dtype.type(weight)
        if slot.kind in ("scale", "mask"):
            result[name] = 1 + factor * (value - 1)
        elif slot.kind in _FACTORS:
            result[name] = value * factor if slot.tensor in _FACTORS[slot.kind] else value
        else:
            raise ArtifactError(f"{what} has an edit of kind {slot.kind!r} at {slot.site}, which cannot be scaled; call with scale=1.0")
    if both := products([slots[name] for name in tensors]):
        raise ArtifactError(f"{what} scales an op and changes its weights at once (DoRA) at {both[0]}, so no factor gives a share of its effect; call with scale=1.0")
    return result


def check_scale(scale: Any) -> None:
    """Refuse what is no amount of an effect.

    Raises:
        ArtifactError: no number, or one that is not finite.
    """
    if isinstance(scale, bool) or not isinstance(scale, numbers.Real) or not math.isfinite(scale):
        raise ArtifactError(f"scale must be a finite number, got {scale!r}")


def products(slots: Iterable[Slot], others: Iterable[Slot] | None = None) -> list[str]:
    """Sites at which some slots scale what the others, by default the same, change in the weights: a scale multiplies all that comes before it there."""
    first = list(slots)
    changed = {slot.site for slot in (first if others is None else others) if slot.kind in ("lowrank", "mask")}
    return sorted({slot.site for slot in first if slot.kind == "scale"} & changed)


class SlotCache:
    """OrtValues of artifacts, the least recently used ones dropped beyond a number of bytes. Safe for threads."""

    def __init__(self, session: Session, limit_bytes: int) -> None:
        self._session, self._limit = session, limit_bytes
        self._entries: OrderedDict[Key, tuple[dict[str, Any], int]] = OrderedDict()
        self._lock = threading.Lock()
        self.held_bytes = 0

    def get(self, key: Key) -> dict[str, Any] | None:
        """The values kept under a key, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: Key, tensors: Tensors) -> dict[str, Any]:
        """Make values of tensors and keep them. What does not fit at all is handed out without being kept."""
        values = {name: self._session.value(array, resident=True) for name, array in tensors.items()}
        size = sum(array.nbytes for array in tensors.values())
        with self._lock:
            if key in self._entries or size > self._limit:
                return self._entries[key][0] if key in self._entries else values
            self._entries[key] = (values, size)
            self.held_bytes += size
            while self.held_bytes > self._limit:
                self.held_bytes -= self._entries.popitem(last=False)[1][1]
        return values


def _check_shape(slot: Slot, shape: tuple[int, ...], dtype: str, sizes: dict[str, int], what: str) -> None:
    """Compare one tensor with its slot; `sizes` collects what the symbols of the group stand for."""
    fits = len(shape) == len(slot.shape)
    for expected, found in zip(slot.shape, shape, strict=False):
        fits = fits and (found == expected if isinstance(expected, int) else found == sizes.setdefault(expected, found))
    if not fits:
        symbols = "".join(f", {name} = {size}" for name, size in sizes.items())
        raise ArtifactError(f"{what}: slot {slot.name} takes shape [{', '.join(map(str, slot.shape))}]{symbols}, found {list(shape)}; it was made for another model")
    if dtype != slot.dtype:
        raise ArtifactError(f"{what}: slot {slot.name} takes {slot.dtype}, found {dtype}; convert the artifact or export the bundle in its dtype")
