"""The artifacts of a bundle: listed in the manifest, loaded from outside, or learned while running."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyadapt_runtime.errors import ArtifactError, nearest
from polyadapt_runtime.files import check_plain, sha256_file
from polyadapt_runtime.manifest import Manifest, artifact_entry, need, read_table
from polyadapt_runtime.mixing import mixed
from polyadapt_runtime.session import Session
from polyadapt_runtime.slots import ArtifactInfo, Choice, SlotCache, check_fit, check_scale, scaled
from polyadapt_runtime.tensors import Tensors, read_safetensors, write_safetensors

# A folder with an artifact: what core saves, or what a bundle holds for one of its own.
OWN = "own/condition."  # before the names of inputs that an artifact brings, in the file of one outside a bundle
_LAYOUTS = (("artifact.json", "artifact.safetensors"), ("slots.json", "slots.safetensors"))


@dataclass(frozen=True)
class Held:
    """An artifact whose tensors are in memory, because no listed file has them."""

    info: ArtifactInfo
    tensors: Tensors
    head: dict[str, Any]


class ArtifactStore:
    """Names to tensors. Adding is safe beside running calls; what is there never changes."""

    def __init__(self, root: Path, manifest: Manifest, session: Session, cache_bytes: int, verify: bool) -> None:
        self._root, self._manifest, self._verify = root, manifest, verify
        self._cache = SlotCache(session, cache_bytes)
        self._held: dict[str, Held] = {}
        self._lock = threading.Lock()

    def infos(self) -> dict[str, ArtifactInfo]:
        """What is known of every artifact, the bundle's own first."""
        own = {name: ArtifactInfo(name, entry.method, entry.labels, entry.slots, "bundle", entry.metrics, entry.condition) for name, entry in self._manifest.artifacts.items()}
        return {**own, **{name: held.info for name, held in dict(self._held).items()}}

    def info(self, name: str) -> ArtifactInfo:
        """What is known of one artifact.

        Raises:
            ArtifactError: there is none of that name.
        """
        found = self.infos()
        if name not in found:
            raise ArtifactError(f"no artifact {name!r} in this bundle{nearest(name, found)}")
        return found[name]

    def values(self, artifact: Choice, scale: float) -> dict[str, Any]:
        """The artifact as OrtValues by slot name; nothing for the base.

        Raises:
            ArtifactError: unknown, does not fit, or cannot be scaled or mixed.
        """
        check_scale(scale)
        if artifact is None:
            if scale != 1.0:
                raise ArtifactError(f"scale={scale} without an artifact; name the artifact whose effect is meant")
            return {}
        weights = {name: weight * scale for name, weight in self._weights(artifact).items()}
        key = tuple(weights.items())
        found = self._cache.get(key)
        return self._cache.put(key, self._weighed(weights)) if found is None else found

    def condition(self, artifact: Choice) -> dict[str, np.ndarray]:
        """Inputs that an artifact brings of its own, such as the vector of its speaker; of a mix their weighted mean. A merged graph has one artifact.

        Raises:
            ArtifactError: unknown, or weights whose sum is 0.
        """
        merged = dict.fromkeys(self._manifest.artifacts, 1.0) if self._manifest.form == "merged" else {}
        weights = merged if artifact is None else self._weights(artifact)
        found: dict[str, np.ndarray] = {}
        for key in dict.fromkeys(key for name in weights for key in self.info(name).condition):
            parts = {name: self.info(name).condition[key] for name in weights if key in self.info(name).condition}
            if not (total := sum(weights[name] for name in parts)):
                raise ArtifactError(f"the weights of {' and '.join(parts)} add up to 0, so their {key} has no mean; give it as condition")
            found[key] = np.sum([weights[name] / total * np.array(values) for name, values in parts.items()], axis=0).astype(np.float32)
        return found

    def labels(self, artifact: Choice) -> tuple[str, ...]:
        """Class names of the head that answers: those of the one artifact that brings some, else the bundle's."""
        names = () if artifact is None else tuple(self._weights(artifact))
        return next((labels for name in names if (labels := self.info(name).labels)), self._manifest.labels)

    def mix(self, weights: Mapping[str, float], name: str | None) -> str:
        """Hold the weighted sum of several artifacts' effects.

        Raises:
            ArtifactError: nothing to mix, unknown, a name that is taken, or edits that cannot be weighed or summed.
        """
        chosen = self._weights(weights)
        labels = next((labels for part in chosen if (labels := self.info(part).labels)), ())
        name = name or "+".join(f"{weight:g}*{part}" for part, weight in chosen.items())
        condition = {key: tuple(value.tolist()) for key, value in self.condition(chosen).items()}
        self._hold(name, self._weighed(chosen), labels, "mix", "mixed", condition)
        return name

    def tensors(self, name: str) -> Tensors:
        """The artifact as arrays by slot name, checked against the bundle."""
        info = self.info(name)
        if name in self._held:
            return self._held[name].tensors
        entry = self._manifest.artifacts[name]
        if not entry.file and not entry.slots and self._manifest.form == "slots":
            return {}  # it brings an input alone
        if not entry.file:
            inside = "stands in this bank's graph" if self._manifest.form == "bank" else "is merged into this bundle's graph: call it without an artifact"
            raise ArtifactError(f"artifact {name!r} {inside}; for its tensors export it with form 'slots'")
        found, _ = read_safetensors(self._root / entry.file, self._manifest.files[entry.file][0] if self._verify else None)
        return self._fitting(found, info.slots, entry.base_id, f"artifact {name!r}")

    def load(self, path: Path, name: str | None) -> str:
        """Take an artifact's folder from outside.

        Raises:
            ArtifactError: no artifact, another base, missing slots, or a name that is taken.
            IntegrityError: its tensors are not those that were saved.
        """
        head_file, tensor_file = next(((path / head, path / tensors) for head, tensors in _LAYOUTS if (path / head).is_file()), (None, None))
        if head_file is None or tensor_file is None:
            raise ArtifactError(f"{path} is not an artifact: it has no artifact.json; give the folder that `adapt` or `save_artifact` wrote")
        check_plain(head_file)
        head = read_table(head_file)
        entry = artifact_entry(head, str(head_file), tensor_file.name)
        if head.get("format", 1) != 1:
            raise ArtifactError(f"{head_file}: artifact format {head['format']!r}, this version reads format 1; update polyadapt-runtime")
        # What a bundle holds for one of its own has its digest in the manifest, and no file where it has no slots; what was saved alone has it beside.
        found: Tensors = {}
        if entry.slots or head_file.name == "artifact.json":
            check_plain(tensor_file)
            found, _ = read_safetensors(tensor_file, need(head, "sha256", str, str(head_file)) if head_file.name == "artifact.json" else None)
        taken = self._fitting(found, entry.slots, entry.base_id, f"artifact {path.name!r}")
        name = name or path.name
        condition = {**entry.condition, **{key.removeprefix(OWN): tuple(value.ravel().tolist()) for key, value in found.items() if key.startswith(OWN)}}
        if reason := self._manifest.strange_condition(condition):
            raise ArtifactError(f"artifact {path.name!r} {reason}")
        self._add(name, Held(ArtifactInfo(name, entry.method, entry.labels, entry.slots, "file", entry.metrics, condition), taken, head))
        return name

    def add(self, name: str, tensors: Tensors, labels: tuple[str, ...], method: str) -> None:
        """Hold an artifact that was made here.

        Raises:
            ArtifactError: it does not fit, or the name is taken.
        """
        self._hold(name, tensors, labels, method, "learned")

    def save(self, name: str, path: Path) -> Path:
        """Write an artifact as a folder that both this package and `polyadapt` read, whole or not at all.

        Raises:
            ArtifactError: unknown, or the folder is there already.
        """
        info, tensors = self.info(name), self.tensors(name)
        if path.exists():
            raise ArtifactError(f"{path} exists; choose another folder or remove it")
        staging = path.with_name(f".{path.name}.{threading.get_ident()}.partial")
        try:
            staging.mkdir(parents=True)
            own = {OWN + key: np.array(values, np.float32) for key, values in info.condition.items()}
            write_safetensors(staging / "artifact.safetensors", {**tensors, **own})
            kept = self._held[name].head if name in self._held else {}
            head = head_of(self._manifest, info, kept, sha256_file(staging / "artifact.safetensors"))
            (staging / "artifact.json").write_text(json.dumps(head, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            staging.rename(path)
        except OSError as error:
            raise ArtifactError(f"cannot write {path}: {error.strerror or error}; nothing was left there") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return path

    def _fitting(self, found: Tensors, slots: tuple[str, ...], base_id: str, what: str) -> Tensors:
        if absent := [slot for slot in slots if slot not in found]:
            raise ArtifactError(f"{what} lists slots that its file does not hold: {', '.join(absent[:5])}; copy it again")
        taken = {slot: found[slot] for slot in slots}
        check_fit(self._manifest, base_id, {slot: (value.shape, str(value.dtype)) for slot, value in taken.items()}, what)
        if strange := [slot for slot, value in taken.items() if value.dtype.kind == "f" and not np.isfinite(value).all()]:
            raise ArtifactError(f"{what}: {strange[0]} holds numbers that are not finite; train it again")
        return taken

    def _weighed(self, weights: Mapping[str, float]) -> Tensors:
        """Tensors of one artifact with a weight, or of several in a mix."""
        parts = [(name, weight, self.tensors(name)) for name, weight in weights.items()]
        if len(parts) > 1:
            return mixed(parts, self._manifest.slots)
        name, weight, tensors = parts[0]
        return scaled(tensors, self._manifest.slots, weight, f"artifact {name!r}")

    def _hold(self, name: str, tensors: Tensors, labels: tuple[str, ...], method: str, source: str, condition: Mapping[str, tuple[float, ...]] | None = None) -> None:
        fitting = self._fitting(tensors, tuple(tensors), self._manifest.base_id, f"artifact {name!r}")
        self._add(name, Held(ArtifactInfo(name, method, labels, tuple(tensors), source, condition=condition or {}), fitting, {}))

    def _add(self, name: str, held: Held) -> None:
        with self._lock:
            if name in self._held or name in self._manifest.artifacts:
                raise ArtifactError(f"there is an artifact {name!r} already; give another name")
            self._held = {**self._held, name: held}

    def _weights(self, artifact: Choice) -> dict[str, float]:
        """Weights by name.

        Raises:
            ArtifactError: no name at all, a weight that is no number, or a list, which only banks take.
        """
        if isinstance(artifact, str):
            return {artifact: 1.0}
        if not isinstance(artifact, Mapping):
            raise ArtifactError(f"this bundle is {self._manifest.form} and takes one artifact for a call, found {artifact!r}; export it with form='bank' for one a row")
        if not artifact:
            raise ArtifactError("a mix names no artifact; give names with weights, such as {'a': 0.7, 'b': 0.3}")
        if odd := [name for name, weight in artifact.items() if isinstance(weight, bool) or not isinstance(weight, int | float)]:
            raise ArtifactError(f"the weight of {odd[0]!r} in a mix must be a number, found {artifact[odd[0]]!r}")
        return {name: float(weight) for name, weight in artifact.items()}


def head_of(manifest: Manifest, info: ArtifactInfo, kept: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """The `artifact.json` of an artifact.

    Args:
        manifest: of the bundle.
        info: what is known of it.
        kept: the table that it came with, empty where it was made here.
        digest: of its tensors' file.
    """
    slots = [manifest.slots[name] for name in info.slots]
    return {
        "format": 1,
        "kind": kept.get("kind", "adapter"),
        "method": info.method,
        "options": kept.get("options", {}),
        "base_id": manifest.base_id,
        "family": manifest.raw.get("family", ""),
        "task": manifest.task,
        "dtype": slots[0].dtype if slots else "float32",
        "labels": list(info.labels),
        "sites": list(dict.fromkeys(slot.site for slot in slots)),
        "slots": list(info.slots),
        "sha256": digest,
        "provenance": {**kept.get("provenance", {}), "saved_by": "polyadapt-runtime"},
    }
