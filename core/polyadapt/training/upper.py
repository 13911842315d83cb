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
    answers, dropped = _answers(model, depth, part, device, now)
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


def _answers(model: Model, depth: Depth, part: Part, device: torch.device, now: Now) -> tuple[Answers, dict[str, Shape]]:
    """Stand-ins for pre-processing, stem and frozen blocks, and the inputs that can be left out if they are right."""
    module, backbone = model.module, model.backbone
    stem = [f"backbone.{path}" for path in stack(model.family.stem(backbone), backbone)]
    blocks = [f"backbone.{path}" for path in depth.blocks]
    before = ["front"] if module.front is not None else []
    inputs = [part.batch(rows).to(device).inputs for rows in ([0], [0, 0])]
    one, two = (_outputs(module, given_inputs, [*before, *stem, *blocks]) for given_inputs in inputs)
    answers: Answers = {}
    for path in [*before, *stem]:
        try:
            shape = shape_of(one[path], two[path])
        except (KeyError, TypeError, ValueError):
            continue  # it did not run, or its output is of a kind that zeros cannot stand for: it runs as it is
        if path != "front":
            answers[path] = zeros(shape, now)
        elif all(value.dtype.is_floating_point or name in inputs[0] for name, value in shape.items()):
            answers[path] = front(shape, now)
    for path in blocks:
        output = one[path]
        rest = tuple(output[1:]) if isinstance(output, tuple) else ()
        if any(value is not None for value in rest):
            raise UnfitError("its blocks give more than hidden states")
        wrap = (lambda hidden, rest=rest: (hidden, *rest)) if isinstance(output, tuple) else (lambda hidden: hidden)
        answers[path] = given(now, wrap) if path == blocks[-1] else passing(wrap)
    floats = {name: shape_of(value, inputs[1][name]) for name, value in inputs[0].items() if value.is_floating_point()}
    return answers, floats


def _outputs(module: nn.Module, inputs: Mapping[str, torch.Tensor], paths: Sequence[str]) -> dict[str, Any]:
    """What the modules at some paths give in one forward pass."""
    found: dict[str, Any] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(inner: nn.Module, args: Any, output: Any) -> None:
            found[path] = output

        return hook

    handles = [module.get_submodule(path).register_forward_hook(note(path)) for path in paths]
    try:
        with torch.no_grad():
            module(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _agree(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Whether all outputs are there and equal within the tolerance."""
    for name, value in expected.items():
        if not isinstance(value, torch.Tensor):
            continue
        if name not in found or found[name].shape != value.shape:
            return False
        error = (found[name].double() - value.double()).abs().max()
        if not bool(error <= TOLERANCE * value.double().abs().max()):  # not-a-number is no agreement
            return False
    return True
