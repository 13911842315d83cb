"""What a method is to the rest of the house, and what every method gets for free.

A method builds a form on a model. The plan, the class head, training, lowering, saving and export follow
from the form alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from polyadapt.artifact import Artifact
from polyadapt.edits import Edit, Form, kind_of
from polyadapt.edits.form import Composite
from polyadapt.edits.kinds.module import structure_of
from polyadapt.errors import PluginError, UserError
from polyadapt.methods.card import MethodCard
from polyadapt.methods.head import HeadForm
from polyadapt.methods.separated import Separated
from polyadapt.model import Model
from polyadapt.options import read_options
from polyadapt.sites import OpPort, matches


class Method:
    """Base of methods. Subclasses implement `form`; `fit` only where the common loop does not do."""

    card: MethodCard

    def __init__(self, card: MethodCard) -> None:
        self.card = card

    def form(self, model: Model, options: Any, generator: torch.Generator) -> Form:
        """A fresh training form for a model, seeded by `generator`; nothing is attached yet."""
        raise PluginError(f"method {self.card.id!r} does not implement form")

    def build(self, model: Model, options: Any, generator: torch.Generator) -> Form:
        """The form with the class head that the model's task needs."""
        self._check(model)
        form = self.form(model, options, generator)
        if model.ports.head is None or not model.task.labels:
            return form
        own = model.module.head if model.task.labels == model.own_labels else None
        head = HeadForm(model.ports.head.in_features, len(model.task.labels), getattr(options, "head", "linear"), generator, own)
        return Composite([form, head])

    def structure(self, edit: Edit, options: Any) -> nn.Module:
        """The live module of an edit of kind `module` that was read from a file.

        Only its structure counts: sizes follow from the shapes of the edit's tensors and from the options, values are the
        edit's own. Methods that make such edits implement it; no code or name from the file has a part in it.
        """
        raise PluginError(f"method {self.card.id!r} makes modules of its own and does not implement structure, so what it saved cannot be loaded")

    def separated(self, artifact: Artifact, model: Model) -> Separated | None:
        """What an artifact of several, such as a language each, comes to on a model; None for any other, which is used as it is. Asked where the card `separates`."""
        return None

    def restored(self, artifact: Artifact) -> Artifact:
        """An artifact from a file with the live modules of its `module` edits; any other artifact as it is.

        Raises:
            UserError: options or tensors are not those of a module of this method.
            PluginError: the method cannot rebuild its modules.
        """
        if not needs_structure(artifact):
            return artifact
        options = read_options(self.card.options, artifact.options, f"saved options of method {self.card.id!r}")
        edits = []
        for edit in artifact.edits:
            if edit.kind == "module" and edit.structure is None:
                edit = replace(edit, structure=self.structure(edit, options).eval().requires_grad_(False))
                structure_of(edit)
            edits.append(edit)
        return artifact.with_edits(edits)

    def plan(self, model: Model, options: Any, seed: int = 0) -> Plan:
        """What would be attached and trained; nothing is."""
        form = self.build(model, options, torch.Generator().manual_seed(seed))
        return Plan.of(self.card, form, model)

    def _check(self, model: Model) -> None:
        families = self.card.families
        if "any" not in families and model.family.card.id not in families:
            raise UserError(f"method {self.card.id!r} does not fit family {model.family.card.id!r}; it fits: {', '.join(families)}")
        for port in self.card.ports:
            if not model.ports.of(port):
                advice = "; load it with own_head = false" if (port, model.task.kind) == ("head", "ctc") else ""  # it scores symbols of its own
                raise UserError(f"method {self.card.id!r} needs {port} ports, and family {model.family.card.id!r} offers none for task {model.task.kind!r}{advice}")


@dataclass(frozen=True)
class PlanRow:
    """One edit of a plan. `bytes` counts float32 values of its slots."""

    site: str
    kind: str
    variant: str
    shapes: dict[str, tuple[int, ...]]
    values: int
    folds: bool

    def to_dict(self) -> dict[str, Any]:
        return {
            "site": self.site,
            "kind": self.kind,
            "variant": self.variant,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "values": self.values,
            "folds": self.folds,
        }


