"""A loaded model: the library's backbone behind named tensors, with its ports and its identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from polyadapt.errors import UserError
from polyadapt.families.base import Family
from polyadapt.signature import Signature, Task, TensorSpec
from polyadapt.sites import HeadPort, Ports, resolve
from polyadapt.tensors import base_id

if TYPE_CHECKING:
    from polyadapt_runtime.preprocess import Processor


class Head(nn.Module):
    """Class scores from features: `logits = x @ weight + bias`, with x scaled to length 1 where `cosine` is 1.

    Shape:
        features [..., d] -> logits [..., C]; weight [d, C], bias [C], cosine [1].
    """

    weight: torch.Tensor
    bias: torch.Tensor
    cosine: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, cosine: bool = False) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())  # (d, C)
        self.register_buffer("bias", torch.zeros(weight.shape[1]) if bias is None else bias.detach().clone())
        self.register_buffer("cosine", torch.tensor([1.0 if cosine else 0.0]))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return score(features, self.weight, self.bias, self.cosine)


def score(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, cosine: torch.Tensor) -> torch.Tensor:
    """Linear or cosine class scores in one formula, so that both kinds of head are the same slot.

    With cosine c in {0, 1}, features are multiplied by c / |x| + (1 - c).
    """
    length = features.pow(2).sum(-1, keepdim=True).clamp_min(1e-24).sqrt()  # (..., 1)
    factor = cosine / length + (1.0 - cosine)  # (..., 1)
    return (features * factor) @ weight + bias  # (..., C)


class TaskModule(nn.Module):
    """A backbone made to answer one task: named tensors in, named tensors out.

    Args:
        family: knows how to call the backbone.
        task: what is asked.
        backbone: the library's module, untouched.
        front: pre-processing that belongs into the graph (normalisation, log-mel); None for none.
        head: class scores for `classification`, and for `ctc` of backbones that give frames and no scores.
    """

    def __init__(self, family: Family, task: Task, backbone: nn.Module, front: nn.Module | None = None, head: Head | None = None) -> None:
        super().__init__()
        self.family, self.task = family, task
        self.backbone = backbone
        self.front = front
        self.head = head

    def _apply(self, fn: Any, recurse: bool = True) -> TaskModule:
        """What `to`, `half` and their like go through: the front's filters keep their precision, which is exact, and take a new device."""
        kept = {} if self.front is None else dict(self.front.named_buffers())
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in kept.items():
            owner, _, leaf = name.rpartition(".")
            buffers = self.front.get_submodule(owner)._buffers if self.front is not None else {}
            now = buffers[leaf]
            if now is not None and now.dtype.itemsize < value.dtype.itemsize:
                buffers[leaf] = value.to(now.device)
        return self

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.behind_front(self.front(**inputs) if self.front is not None else inputs)

    def behind_front(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Outputs from what the front gives, which is taken in the precision of the backbone: that may be bfloat16, a front end's never is."""
        dtype = next((parameter.dtype for parameter in self.backbone.parameters() if parameter.is_floating_point()), None)
        if dtype is not None:
            inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        outputs = dict(self.family.forward(self.backbone, self.task, inputs))
        if self.head is not None:
            outputs = {"logits": self.head(outputs["features"]), **outputs}
        return outputs


@dataclass
class Model:
    """What `load` returns.

    Attributes:
        module: call it with the tensors of `signature`.
        ports: everything that can be adapted, by site.
        processor: raw input -> tensors, the same code that runs beside an exported graph.
        base_id: identity of the weights that artifacts must match.
        reference: what the user asked for.
        generation: settings of text generation, such as the ids that end a text.
        conditions: values of inputs that every example of a training gets, such as the vector of its speaker.
        own_labels: the classes that the base's own head was trained for; empty where it has none.
    """

    module: TaskModule
    family: Family
    ports: Ports
    signature: Signature
    processor: Processor
    task: Task
    base_id: str
    reference: str
    licences: dict[str, str] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    own_labels: tuple[str, ...] = ()

    @property
    def backbone(self) -> nn.Module:
        return self.module.backbone

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def with_labels(self, labels: tuple[str, ...]) -> Model:
        """The same model with other class names in its task; weights are shared."""
        return replace(self, task=replace(self.task, labels=labels))

    def frames(self, samples: int) -> int:
        """How many frames a sound of so many samples gives."""
        front: Any = self.module.front
        lengths = torch.tensor([samples])
        if front is not None and hasattr(front, "output_lengths"):
            lengths = front.output_lengths(lengths)
        return int(self.family.output_lengths(self.backbone, lengths)[0])

    def example(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Seeded inputs of the given sizes, as `module` takes them (before the front end)."""
        front: Any = self.module.front
        if front is not None and hasattr(front, "example"):
            made: dict[str, torch.Tensor] = front.example(sizes, generator, self.family, self.backbone, self.task)
            return made
        return self.family.example(self.backbone, self.task, sizes, generator)


def build_model(
    family: Family,
    backbone: nn.Module,
    task: Task,
    processor: Processor,
    *,
    reference: str,
    front: nn.Module | None = None,
    head: Head | None = None,
    licences: Mapping[str, str] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> Model:
    """Put a backbone, its family and a task together.

    A `front` module may offer `signature(inner: Signature) -> Signature` where it changes the inputs and
    `example(sizes, generator, family, backbone, task)` for seeded inputs before itself, and `output_lengths(lengths)` where
    it changes them. `head` takes the place of the library's own, where scores come from a head.

    Raises:
        UserError: the family does not do this task.
    """
    if task.kind not in family.card.tasks:
        raise UserError(f"family {family.card.id!r} does not do task {task.kind!r}; it does: {', '.join(family.card.tasks)}")
    backbone.eval()
    identity = base_id(family.card.id, family.config(backbone), backbone, family.head_parameters(backbone))
    ports = resolve(family.card, backbone, task.kind)
    around: Any = front
    signature = family.signature(backbone, task)
    if front is not None and hasattr(front, "signature"):
        signature = around.signature(signature)
    own_labels = task.labels if head is not None or family.default_head(backbone) is not None else ()
    head = (head or _base_head(family, backbone)) if takes_head(task, signature) else None
    if head is not None:
        ports.head = HeadPort("head", head, head.weight.shape[0], head.weight.shape[1])
        scores = TensorSpec("logits", (*signature.outputs[0].shape[:-1], "classes"), "float32", "class scores, before softmax")
        signature = Signature(signature.inputs, (scores, *signature.outputs))
    module = TaskModule(family, task, backbone, front, head).eval()
    return Model(module, family, ports, signature, processor, task, identity, reference, dict(licences or {}), dict(generation or {}), own_labels=own_labels)


def takes_head(task: Task, signature: Signature) -> bool:
    """Whether scores come from a replaceable head: for classes always, for `ctc` where the backbone gives frames and no scores of its own."""
    return task.kind == "classification" or (task.kind == "ctc" and signature.outputs[0].name == "features")


def _base_head(family: Family, backbone: nn.Module) -> Head:
    """The library's own head, or the identity: a base without classes answers with its features."""
    own = family.default_head(backbone)
    if own is not None:
        return Head(own[0], own[1])
    return Head(torch.eye(family.feature_size(backbone)))
