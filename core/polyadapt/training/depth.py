"""How deep the frozen prefix of a model reaches: seen in one forward pass, not guessed from names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from polyadapt.edits import kind_of
from polyadapt.edits.attach import Attachments
from polyadapt.edits.form import Form
from polyadapt.model import Model
from polyadapt.sites import AttentionPort, HeadPort, OpPort, SpanPort, StreamPort, stack


@dataclass(frozen=True)
class Depth:
    """What lies below everything that trains.

    Attributes:
        blocks: the lowest blocks that are frozen, by path in the backbone, in order of execution.
        is_whole: whether the whole backbone is frozen and only the class head trains.
        reason: why nothing is, where that is so.
    """

    blocks: tuple[str, ...] = ()
    is_whole: bool = False
    reason: str = ""


def find_depth(model: Model, attachments: Attachments, inputs: Mapping[str, torch.Tensor]) -> Depth:
    """Run the model once and note which blocks are over when the first edited or trained module begins."""
    active = list(touched(model, attachments))
    if model.module.head is not None and all(module is model.module.head for module in active):
        return Depth(is_whole=True)
    paths = stack(model.family.blocks(model.backbone), model.backbone)
    if not paths:
        return Depth(reason=f"the card of family {model.family.card.id!r} names no blocks that can be left out")
    blocks = [model.backbone.get_submodule(path) for path in paths]
    calls: list[int] = []  # index of a block when it ends, -1 when a touched module begins
    seen: set[int] = set()

    def begins(module: nn.Module, args: Any) -> None:
        calls.append(-1)
        seen.add(id(module))

    def ends(index: int) -> Callable[..., None]:
        return lambda module, args, output: calls.append(index)

    handles = [module.register_forward_pre_hook(begins) for module in {id(module): module for module in active}.values()]
    handles += [block.register_forward_hook(ends(index)) for index, block in enumerate(blocks)]
    try:
        with torch.no_grad():
            model.module(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    if any(id(module) not in seen for module in active):
        return Depth(reason="something that trains is not a module that runs")
    if sorted(call for call in calls if call >= 0) != list(range(len(blocks))):
        return Depth(reason="its blocks do not run once each")
    below = calls[: calls.index(-1)] if -1 in calls else calls
    if not below:
        return Depth(reason="the lowest block, or what is below it, trains")
    if below != list(range(len(below))):
        return Depth(reason="its blocks do not run in the card's order")
    return Depth(paths[: len(below)])


def touched(model: Model, attachments: Attachments) -> Iterator[nn.Module]:
    """Modules where an active edit applies, and modules that hold a parameter of the base that trains."""
    for name in attachments.active:
        form = attachments.forms[name]
        assert isinstance(form, Form)
        for edit in form.edits():
            port = model.ports.get(kind_of(edit.kind).port, edit.site)
            if isinstance(port, OpPort | AttentionPort | HeadPort):
                yield port.module
            elif isinstance(port, SpanPort):
                yield port.start.module
            elif isinstance(port, StreamPort):
                yield port.tower if port.mode == "embeds" else port.blocks[port.index]
    for module in model.backbone.modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            yield module
