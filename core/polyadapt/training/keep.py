"""A model is left as it was found: buffers, modes and gradients, whatever happens in between."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def kept(module: nn.Module) -> Iterator[None]:
    """Put back, at the end of the block, every buffer bit for bit, every training mode, and no gradients.

    Parameters are the attached form's business: only forms that train the base touch them, and they undo that.
    """
    buffers = [(owner, name, value, value.detach().clone()) for owner in module.modules() for name, value in owner._buffers.items() if value is not None]
    modes = [(owner, owner.training) for owner in module.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, value, before in buffers:
                owner._buffers[name] = value
                value.copy_(before)
        for owner, training in modes:
            owner.training = training
        for parameter, requires_grad in required:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
