"""Forms: differentiable parametrisations of edits.

A method trains whatever parameters it likes; `edits()` says what they amount to in the closed
list. Training, inference and export all go through the same edits, so lowering a trained
method is calling `edits()` once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from polyadapt.edits.edit import Edit, refuse_repeated, slot_name
from polyadapt.sites import module_name

if TYPE_CHECKING:
    from polyadapt.edits.patches import BaseParameters


class Form(nn.Module):
    """Base of training forms. Subclasses hold parameters and implement `edits`.

    `trains_base` is True for forms that move the base's own weights (full fine-tuning). `moves_at_start` says why a fresh form changes
    what the base answers where options make it so; it is empty where the card's word holds. `labels` are the classes of a form with a
    class head that came from an artifact.
    """

    trains_base = False
    moves_at_start = ""
    labels: tuple[str, ...] = ()

    def edits(self) -> list[Edit]:
        """The edits of the present parameters, differentiable with respect to them.

        Keys (site, kind, variant) are the same at every call.
        """
        raise TypeError(f"{type(self).__name__} must implement edits()")

    def switch_on(self, base: BaseParameters) -> None:
        """Called when the form becomes active. Forms with patches change the base here, wholly or, when they raise, not at all."""

    def switch_off(self, base: BaseParameters) -> None:
        """Called when the form stops being active; undoes `switch_on` bit for bit."""

    def base_values(self) -> int:
        """How many of the base's own values the form trains."""
        return 0

    def parameters_of_base(self) -> list[nn.Parameter]:
        """The base's own parameters that the form trains, each once."""
        return []

    def lower(self) -> list[Edit]:
        """The trained edits as plain tensors."""
        with torch.no_grad():
            return [detached(edit) for edit in self.edits()]

    def trained(self) -> dict[str, torch.Tensor]:
        """Everything that training changed, for checkpoints."""
        return {name: value.detach() for name, value in self.state_dict().items()}

    def load_trained(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """The inverse of `trained`."""
        self.load_state_dict(dict(tensors))


class Lowered(Form):
    """Edits as they are: every tensor is a parameter of the form (trainable on request).

    Raises:
        UserError: two edits have one key.
    """

    def __init__(self, edits: Iterable[Edit], labels: Sequence[str] = (), trainable: bool = False) -> None:
        super().__init__()
        self.labels = tuple(labels)
        edits = list(edits)
        refuse_repeated(edits)
        self.slots = nn.ParameterDict()
        self.structures = nn.ModuleDict()
        self._keys = []
        for edit in edits:
            self._keys.append((edit.site, edit.kind, edit.variant, tuple(edit.tensors)))
            for tensor, value in edit.tensors.items():
                name = module_name(slot_name(edit.site, edit.kind, edit.variant, tensor))
                self.slots[name] = nn.Parameter(value.detach().clone(), requires_grad=trainable and value.is_floating_point())
            if edit.structure is not None:
                self.structures[module_name(edit.key)] = copy.deepcopy(edit.structure)

    def edits(self) -> list[Edit]:
        return [edit for edit in self._all() if edit.kind != "patch"]

    def lower(self) -> list[Edit]:
        return [detached(edit) for edit in self._all()]

    def switch_on(self, base: BaseParameters) -> None:
        base.add([edit for edit in self._all() if edit.kind == "patch"], owner=self)

    def switch_off(self, base: BaseParameters) -> None:
        base.restore(owner=self)

    def _all(self) -> list[Edit]:
        return [
            Edit(site, kind, {name: self.slots[module_name(slot_name(site, kind, variant, name))] for name in names}, variant, structure=self._structure(site, kind, variant))
            for site, kind, variant, names in self._keys
        ]

    def _structure(self, site: str, kind: str, variant: str) -> nn.Module | None:
        key = module_name(Edit(site, kind, {}, variant).key)
        return self.structures[key] if key in self.structures else None  # noqa: SIM401 (a ModuleDict has no get)


class Composite(Form):
    """Several forms as one, in order."""

    def __init__(self, parts: Iterable[Form]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.trains_base = any(part.trains_base for part in self._forms())
        self.moves_at_start = next((part.moves_at_start for part in self._forms() if part.moves_at_start), "")

    def _forms(self) -> list[Form]:
        return [part for part in self.parts if isinstance(part, Form)]

    def edits(self) -> list[Edit]:
        return [edit for part in self._forms() for edit in part.edits()]

    def lower(self) -> list[Edit]:
        return [edit for part in self._forms() for edit in part.lower()]

    def base_values(self) -> int:
        return sum(part.base_values() for part in self._forms())

    def parameters_of_base(self) -> list[nn.Parameter]:
        return list({id(parameter): parameter for part in self._forms() for parameter in part.parameters_of_base()}.values())

    def switch_on(self, base: BaseParameters) -> None:
        done: list[Form] = []
        try:
            for part in self._forms():
                part.switch_on(base)
                done.append(part)
        except Exception:
            for part in reversed(done):
                part.switch_off(base)
            raise

    def switch_off(self, base: BaseParameters) -> None:
        for part in reversed(self._forms()):
            part.switch_off(base)

    def trained(self) -> dict[str, torch.Tensor]:
        return {f"{index}.{name}": value for index, part in enumerate(self._forms()) for name, value in part.trained().items()}

    def load_trained(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for index, part in enumerate(self._forms()):
            part.load_trained({name.removeprefix(f"{index}."): value for name, value in tensors.items() if name.startswith(f"{index}.")})


def detached(edit: Edit) -> Edit:
    """A copy of an edit with tensors of its own, outside any gradient graph; a live module is copied in evaluation mode."""
    structure = None if edit.structure is None else copy.deepcopy(edit.structure).eval().requires_grad_(False)
    return Edit(edit.site, edit.kind, {name: value.detach().clone() for name, value in edit.tensors.items()}, edit.variant, structure=structure)
