"""Artifacts: what a method yields, in one envelope for all kinds.

A folder with `artifact.json` (what it is, which base it fits, where it comes from) and
`artifact.safetensors` (the lowered edits by slot name, and tensors of the method's own under `own/`). It holds
the lowered form, so it loads without the plugin whose method made it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from polyadapt.edits import Edit, Lowered, attachments_of, edits_from_slots, slots_of
from polyadapt.edits.attach import HOLDER, Attachments, check_edits
from polyadapt.edits.edit import refuse_repeated
from polyadapt.edits.merge import merge
from polyadapt.edits.patches import BaseParameters
from polyadapt.errors import UserError
from polyadapt.files import read_json, replacing_directory, sha256_file, write_json
from polyadapt.model import Head, Model, build_model
from polyadapt.preprocessing import differing, preprocessing
from polyadapt.sites import tensor_bytes
from polyadapt.tensors import load_tensors, save_tensors
from polyadapt_runtime.seal import finite

FORMAT = 1
ENVELOPE: dict[str, type] = {
    **dict.fromkeys(("method", "base_id", "family", "task", "kind", "dtype", "sha256"), str),
    **dict.fromkeys(("labels", "slots"), list),
    **dict.fromkeys(("options", "provenance"), dict),
}
IN_WORDS: dict[type, str] = {str: "text", list: "a list of texts", dict: "an object"}
KINDS_OF_ARTIFACT = ("adapter", "classifier", "policy", "program")

_log = logging.getLogger(__name__)

CONDITION = "condition."  # before the names of inputs, among an artifact's own tensors


@dataclass(frozen=True)
class Artifact:
    """Edits that fit one base, with their provenance.

    Attributes:
        method: id of the method that made it.
        options: the method's options as given and defaulted.
        base_id: identity of the base it was made for.
        labels: class names of its head, in order; empty when it has none.
        own: tensors that are no edits (classifier state, for instance).
        provenance: seed, data hashes, metrics, library versions; no path, user or host.
    """

    method: str
    base_id: str
    family: str
    task: str
    edits: tuple[Edit, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    kind: str = "adapter"
    dtype: str = "float32"
    own: Mapping[str, torch.Tensor] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def conditions(self) -> dict[str, torch.Tensor]:
        """Values that it brings for inputs of the model, such as the vector of its speaker, by the input's name."""
        return {name.removeprefix(CONDITION): value for name, value in self.own.items() if name.startswith(CONDITION)}

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites with an edit, each once."""
        return tuple(dict.fromkeys(edit.site for edit in self.edits))

    @property
    def slots(self) -> dict[str, torch.Tensor]:
        """Tensors of all edits by slot name."""
        return slots_of(self.edits)

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return tensor_bytes([*self.slots.values(), *self.own.values()])

    def with_edits(self, edits: Iterable[Edit]) -> Artifact:
        """The same envelope around other edits."""
        return replace(self, edits=tuple(edits))

    def save(self, directory: Path | str) -> Path:
        """Write the folder, whole or not at all.

        Raises:
            UserError: something else than an artifact lies there, or the place cannot be written.
        """
        target = Path(directory)
        with replacing_directory(target, "artifact.json") as staging:
            tensors = {**self.slots, **{f"own/{name}": value for name, value in self.own.items()}}
            save_tensors(staging / "artifact.safetensors", tensors)
            write_json(staging / "artifact.json", self._envelope(sha256_file(staging / "artifact.safetensors")))
        return target

    @classmethod
    def load(cls, directory: Path | str) -> Artifact:
        """Read a folder that `save` wrote.

        Raises:
            UserError: not an artifact, another format, a broken or incomplete envelope, or tensors that are truncated or altered.
        """
        folder = Path(directory)
        if not (folder / "artifact.json").is_file():
            raise UserError(f"{folder} is not an artifact: it has no artifact.json; give the folder that `adapt` wrote")
        head = _read_envelope(folder / "artifact.json")
        weights = folder / "artifact.safetensors"
        if not weights.is_file() or sha256_file(weights) != head["sha256"]:
            raise UserError(f"{weights} is missing, truncated or altered (its sha256 is not the recorded one); copy the artifact again")
        tensors = load_tensors(weights, "artifact")
        own = {name.removeprefix("own/"): value for name, value in tensors.items() if name.startswith("own/")}
        absent = [name for name in head["slots"] if name not in tensors]
        if absent:
            raise UserError(f"{folder / 'artifact.json'} names {absent[0]}, which {weights.name} does not hold; copy the artifact again")
        slots = {name: tensors[name] for name in head["slots"]}
        return cls(
            method=head["method"],
            base_id=head["base_id"],
            family=head["family"],
            task=head["task"],
            edits=tuple(edits_from_slots(slots)),
            options=head["options"],
            labels=tuple(head["labels"]),
            kind=head["kind"],
            dtype=head["dtype"],
            own=own,
            provenance=head["provenance"],
        )

    def check_base(self, base_id: str, reference: str) -> None:
        """Refuse another base.

        Raises:
            UserError: with both identities.
        """
        if self.base_id != base_id:
            raise UserError(
                f"this {self.method} artifact was made for base {self.base_id[:12]} (family {self.family}), but {reference} is {base_id[:12]}; load the base that it was trained on"
            )

    def attach(self, model: Model, name: str = "adapter", activate: bool = True) -> Attachments:
        """Put the edits onto a model under a name.

        Raises:
            UserError: another base, a missing port, a shape that does not fit.
        """
        self.check_base(model.base_id, model.reference)
        found = str(next(model.module.parameters()).dtype).removeprefix("torch.")
        if found != self.dtype:
            _log.warning("artifact was trained in %s, the model is in %s: outputs differ slightly", self.dtype, found)
        if changed := differing(self.provenance.get("inputs", {}), preprocessing(model)):
            _log.warning("this %s artifact was trained on inputs that were made otherwise (%s); load the model by the same options", self.method, "; ".join(changed[:3]))
        attachments = attachments_of(model.module, model.ports, model.backbone)
        form = Lowered(self.edits, self.labels).to(model.device)
        attachments.add(name, form, activate)
        return attachments

    def merge(self, model: Model, untie: bool = False) -> Model:
        """Fold the edits into the model's weights for good.

        Patches are added to the parameters and a class head takes the place of the model's. The weights are shared
        with `model`, which is no longer the base that it says it is: use what is returned.

        Args:
            model: the base that the artifact was made for, with nothing attached.
            untie: give a weight that several modules share a copy of its own at the edited one.

        Returns:
            The model under its new identity, with the artifact's labels.

        Raises:
            UserError: another base, something still attached, or an edit that cannot be folded; nothing was changed.
        """
        self.check_base(model.base_id, model.reference)
        if hasattr(model.module, HOLDER):
            raise UserError(f"detach {', '.join(attachments_of(model.module).names)} before merging: what is attached and what is merged would mix")
        refuse_repeated(self.edits)
        patches, others = ([edit for edit in self.edits if (edit.kind == "patch") == is_patch] for is_patch in (True, False))
        check_edits(others, model.ports)
        BaseParameters(model.backbone, model.ports).fitting(patches)  # before anything is folded
        merge(model.ports, [edit for edit in others if edit.kind != "prototypes"], untie)
        BaseParameters(model.backbone, model.ports).add(patches, owner=self)
        for edit in self.edits:
            if edit.kind == "prototypes" and model.module.head is not None:
                model.module.head = Head(edit.tensors["weight"], edit.tensors["bias"], bool(edit.tensors["cosine"])).to(model.device).eval()
        return build_model(
            model.family,
            model.backbone,
            replace(model.task, labels=self.labels or model.task.labels),
            model.processor,
            reference=model.reference,
            front=model.module.front,
            head=model.module.head,
            licences=model.licences,
            generation=model.generation,
        )

    def _envelope(self, digest: str) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": self.kind,
            "method": self.method,
            "options": dict(self.options),
            "base_id": self.base_id,
            "family": self.family,
            "task": self.task,
            "dtype": self.dtype,
            "labels": list(self.labels),
            "sites": list(self.sites),
            "slots": list(self.slots),
            "sha256": digest,
            "provenance": finite(dict(self.provenance)),
        }


def _read_envelope(path: Path) -> dict[str, Any]:
    """What `artifact.json` says, each part of the type that it has to be.

    Raises:
        UserError: another format, or a part that is missing or of another type.
    """
    head = read_json(path, "artifact")
    if not isinstance(head, dict):
        raise UserError(f"{path} holds a {type(head).__name__}, expected an object; copy the artifact again")
    if head.get("format") != FORMAT:
        raise UserError(f"{path.parent}: artifact format {head.get('format')!r}, this version reads format {FORMAT}; update polyadapt")
    lacking = [name for name in ENVELOPE if name not in head]
    if lacking:
        raise UserError(f"{path} lacks {', '.join(lacking)}; copy the artifact again")
    for name, kind in ENVELOPE.items():
        if not isinstance(head[name], kind) or (kind is list and not all(isinstance(part, str) for part in head[name])):
            raise UserError(f"{path}: {name} is {head[name]!r:.60}, expected {IN_WORDS[kind]}; copy the artifact again")
    if head["kind"] not in KINDS_OF_ARTIFACT:
        raise UserError(f"{path}: {head['kind']!r} is no kind of artifact; there are {', '.join(KINDS_OF_ARTIFACT)}; update polyadapt or copy the artifact again")
    return head


def detach(model: Model, name: str | None = None) -> None:
    """Remove one attached artifact, or all of them; the model is as before, bit for bit."""
    attachments = attachments_of(model.module)
    if name is None:
        attachments.remove_all()
    else:
        attachments.remove(name)
