"""What is left of a model above its frozen prefix, and the proof that it answers as the whole does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from polyadapt.model import Model
from polyadapt.sites import stack
from polyadapt.training.bypass import Now, Shape, front, given, passing, replaced, shape_of, zeros
from polyadapt.training.depth import Depth
from polyadapt.training.prefix import Lower, Part, UnfitError

TOLERANCE = 1e-6  # relative to the greatest value of the whole forward pass

Answers = dict[str, Callable[..., Any]]


def head_alone(model: Model, device: torch.device) -> Lower:
    """The features are cached, and only the class head runs."""
    module = model.module
    assert module.head is not None
    head = module.head

    def compute(part: Part, rows: Sequence[int]) -> torch.Tensor:
        found: dict[int, torch.Tensor] = {}
        for group in part.examples.groups(rows):
            batch = part.examples.batch(group).to(device)
            found.update(zip(group, module(**batch.inputs)["features"], strict=True))
        return torch.stack([found[row] for row in rows])  # (rows, width)

    def finish(inputs: Mapping[str, torch.Tensor], features: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return {"logits": head(features), "features": features}

    return Lower(compute, finish, (), {}, {"base": model.base_id, "prefix": "features", "processor": model.processor.spec})


def upper_blocks(model: Model, depth: Depth, part: Part, device: torch.device) -> tuple[Lower, Answers]:
    """The activations behind the lowest frozen blocks are cached; stand-ins take the place of those blocks.

    Returns:
        The lower part, and the answers of the stand-ins by path in the task module.

    Raises:
        UnfitError: a whole pass and one that begins at the activations give different outputs.
    """
    if len(part.examples.groups(range(len(part.examples)))) > 1:
        raise UnfitError("its examples differ in length, and what fills them up is not masked")
    now = Now()
    answers, dropped, tuple_rest = _answers(model, depth, part, device, now)
    module, last = model.module, model.backbone.get_submodule(depth.blocks[-1])

    def whole(inputs: Mapping[str, torch.Tensor], capture: list[torch.Tensor]) -> Mapping[str, torch.Tensor]:
        handle = last.register_forward_hook(lambda block, args, output: capture.append(output[0] if isinstance(output, tuple) else output))
        try:
            outputs: Mapping[str, torch.Tensor] = module(**inputs)
        finally:
            handle.remove()
        return outputs

    def compute(part: Part, rows: Sequence[int]) -> torch.Tensor:
        capture: list[torch.Tensor] = []
        whole(part.batch(rows).to(device).inputs, capture)
        if capture[0].shape[0] != len(rows):
            raise UnfitError("its blocks do not give one row an example")
        return capture[0].detach()

    def finish(inputs: Mapping[str, torch.Tensor], activations: torch.Tensor) -> Mapping[str, torch.Tensor]:
        now.activations = activations
        outputs: Mapping[str, torch.Tensor] = module(**inputs)
        return outputs

    rows = list(range(min(3, len(part.examples))))
    inputs = part.batch(rows).to(device).inputs
    identity = {"base": model.base_id, "prefix": list(depth.blocks), "processor": model.processor.spec}
    with torch.no_grad():
        capture: list[torch.Tensor] = []
        expected = dict(whole(inputs, capture))
        for without in (dropped, {}):
            given_inputs = {**inputs, **{name: shape.zeros(len(rows), device) for name, shape in without.items()}}
            with replaced(module, answers):
                try:
                    found = dict(finish(given_inputs, capture[0]))
                except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError):
                    continue
            if _agree(found, expected):
                return Lower(compute, finish, tuple(name for name in inputs if name not in without), without, identity), answers
    raise UnfitError("its upper part looks at more of its lower part than the last block's output")
