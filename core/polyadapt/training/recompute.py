"""Gradient checkpointing: blocks keep their inputs only and run again in the backward pass.

Paper: Training Deep Nets with Sublinear Memory Cost (arXiv 1604.06174).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from polyadapt.edits.attach import Attachments
from polyadapt.edits.statistics import keeping_statistics
from polyadapt.errors import UserError
from polyadapt.model import Model
from polyadapt.sites import stack
from polyadapt.training.bypass import Bypass, replaced


def recomputing(model: Model, attachments: Attachments) -> contextlib.AbstractContextManager[None]:
    """The context within which blocks are run again in the backward pass; those that a prefix leaves out stay left out.

    Running statistics of adapters move in the first run alone.

    Raises:
        UserError: the family names no blocks.
    """
    paths = stack(model.family.blocks(model.backbone), model.backbone)
    if not paths:
        raise UserError(f"family {model.family.card.id!r} names no blocks to run again; set train.gradient_checkpointing = false and raise train.accumulation instead")
    blocks = {f"backbone.{path}": model.backbone.get_submodule(path) for path in paths}
    return replaced(model.module, {path: _again(block, attachments) for path, block in blocks.items() if not isinstance(block, Bypass)}, are_live=True)


def _again(block: nn.Module, attachments: Attachments) -> Callable[..., Any]:
    def answer(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return block(*args, **kwargs)
        again, runs = attachments.same_edits(), itertools.count()

        def run(*args: Any, **kwargs: Any) -> Any:
            with again(), keeping_statistics(attachments) if next(runs) else contextlib.nullcontext():
                return block(*args, **kwargs)

        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    return answer