@dataclass(frozen=True)
class Plan:
    """What a method would do to a model."""

    method: str
    rows: tuple[PlanRow, ...]
    trainable: int
    base: int
    slot_bytes: int
    identity_at_start: str
    trains_base: bool = False

    @classmethod
    def of(cls, card: MethodCard, form: Form, model: Model) -> Plan:
        """Describe a form that has been built for a model."""
        rows = tuple(_row(edit) for edit in form.edits())
        base = sum(parameter.numel() for parameter in model.backbone.parameters())
        own = sum(parameter.numel() for parameter in form.parameters() if parameter.requires_grad)
        return cls(card.id, rows, own + form.base_values(), base, 4 * sum(row.values for row in rows), card.identity_at_start or form.moves_at_start, form.trains_base)

    @property
    def share(self) -> float:
        """Trainable values as a share of the base."""
        return self.trainable / self.base if self.base else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "trainable": self.trainable,
            "base": self.base,
            "share": self.share,
            "slot_bytes": self.slot_bytes,
            "identity_at_start": self.identity_at_start or "yes",
            "trains_base": self.trains_base,
            "rows": [row.to_dict() for row in self.rows],
        }


def _row(edit: Edit) -> PlanRow:
    shapes = {name: tuple(value.shape) for name, value in edit.tensors.items()}
    return PlanRow(edit.site, edit.kind, edit.variant, shapes, sum(value.numel() for value in edit.tensors.values()), kind_of(edit.kind).folds)


def needs_structure(artifact: Artifact) -> bool:
    """Whether an artifact holds modules whose structure its file does not."""
    return any(edit.kind == "module" and edit.structure is None for edit in artifact.edits)


def load_method(card: MethodCard) -> Method:
    """Import the class that a card names.

    Raises:
        PluginError: the module or the class is not there, or its import fails.
    """
    module_name, _, class_name = card.implementation.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"method {card.id!r}: cannot import {card.implementation} ({error})") from error
    method = cls(card)
    if not isinstance(method, Method):
        raise PluginError(f"method {card.id!r}: {card.implementation} is not a polyadapt.methods.base.Method")
    return method


def usual_sites(model: Model, given: Sequence[str], kind: str, usual: Sequence[str]) -> Sequence[str]:
    """The user's sites; else the family's default for this kind of edit; else the method's usual ones."""
    return given or model.family.card.default_sites.get(kind, usual)


def present(model: Model, port: str, patterns: Sequence[str]) -> tuple[str, ...]:
    """Those of a method's usual patterns that a model has sites for; all of them where it has none, so that the message names them."""
    return tuple(pattern for pattern in patterns if any(matches(site, pattern) for site in model.ports.of(port))) or tuple(patterns)


def select_ops(model: Model, patterns: Sequence[str], kinds: Sequence[str] = ("linear", "conv")) -> list[Any]:
    """Op ports at the sites that match, of the given kinds of modules, in the backbone's order.

    Raises:
        UserError: nothing matches, or what matches is of another kind.
    """
    sites = model.ports.select("op", patterns)
    ports = [model.ports.ops[site] for site in sites if model.ports.ops[site].kind in kinds]
    if not ports:
        found = sorted({model.ports.ops[site].kind for site in sites})
        raise UserError(f"sites {', '.join(patterns)} are {', '.join(found)} ops; this method takes {', '.join(kinds)} ops")
    return ports


def weight_rows(port: OpPort) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weight of an op as [out, in] and its bias [out], rows of the site only, sharing the base's memory."""
    module: Any = port.module
    weight = module.weight.detach()
    weight = weight.T if port.transposed else weight.reshape(weight.shape[0], -1)  # (out, in)
    bias = getattr(module, "bias", None)
    bias = None if bias is None else bias.detach()
    if port.rows is None:
        return weight, bias
    start, stop = port.rows
    return weight[start:stop], None if bias is None else bias[start:stop]
