"""Modules of no known family: their ports are given by the user, or found by watching a forward pass.

A site is then the module's own path. What a forward never calls (a fast path that reads weights directly,
an unused branch) is refused by name, because an edit there would do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from polyadapt.errors import UserError, nearest
from polyadapt.families.base import Family
from polyadapt.families.card import FamilyCard, Op
from polyadapt.signature import Signature, Task
from polyadapt.sites import op_port

FAMILY = "module"


@dataclass(frozen=True)
class Discovery:
    """What watching a forward found: op paths that can be adapted, and why others cannot."""

    found: tuple[str, ...]
    refused: Mapping[str, str]


class CustomFamily(Family):
    """A family of one module. It answers no task of its own: the user calls the module."""

    def config(self, backbone: nn.Module) -> dict[str, Any]:
        return {}

    def signature(self, backbone: nn.Module, task: Task) -> Signature:
        return Signature((), ())


def custom_family(module: nn.Module, ports: Mapping[str, str]) -> CustomFamily:
    """A family whose sites are the user's.

    Args:
        module: the module that is adapted.
        ports: site -> path of a submodule.

    Raises:
        UserError: a path does not exist, or what stands there is no linear, convolution, embedding or norm.
    """
    modules = dict(module.named_modules())
    for site, path in ports.items():
        if path not in modules:
            raise UserError(f"port {site!r}: the module has no submodule {path!r}{nearest(path, modules)}")
        if op_port(site, path, modules[path], None) is None:
            raise UserError(f"port {site!r}: {path} is a {type(modules[path]).__name__}; linear, convolution, embedding and norm modules can be adapted")
    card = FamilyCard(
        id=FAMILY,
        title=f"A module of class {type(module).__name__}",
        media=(),
        architecture="unknown",
        libraries={},
        classes=(),
        tasks=("features",),
        sites={site: Op(path) for site, path in ports.items()},
        implementation="polyadapt.sources.custom:CustomFamily",
        export={},
    )
    return CustomFamily(card)


def discover(module: nn.Module, example: Any) -> Discovery:
    """Find ops by running the module on an example in training and in evaluation mode, without gradients.

    Buffers and training modes are put back afterwards.

    Args:
        module: any module.
        example: a tensor, a tuple of positional arguments or a mapping of named ones.
    """
    candidates = {path: sub for path, sub in module.named_modules() if path and op_port(path, path, sub, None) is not None}
    calls = {mode: _called(module, candidates, example, mode) for mode in (True, False)}
    refused = {}
    for path in candidates:
        missing = [("training" if mode else "evaluation") for mode in (True, False) if path not in calls[mode]]
        if missing:
            refused[path] = f"not called in {' and '.join(missing)} mode"
    return Discovery(tuple(path for path in candidates if path not in refused), refused)


def _called(module: nn.Module, candidates: Mapping[str, nn.Module], example: Any, mode: bool) -> set[str]:
    seen: set[str] = set()
    modes = {sub: sub.training for sub in module.modules()}
    buffers = {name: value.clone() for name, value in module.named_buffers()}
    handles = [sub.register_forward_hook(lambda *_, path=path: seen.add(path)) for path, sub in candidates.items()]
    try:
        module.train(mode)
        with torch.no_grad():
            call(module, example)
    finally:
        for handle in handles:
            handle.remove()
        for sub, training in modes.items():
            sub.training = training
        for name, value in module.named_buffers():
            value.copy_(buffers[name])
    return seen


def call(module: nn.Module, example: Any) -> Any:
    """Run a module on an example given in any of the usual forms."""
    if isinstance(example, Mapping):
        return module(**example)
    return module(*example) if isinstance(example, tuple) else module(example)
