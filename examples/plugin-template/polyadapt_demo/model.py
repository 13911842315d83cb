"""The model: a network, its family and how the reference `demo:tiny` is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from polyadapt.families.base import Family
from polyadapt.model import Model, build_model
from polyadapt.signature import Signature, Task, TensorSpec
from polyadapt.sources.card import ModelCard
from polyadapt.sources.common import seeded
from polyadapt_runtime.preprocess import Processor
from torch import nn
from torch.nn import functional as F

from polyadapt_demo.cards import FAMILY, TinyOptions

INPUTS, WIDTH, BLOCKS = 8, 16, 2


class Block(nn.Module):
    """x + down(gelu(up(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From x [batch, width] to [batch, width]."""
        hidden = F.gelu(self.up(x))  # (batch, 2 * width)
        return x + self.down(hidden)  # (batch, width)


class Net(nn.Module):
    """Numbers to features."""

    def __init__(self, inputs: int = INPUTS, width: int = WIDTH, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """From values [batch, inputs] to features [batch, width]."""
        x = self.embed(values)  # (batch, width)
        for block in self.blocks:
            x = block(x)
        return x


class NetFamily(Family):
    """How the rest of the house calls a `Net`."""

    def tiny(self, task: Task) -> nn.Module:
        """A small random backbone."""
        return Net()

    def config(self, backbone: nn.Module) -> dict[str, Any]:
        """Numbers that fix the architecture."""
        assert isinstance(backbone, Net)
        return {"inputs": backbone.embed.in_features, "width": backbone.embed.out_features, "blocks": len(backbone.blocks)}

    def signature(self, backbone: nn.Module, task: Task) -> Signature:
        """Named tensors in and out."""
        sizes = self.config(backbone)
        values = TensorSpec("values", ("batch", sizes["inputs"]), "float32", "measured values")
        features = TensorSpec("features", ("batch", sizes["width"]), "float32", "features of the values")
        return Signature((values,), (features,))

    def forward(self, backbone: nn.Module, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Run the backbone."""
        return {"features": backbone(inputs["values"])}

    def feature_size(self, backbone: nn.Module) -> int:
        """Width of the features."""
        return int(self.config(backbone)["width"])

    def example(self, backbone: nn.Module, task: Task, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
        """Seeded inputs."""
        return {"values": torch.randn(sizes["batch"], self.config(backbone)["inputs"], generator=generator)}


def load_tiny(card: ModelCard, name: str, options: TinyOptions) -> Model:
    """Build the model that the card names. A real plugin would read weights here."""
    family = NetFamily(FAMILY)
    task = Task(options.task, metric="accuracy" if options.task == "classification" else "")
    with seeded(options.seed):
        backbone = family.tiny(task)
    processor = Processor({"kind": "array", "input": "values", "shape": [INPUTS], "dtype": "float32"}, {})
    return build_model(family, backbone, task, processor, reference=card.reference, licences={"weights": "random"})
