"""Models and data of the benchmarks: real sizes, random weights, seeded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import polyadapt as pa
from polyadapt.data.dataset import Dataset, Example
from polyadapt.families.llama.card import CARD as LLAMA
from polyadapt.families.llama.model import Llama
from polyadapt.model import Model, build_model
from polyadapt.signature import Task
from polyadapt.sources.processors import make_processor, text_spec

CLASSES = tuple(f"class {index}" for index in range(10))
TOKENS = 128


def vit_small(image_size_px: int = 224) -> Model:
    """timm's ViT-S/16 with random weights and ten classes."""
    model = pa.load("timm:vit_small_patch16_224", pretrained=False, image_size_px=image_size_px)
    return model.with_labels(CLASSES)


def pictures(model: Model, count: int, seed: int = 0) -> Dataset:
    """Random uint8 pictures of the model's size, classes in turn."""
    generator = np.random.default_rng(seed)
    height, width = model.processor.spec["size_px"]
    rows = [Example(f"{seed}-{index}", generator.integers(0, 256, (height, width, 3), dtype=np.uint8), CLASSES[index % len(CLASSES)]) for index in range(count)]
    return Dataset("random pictures", rows, "image", CLASSES)


def llama_135m() -> Model:
    """The architecture of SmolLM2-135M with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = LlamaForCausalLM(config).eval()
    processor = make_processor(text_spec(pad_id=0, maximum_tokens=TOKENS))
    return build_model(Llama(LLAMA), backbone, Task("causal-lm"), processor, reference="llama-135m")


def texts(model: Model, count: int, seed: int = 0) -> Dataset:
    """Random token ids, all of one length."""
    generator = np.random.default_rng(seed)
    vocabulary = int(model.backbone.config.vocab_size)  # type: ignore[union-attr,arg-type]
    return Dataset("random tokens", [Example(f"{seed}-{index}", generator.integers(4, vocabulary, TOKENS)) for index in range(count)], "text")


class LoraLinear(nn.Module):
    """A linear layer with LoRA as one writes it by hand; nothing of Polyadapt in it."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.empty(rank, base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.scale = alpha / rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.base(x)
        return output + F.linear(F.linear(x, self.a), self.b) * self.scale


class LoraQueryValue(nn.Module):
    """timm's fused projection with LoRA on its query and value rows, added in place as is usual."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.width, self.scale = base, base.out_features // 3, alpha / rank
        self.a = nn.ParameterList(nn.Parameter(torch.empty(rank, base.in_features)) for _ in range(2))
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(self.width, rank)) for _ in range(2))
        for a in self.a:
            nn.init.kaiming_uniform_(a, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv: torch.Tensor = self.base(x)
        qkv[..., : self.width] += F.linear(F.linear(x, self.a[0]), self.b[0]) * self.scale
        qkv[..., -self.width :] += F.linear(F.linear(x, self.a[1]), self.b[1]) * self.scale
        return qkv


def with_hand_written_lora(backbone: nn.Module, targets: Sequence[str], rank: int, alpha: float) -> Any:
    """The backbone itself, frozen, its target layers replaced by hand-written LoRA. `qkv` gets it on query and value."""
    backbone.requires_grad_(False)
    for path, module in list(backbone.named_modules()):
        parent, _, name = path.rpartition(".")
        if isinstance(module, nn.Linear) and any(path.endswith(target) for target in targets):
            setattr(backbone.get_submodule(parent), name, LoraQueryValue(module, rank, alpha) if name == "qkv" else LoraLinear(module, rank, alpha))
    return backbone


def with_peft_lora(backbone: nn.Module, targets: Sequence[str], rank: int, alpha: float) -> Any:
    """The backbone itself with PEFT's LoRA in it."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(backbone, LoraConfig(r=rank, lora_alpha=int(alpha), target_modules=list(targets), lora_dropout=0.0))
