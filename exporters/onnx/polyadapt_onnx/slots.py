"""Which slots a bundle has: the union of what its artifacts need, with identity defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from polyadapt.artifact import Artifact
from polyadapt.edits import Edit, kind_of
from polyadapt.edits.edit import group_name, slot_name
from polyadapt.edits.kinds.module import seeded_state, silent, structure_of
from polyadapt.errors import UserError
from polyadapt.sites import Ports, StreamPort


@dataclass(frozen=True)
class SlotGroup:
    """The slots of one edit: `shapes` with symbols on free axes, and the identity as default.

    `module` is an edit of kind `module` with its live module, for groups of that kind: it tells what no port can.
    """

    site: str
    kind: str
    variant: str
    shapes: Mapping[str, tuple[int | str, ...]]
    default: Mapping[str, torch.Tensor]
    module: Edit | None = None

    @property
    def key(self) -> str:
        return group_name(self.site, self.kind, self.variant)

    def names(self) -> dict[str, str]:
        """Slot name by tensor."""
        return {tensor: slot_name(self.site, self.kind, self.variant, tensor) for tensor in self.shapes}


def slot_groups(ports: Ports, artifacts: Iterable[Artifact]) -> list[SlotGroup]:
    """The union of the artifacts' edits as groups of slots; a class head is always a slot.

    Raises:
        UserError: an artifact holds a kind that has no slots, with the form that takes it, or two hold modules of different sizes at one site.
    """
    wanted: dict[tuple[str, str, str], Edit | None] = {}
    if ports.head is not None:
        wanted[("head", "prototypes", "")] = None
    for artifact in artifacts:
        for edit in artifact.edits:
            if not kind_of(edit.kind).has_slots:
                raise UserError(f"{artifact.method} changes {edit.key}, and {edit.kind} has no slots; export it with form='merged'")
            key = (edit.site, edit.kind, edit.variant)
            _refuse_other_sizes(edit, wanted.get(key))
            wanted.setdefault(key, edit if edit.kind == "module" else None)
    return [slot_group(ports, *key) if module is None else module_group(module) for key, module in wanted.items()]


def extra_groups(ports: Ports, wanted: Iterable[str]) -> list[SlotGroup]:
    """Groups of slots that no artifact uses yet, so that later ones fit without another export.

    Args:
        ports: of the model.
        wanted: `glob:kind[~variant]`, the glob over sites as in a method's options.

    Raises:
        UserError: a form that is not that, an unknown kind or variant, or no site that matches.
    """
    groups = []
    for text in wanted:
        pattern, colon, rest = text.rpartition(":")
        name, _, variant = rest.partition("~")
        if not (pattern and colon and name):
            raise UserError(f"{text!r} does not name slots; expected sites:kind or sites:kind~variant, such as attn.q:lowrank")
        kind = kind_of(name)
        if not kind.has_slots or name == "module":
            raise UserError(f"{text!r}: edits of kind {name!r} have no slots that can be made without an artifact")
        if variant not in kind.variants:
            raise UserError(f"{text!r}: kind {name!r} has no variant {variant!r}; it has {', '.join(map(repr, kind.variants))}")
        groups += [slot_group(ports, site, name, variant) for site in ports.select(kind.port, [pattern])]
    return groups


def slot_group(ports: Ports, site: str, kind_name: str, variant: str) -> SlotGroup:
    """The slots of one edit at one port."""
    kind = kind_of(kind_name)
    port = ports.get(kind.port, site)
    return SlotGroup(site, kind_name, variant, kind.shapes(port, variant), kind.identity(port, variant))


def module_group(edit: Edit) -> SlotGroup:
    """The slots of a module: all sizes fixed, zeros as default. Where zeros are no identity, the gate refuses the graph."""
    structure_of(edit)
    shapes = {name: tuple(value.shape) for name, value in edit.tensors.items()}
    return SlotGroup(edit.site, edit.kind, edit.variant, shapes, silent(edit.tensors), edit)


def _refuse_other_sizes(edit: Edit, other: Edit | None) -> None:
    if other is None:
        return
    for name, value in edit.tensors.items():
        if name not in other.tensors or other.tensors[name].shape != value.shape:
            raise UserError(f"two artifacts hold modules of different sizes at {edit.key} ({name}); sizes of modules are fixed in a graph, export them as two bundles")


def example_edits(ports: Ports, groups: Iterable[SlotGroup], sizes: Iterable[int], generator: torch.Generator) -> list[Edit]:
    """Seeded edits without a zero factor; free axes take `sizes` in turn, so that ranks are mixed. Deep prompts are as long as the one they replace."""
    cycle, prompt = list(sizes), 0
    made = []
    for index, group in enumerate(groups):
        if group.module is not None:
            made.append(replace(group.module, tensors=seeded_state(group.module, generator)))
            continue
        kind, size = kind_of(group.kind), cycle[index % len(cycle)]
        port = ports.get(kind.port, group.site)
        if isinstance(port, StreamPort):
            prompt = size = prompt if port.index and prompt else size
        tensors = kind.example(port, group.variant, size, generator)
        made.append(Edit(group.site, group.kind, tensors, group.variant))
    return made


def free_axes(shape: tuple[int | str, ...]) -> tuple[int, ...]:
    """Positions whose size each artifact chooses."""
    return tuple(axis for axis, size in enumerate(shape) if isinstance(size, str))


def describe(groups: Iterable[SlotGroup]) -> dict[str, dict[str, Any]]:
    """The manifest's `slots`."""
    table = {}
    for group in groups:
        for tensor, name in group.names().items():
            table[name] = {
                "dtype": str(group.default[tensor].dtype).removeprefix("torch."),
                "shape": list(group.shapes[tensor]),
                "default_shape": list(group.default[tensor].shape),
                "site": group.site,
                "kind": group.kind,
                "variant": group.variant,
                "tensor": tensor,
            }
    return table
