"""`module`: any nn.Module at a span, in parallel to it: h + f(x). For what no other kind expresses.

The tensors are the module's floating-point state, so their shapes are fixed; dots in its names become hyphens, as a
slot's name ends behind its last dot. The structure comes with the edit as a live module. A file holds tensors only:
the method that made the edit rebuilds the structure (`Method.structure`), never the file.

A variant is the method's name, and behind a hyphen the place where that is not `parallel`: `conformer-sequential+skip`.
The number `skip` of a place stands beside the module's tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt.edits.kinds.kind import Kind, Tensors, normal
from polyadapt.edits.kinds.place import PARALLEL, PLACES, SKIP, has_skip, placed, reads_output
from polyadapt.errors import UserError

if TYPE_CHECKING:
    from polyadapt.edits.edit import Edit


class Module(Kind):
    """Any module beside a span."""

    name = "module"
    port = "span"
    order = 4
    no_rows = "its operations take one weight for the whole batch"

    def place(self, variant: str) -> str:
        return place_of_module(variant)

    def made(self, edit: Edit, u: torch.Tensor) -> torch.Tensor:
        structure = structure_of(edit)
        state = {name: edit.tensors[tensor_name(name)] for name in floating_state(structure)}
        if torch.is_autocast_enabled(u.device.type):
            result: torch.Tensor = torch.func.functional_call(structure, state, (u,))
            return result
        own = next(iter(floating_state(structure).values())).dtype
        result = torch.func.functional_call(structure, {name: value.to(own) for name, value in state.items()}, (u.to(own),))
        return result.to(u.dtype)

    def apply(self, edit: Edit, x: torch.Tensor, h: torch.Tensor, port: Any, dropout: float = 0.0) -> torch.Tensor:
        place = place_of_module(edit.variant)
        u = h if reads_output(place) else x
        return placed(place, u, self.made(edit, F.dropout(u, dropout)), h, None if (skip := edit.tensors.get(SKIP)) is None else skip.to(h.dtype))


def module_variant(method: str, place: str) -> str:
    """Variant of a method's modules at a place."""
    return method if place == PARALLEL else f"{method}-{place}"


def place_of_module(variant: str) -> str:
    """The place in a variant."""
    place = variant.rpartition("-")[2]
    return place if place in PLACES else PARALLEL


def tensors_of(structure: nn.Module) -> dict[str, torch.Tensor]:
    """A module's floating-point parameters and persistent buffers as an edit's tensors, live and differentiable."""
    return {tensor_name(name): value for name, value in floating_state(structure).items()}


def floating_state(structure: nn.Module) -> dict[str, torch.Tensor]:
    """The same under the module's own names. Counters and other integers are no part of what is trained."""
    return {name: value for name, value in structure.state_dict(keep_vars=True).items() if value.is_floating_point()}


def tensor_name(name: str) -> str:
    """Name of an edit's tensor for a name of the module's state: `down.weight` is `down-weight`."""
    return name.replace(".", "-")


def structure_of(edit: Edit) -> nn.Module:
    """The live module of an edit.

    Raises:
        UserError: it was read from a file and not rebuilt, or its state is not what the tensors are.
    """
    if edit.structure is None:
        raise UserError(
            f"{edit.key} was read from a file, which holds its tensors alone; load the artifact by polyadapt.load_artifact(folder), which asks its method for the module"
        )
    expected = {name: tuple(value.shape) for name, value in tensors_of(edit.structure).items()}
    if has_skip(place_of_module(edit.variant)):
        expected[SKIP] = (1,)
    found = {name: tuple(value.shape) for name, value in edit.tensors.items()}
    if expected != found:
        odd = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))[0]
        raise UserError(f"{edit.key}.{odd}: the module has shape {expected.get(odd, 'none')}, found {found.get(odd, 'none')}")
    return edit.structure


def silent(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Tensors with which a module adds nothing, provided it ends in something linear; an export's gate sees whether it does."""
    return {name: torch.zeros_like(value) for name, value in tensors.items()}


def seeded_state(edit: Edit, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Seeded parameters without a zero factor beside the edit's own buffers (a variance stays positive)."""
    structure = structure_of(edit)
    trained = {tensor_name(name) for name, _ in structure.named_parameters()}
    return {name: normal(tuple(value.shape), _spread(value), generator) if name in trained else value.detach().clone() for name, value in edit.tensors.items()}


def _spread(value: torch.Tensor) -> float:
    """1 / sqrt(inputs) of a weight [out, in, …]; a third for a vector."""
    return (value.numel() / value.shape[0]) ** -0.5 if value.dim() > 1 else 0.3
