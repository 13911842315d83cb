"""Exact numbers of trained values at published sizes, on weightless (meta) backbones.

Formulas: AST of 12 blocks, width 768 (arXiv 2312.03694, table of its parameter counts; head left out), ViT-B/16.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from polyadapt.families.ast.card import CARD as AST
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.model import Model, TaskModule
from polyadapt.signature import Signature, Task
from polyadapt.sites import resolve
from polyadapt.testing.conformance import load_family

D, L = 768, 12
METHODS = {claim.card.id: claim.card for claim in Host().registry.methods.claims()}


@functools.cache
def backbone_of(family: str) -> torch.nn.Module:
    # Libraries are imported first: what they compute at import is no part of a backbone and must have values.
    if family == "ast":
        from transformers import ASTConfig, ASTModel

        with torch.device("meta"):
            made: torch.nn.Module = ASTModel(ASTConfig())
    else:
        from timm.models.vision_transformer import VisionTransformer

        with torch.device("meta"):
            made = VisionTransformer(num_classes=0)
    return made


def model_of(family: str, task: Task) -> Model:
    card = {"ast": AST, "vit": VIT}[family]
    made, backbone = load_family(card), backbone_of(family)
    ports = resolve(card, backbone, task.kind)
    return Model(TaskModule(made, task, backbone), made, ports, Signature((), ()), None, task, "none", "meta")  # type: ignore[arg-type]


def count(family: str, method: str, **options: Any) -> int:
    made = load_method(METHODS[method])
    form = made.build(model_of(family, Task("features")), made.card.options(**options), torch.Generator().manual_seed(0))
    return sum(parameter.numel() for parameter in form.parameters() if parameter.requires_grad)


def test_the_backbones_are_the_published_ones() -> None:
    """AST-base for 1024 frames has 86.2 M parameters (its 1214 positions included); ViT-B/16 has 85.8 M without a head."""
    sizes = {family: sum(parameter.numel() for parameter in backbone_of(family).parameters()) for family in ("ast", "vit")}
    blocks = L * (4 * (D * D + D) + 2 * D * 4 * D + 5 * D + 4 * D)
    assert sizes["ast"] == blocks + 2 * D + 16 * 16 * D + D + 2 * D + 1214 * D
    assert sizes["vit"] == blocks + 2 * D + 3 * 16 * 16 * D + D + D + 197 * D == 85_798_656


def test_bottleneck_on_ast() -> None:
    """The paper also trains the norm before the FFN: 2 d L = 18 432 more than ours, which leaves the base alone."""
    assert count("ast", "bottleneck", rank=12) == L * (2 * D * 12 + 12 + D) == 248_976 - 2 * D * L == 230_544
    assert count("ast", "bottleneck", rank=12, norm=True) == 248_976  # a norm of the adapter's own in its place
    assert count("ast", "bottleneck", rank=12, placement="houlsby") == 497_952 - 4 * D * L == 461_088
    assert count("ast", "bottleneck", rank=12, placement="houlsby", norm=True) == 497_952


def test_lora_on_ast() -> None:
    assert count("ast", "lora", rank=6) == L * 4 * D * 6 == 221_184


def test_bitfit_on_ast() -> None:
    """The paper counts Linear and LayerNorm; the patch projection is a convolution with a bias of its own."""
    assert count("ast", "bitfit", sites=("block.*", "norm")) == L * (6 * D + 4 * D + D) + D == 102_144
    assert count("ast", "bitfit") == 102_144 + D


def test_prompts_and_prefix_on_ast() -> None:
    assert count("ast", "prompt", length=300) == 300 * D == 230_400
    assert count("ast", "prompt", length=25, deep=True) == L * 25 * D == 230_400
    assert count("ast", "prefix", length=12) == L * 24 * D == 221_184  # 12 keys and 12 values are the paper's p = 24


def test_mam_on_vit_b() -> None:
    assert count("vit", "mam", length=16, rank=16) == 12 * (2 * 16 * 768 + 16 * 1536 + 16 + 768) == 599_232


def test_hydra_on_vit_b() -> None:
    """Per block: fc2's parallel branch 8 450, its sequential one and both of attn.proj 3 842 each."""
    block = (2 * 3072 + 2 + 2 * 768 + 768) + 3 * (2 * 768 + 2 + 2 * 768 + 768)
    assert block == 8_450 + 3 * 3_842 == 19_976
    assert count("vit", "hydra") == 12 * block == 239_712
    assert count("vit", "hydra", biases=False) == 12 * (2 * (3072 + 768) + 3 * 2 * 2 * 768)


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("lora", {"rank": 8}, 12 * 2 * 8 * (768 + 768)),  # 294 912, as PEFT counts for q and v of a ViT-B
        ("dora", {"rank": 8}, None),  # needs weights: counted in the next test
        ("ia3", {}, 12 * (768 + 768 + 3072)),
        ("bitfit", {}, 12 * 11 * 768 + 768 + 768),
        ("prompt", {"length": 50, "deep": True}, 12 * 50 * 768),  # VPT-deep
        ("prefix", {"length": 16, "reparametrisation": "mlp", "hidden": 800}, 16 * 768 + (768 + 1) * 800 + (800 + 1) * 12 * 2 * 768),
        ("bottleneck", {"rank": 8, "learned_scale": True}, 12 * (2 * 8 * 768 + 8 + 768 + 1)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_methods_on_vit_b(method: str, options: dict[str, Any], expected: int | None) -> None:
    if expected is not None:
        assert count("vit", method, **options) == expected


def test_dora_adds_one_magnitude_an_output() -> None:
    from polyadapt.testing.conformance import tiny_model

    model = tiny_model(VIT, "features")  # 2 blocks of width 32
    counts = {}
    for method in ("lora", "dora"):
        made = load_method(METHODS[method])
        counts[method] = made.plan(model, made.card.options(rank=4)).trainable
    assert counts["lora"] == 2 * 2 * 4 * 64 and counts["dora"] == counts["lora"] + 2 * 2 * 32


def test_full_fine_tuning_and_heads_are_counted() -> None:
    from polyadapt.testing.conformance import tiny_model

    model = tiny_model(VIT, "classification")
    head = model.family.head_parameters(model.backbone)
    base = sum(parameter.numel() for name, parameter in model.backbone.named_parameters() if name not in head)
    full, probe = (load_method(METHODS[name]) for name in ("full", "linear-probe"))
    assert probe.plan(model, probe.card.options()).trainable == 32 * 3 + 3
    assert probe.plan(model, probe.card.options(head="cosine")).trainable == 32 * 3  # prototypes have no bias
    assert full.plan(model, full.card.options()).trainable == base + 32 * 3 + 3
