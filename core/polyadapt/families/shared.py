"""Small pieces that several families use: named tensors, seeded examples, pooling, heads, tiny weights."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn

from polyadapt.errors import MissingExtraError
from polyadapt.signature import Signature, TensorSpec


def library(name: str, extra: str, family: str) -> ModuleType:
    """Import a library that a family needs.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(name.partition(".")[0], extra, f"family {family!r}") from error


def image_spec(channels: int, height: int, width: int) -> TensorSpec:
    """A batch of normalised pictures."""
    return TensorSpec("image", ("batch", channels, height, width), "float32", "picture, normalised as the backbone was trained")


def features_spec(width: int) -> TensorSpec:
    """One vector an example."""
    return TensorSpec("features", ("batch", width), "float32", "pooled features")


def frames_spec(width: int) -> TensorSpec:
    """One vector for each frame of an example, from which a head scores symbols."""
    return TensorSpec("features", ("batch", "steps", width), "float32", "features of each frame")


def spectrogram_spec(name: str, shape: tuple[int | str, ...]) -> TensorSpec:
    """A batch of log-mel spectrograms."""
    return TensorSpec(name, shape, "float32", "log-mel spectrogram, normalised as the backbone was trained")


def waveform_signature(width: int, vocabulary: int | None) -> Signature:
    """Audio in; pooled features out, or scores of every frame when there is a vocabulary."""
    audio = TensorSpec("audio", ("batch", "samples"), "float32", "waveform, normalised as the backbone was trained", "16 kHz samples")
    if vocabulary is None:
        return Signature((audio,), (features_spec(width),))
    return Signature((audio,), (TensorSpec("logits", ("batch", "frames", vocabulary), "float32", "scores of the vocabulary for each frame, before softmax"),))


def normal(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Seeded normal values of deviation 1."""
    return torch.randn(tuple(shape), generator=generator)


def integers(low: int, high: int, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Seeded integers from `low` up to, not including, `high`."""
    return torch.randint(low, high, tuple(shape), generator=generator)


def convolved_lengths(lengths: torch.Tensor, geometry: Iterable[tuple[int, int]]) -> torch.Tensor:
    """Lengths behind unpadded convolutions of the given (kernel, stride) pairs."""
    for kernel, stride in geometry:
        lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
    return lengths.clamp_min(0)


def norm_behind(span: str) -> str:
    """Site of the norm whose output a span reads where norms stand behind the parts of a block: the stack's own before the first."""
    _, number, part = span.split(".")
    if part == "ffn":
        return f"block.{number}.norm1"
    return f"block.{int(number) - 1}.norm2" if int(number) else "norm"


def mean_over_frames(hidden: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Mean of the frames that count.

    Shape:
        hidden [batch, frames, width], lengths [batch] or None for all frames -> [batch, width].
    """
    if lengths is None:
        return hidden.mean(dim=1)
    counts = torch.arange(hidden.shape[1], device=hidden.device)[None, :] < lengths[:, None]  # (batch, frames)
    weights = counts.to(hidden.dtype)[:, :, None]  # (batch, frames, 1)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)  # (batch, width)


def linear_head(layer: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(weight [feature, class], bias [class]) of a linear layer; None for anything else."""
    if not isinstance(layer, nn.Linear):
        return None
    weight = layer.weight.detach().T  # (feature, class)
    return weight, weight.new_zeros(weight.shape[1]) if layer.bias is None else layer.bias.detach()


def convolutions(backbone: nn.Module) -> list[list[int | str]]:
    """Geometry of every 2-D convolution in order: class (which may pad by the input's size), inputs, outputs, kernel, strides, padding, groups, dilation."""
    return [
        [type(layer).__name__, layer.in_channels, layer.out_channels, *layer.kernel_size, *layer.stride, str(layer.padding), layer.groups, *layer.dilation]
        for layer in backbone.modules()
        if isinstance(layer, nn.Conv2d)
    ]


def norm_epsilons(backbone: nn.Module) -> list[float]:
    """What batch norms add to variances, each value once."""
    return sorted({float(layer.eps) for layer in backbone.modules() if isinstance(layer, nn.BatchNorm2d)})


def picture_size(backbone: Any) -> tuple[int, int, int]:
    """(channels, height, width) that a convolutional backbone was made for; 224 px when it does not say."""
    declared = getattr(backbone, "pretrained_cfg", None) or {}
    size = declared.get("input_size") if isinstance(declared, dict) else getattr(declared, "input_size", None)
    return (int(size[0]), int(size[1]), int(size[2])) if size else (int(backbone.in_chans), 224, 224)


@torch.no_grad()
def enliven(backbone: nn.Module) -> nn.Module:
    """Redraw a random backbone so that every part of it matters.

    Libraries start with weights near zero: attention is uniform then and whole branches are silent, so a
    test of effects would see nothing. Matrices get deviation 1/sqrt(inputs), convolutions of pictures
    sqrt(2/inputs) because rectifiers follow them, vectors 0.1 around what they were, running statistics
    likewise. Draws from torch's default generator.
    """
    for name, value in backbone.named_parameters():
        if "parametrizations" in name or not value.requires_grad:
            continue
        if value.dim() > 1:
            value.normal_(std=((2.0 if value.dim() == 4 else 1.0) / value[0].numel()) ** 0.5)
        elif value.dim() == 1:
            value.add_(torch.randn_like(value), alpha=0.1)
    for name, statistic in backbone.named_buffers():
        if name.endswith("running_mean"):
            statistic.normal_(std=0.1)
        elif name.endswith("running_var"):
            statistic.uniform_(0.5, 1.5)
    return backbone.eval()
