"""What is left of a model above its frozen prefix, and the proof that it answers as the whole does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from polyadapt.model import Model
from polyadapt.preprocessing import preprocessing
from polyadapt.sites import stack
from polyadapt.training.bypass import Now, front, given, passing, replaced, shape_of, zeros
from polyadapt.training.depth import Depth
from polyadapt.training.prefix import Lower, Part, UnfitError

TOLERANCE = 1e-6  # relative to the greatest value of the whole forward pass

MISFITS = (RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError)  # what a net raises that stand-ins do not fit

Answers = dict[str, Callable[..., Any]]


def head_alone(model: Model, part: Part, device: torch.device) -> Lower:
    """The features are cached, and only the class head runs.

    Frames of sounds are filled up to the longest: a head scores each on its own, and losses look at the real ones only.
    """
    module = model.module
    assert module.head is not None
    head = module.head
    longest = max(int(targets["frames"]) for _, targets in (part.examples.arrays(0), *part.further)) if model.task.kind == "ctc" else 0

    def compute(part: Part, rows: Sequence[int]) -> torch.Tensor:
        found: dict[int, torch.Tensor] = {}
        for group in part.examples.groups(rows):
            batch = part.examples.batch(group).to(device)
            features = module(**batch.inputs)["features"]
            if longest:
                features = F.pad(features, (0, 0, 0, longest - features.shape[1]))  # (group, longest, width)
            found.update(zip(group, features, strict=True))
        return torch.stack([found[row] for row in rows])  # (rows, …, width)

    def finish(inputs: Mapping[str, torch.Tensor], features: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return {"logits": head(features), "features": features}

    return Lower(compute, finish, (), {}, {"base": model.base_id, "prefix": "features", **preprocessing(model)})


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
    seen = _Seen(model, depth, part, device)
    answers = _answers(seen, now)
    module, last = model.module, seen.frozen[-1]
    expected = seen.activations(seen.two)
    upper = _passed(seen, expected)

    def compute(part: Part, rows: Sequence[int]) -> torch.Tensor:
        with replaced(module, upper):
            found, _ = record(module, part.batch(rows).to(device).inputs, [last])
        return hidden_of(found[last])

    def finish(inputs: Mapping[str, torch.Tensor], activations: torch.Tensor) -> Mapping[str, torch.Tensor]:
        now.activations = activations
        outputs: Mapping[str, torch.Tensor] = module(**inputs)
        return outputs

    identity = {"base": model.base_id, "prefix": list(depth.blocks), **preprocessing(model)}
    floats = {name: shape_of(value, seen.inputs[1][name]) for name, value in seen.inputs[0].items() if value.is_floating_point()}
    for dropped in (floats, {}):
        inputs = {**seen.inputs[1], **{name: shape.zeros(2, device) for name, shape in dropped.items()}}
        with torch.no_grad(), replaced(module, answers):
            try:
                found = finish(inputs, expected)
            except MISFITS:
                continue
        if _agree(found, seen.outputs):
            return Lower(compute, finish, tuple(name for name in inputs if name not in dropped), dropped, identity), answers
    raise UnfitError("its upper part looks at more of its lower part than the last block's output")


class _Seen:
    """What a model's pre-processing, stem and blocks gave for one example and for two."""

    def __init__(self, model: Model, depth: Depth, part: Part, device: torch.device) -> None:
        backbone, module = model.backbone, model.module
        self.module = module
        blocks = [f"backbone.{path}" for path in stack(model.family.blocks(backbone), backbone)]
        self.frozen, self.upper = blocks[: len(depth.blocks)], blocks[len(depth.blocks) :]
        self.before = [*(["front"] if module.front is not None else []), *(f"backbone.{path}" for path in stack(model.family.stem(backbone), backbone))]
        self.inputs = [part.batch(rows).to(device).inputs for rows in ([0], [0, len(part.examples) - 1])]
        paths = [*self.before, *blocks]
        self.one, _ = record(module, self.inputs[0], paths)
        self.two, self.outputs = record(module, self.inputs[1], paths)

    def activations(self, found: Mapping[str, Any]) -> torch.Tensor:
        """Output of the last frozen block, [2, …].

        Raises:
            UnfitError: blocks do not give one row an example.
        """
        hidden = hidden_of(found[self.frozen[-1]])
        if hidden.shape[0] != 2:
            raise UnfitError("its blocks do not give one row an example")
        return hidden

    def wrap(self, path: str) -> Callable[[torch.Tensor], Any]:
        """Hidden states in the form in which a block answers.

        Raises:
            UnfitError: it answers with more than them.
        """
        output = self.two[path]
        if not isinstance(output, tuple):
            return lambda hidden: hidden
        rest = tuple(output[1:])
        if any(value is not None for value in rest):
            raise UnfitError("its blocks give more than hidden states")
        return lambda hidden: (hidden, *rest)


def record(module: nn.Module, inputs: Mapping[str, torch.Tensor], paths: Sequence[str]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """(outputs of the modules at some paths, outputs of the whole) in one forward pass without gradients."""
    found: dict[str, Any] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(inner: nn.Module, args: Any, output: Any) -> None:
            found[path] = output

        return hook

    handles = [module.get_submodule(path).register_forward_hook(note(path)) for path in paths]
    try:
        with torch.no_grad():
            outputs: Mapping[str, Any] = module(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found, outputs


def hidden_of(output: Any) -> torch.Tensor:
    """The hidden states in what a block gave."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden.detach()


def _answers(seen: _Seen, now: Now) -> Answers:
    """Stand-ins for pre-processing, stem and frozen blocks."""
    answers: Answers = {}
    for path in seen.before:
        try:
            shape = shape_of(seen.one[path], seen.two[path])
        except (KeyError, TypeError, ValueError):
            continue  # it did not run, or its output is of a kind that zeros cannot stand for: it runs as it is
        if path != "front":
            answers[path] = zeros(shape, now)
        elif all(value.dtype.is_floating_point or name in seen.inputs[0] for name, value in shape.items()):
            answers[path] = front(shape, now)
    for path in seen.frozen:
        answers[path] = given(now, seen.wrap(path)) if path == seen.frozen[-1] else passing(seen.wrap(path))
    return answers


def _passed(seen: _Seen, expected: torch.Tensor) -> Answers:
    """Stand-ins for the upper blocks while activations are computed, so that they cost nothing; none where that does not work."""
    try:
        answers = {path: passing(seen.wrap(path)) for path in seen.upper}
        with replaced(seen.module, answers):
            found, _ = record(seen.module, seen.inputs[1], [seen.frozen[-1]])
    except (UnfitError, *MISFITS):
        return {}
    return answers if torch.equal(hidden_of(found[seen.frozen[-1]]), expected) else {}


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
