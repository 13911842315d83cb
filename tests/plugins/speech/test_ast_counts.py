"""The parameter counts of arXiv 2312.03694, table 1, exactly, on AST-base without weights; the class head is left out.

L = 12 blocks of width d = 768; r is the inner width, k the kernel.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from transformers import ASTConfig, ASTModel

from polyadapt import builtin
from polyadapt.families.ast.card import CARD as AST
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.model import Head, Model, TaskModule
from polyadapt.signature import Signature, Task
from polyadapt.sites import HeadPort, resolve
from polyadapt.testing.conformance import load_family
from polyadapt_speech import entry

D, L = 768, 12
LABELS = tuple(f"class {index}" for index in range(50))
METHODS = {claim.card.id: claim.card for claim in Host(plugins=[("core", builtin), ("speech", entry)], discover=False, environment={}).registry.methods.claims()}


@functools.cache
def ast_base() -> Model:
    with torch.device("meta"):
        backbone = ASTModel(ASTConfig())
    family, task = load_family(AST), Task("features")
    return Model(TaskModule(family, task, backbone), family, resolve(AST, backbone, task.kind), Signature((), ()), None, task, "none", "meta")  # type: ignore[arg-type]


def count(method: str, **options: Any) -> int:
    made = load_method(METHODS[method])
    return made.plan(ast_base(), made.card.options(**options)).trainable


def conformer(r: int, k: int) -> int:
    return L * (2 * D + (2 * r * D + 2 * r) + (r * k + r) + 2 * r + (r * D + D)) + 2 * D * L


def bottleneck(r: int) -> int:
    return L * (2 * D * r + r + D) + 2 * D * L


@pytest.mark.parametrize(
    ("method", "options", "formula", "printed"),
    [
        ("bottleneck", {"rank": 12, "train_norm": True}, bottleneck(12), 248_976),
        ("bottleneck", {"rank": 12, "train_norm": True, "placement": "houlsby"}, 2 * bottleneck(12), 497_952),
        ("bottleneck", {"rank": 12, "train_norm": True, "insertion": "sequential", "position": "before"}, bottleneck(12), 248_976),
        ("bottleneck", {"rank": 12, "train_norm": True, "placement": "attention", "insertion": "sequential", "residual": False}, bottleneck(12), 248_976),
        ("conformer", {}, conformer(8, 31), 270_720),
        ("conformer", {"placement": "houlsby"}, 2 * conformer(8, 31), 541_440),
        ("lora", {"rank": 6}, L * 4 * D * 6, 221_184),
        ("prompt", {"length": 300, "place": "distillation"}, 300 * D, 230_400),
        ("prompt", {"length": 25, "place": "distillation", "deep": True}, L * 25 * D, 230_400),
        ("prefix", {"length": 12}, L * 24 * D, 221_184),
        ("bitfit", {"sites": ("block.*", "norm")}, L * (6 * D + 4 * D + D) + D, 102_144),
    ],
)
def test_the_papers_table(method: str, options: dict[str, Any], formula: int, printed: int) -> None:
    """Prefix: p = 24 are 12 keys and 12 values. BitFit counts linear layers and norms, not the patches' convolution."""
    assert count(method, **options) == formula == printed


def test_the_papers_linear_probe_trains_the_last_norm() -> None:
    """9 K for the 10 classes of UrbanSound8K, 40 K for the 50 of ESC-50."""
    model = ast_base()
    for classes, expected in ((10, 9_226), (50, 39_986)):
        task = Task("classification", LABELS[:classes])
        head = Head(torch.eye(D))
        ports = resolve(AST, model.backbone, task.kind)
        ports.head = HeadPort("head", head, D, D)
        labelled = Model(TaskModule(model.family, task, model.backbone, head=head), model.family, ports, model.signature, model.processor, task, "none", "meta")
        probe = load_method(METHODS["linear-probe"])
        assert probe.plan(labelled, probe.card.options(norms=("norm",))).trainable == D * classes + classes + 2 * D == expected


def test_other_adapters() -> None:
    """Formulas of their own: convpass d r + r + r r k + r + r d + d; a mixture n adapters of width 6, a router or phi."""
    assert count("convpass", rank=8) == L * (2 * D * 8 + 8 + D + 8 * 8 * 3 + 8)
    assert count("convpass", rank=8, train_norm=True) == count("convpass", rank=8) + 2 * D * L
    adapters = 7 * (2 * D * 6 + 6 + D)
    assert count("dense-moa") == L * (adapters + 7 * D)
    assert count("soft-moa") == L * (adapters + 7 * D)
    assert count("soft-moa", slots=2, normalize=True, placement="houlsby") == 2 * L * (adapters + 14 * D + 1)


def test_norms_that_train_feed_their_spans() -> None:
    plan = load_method(METHODS["conformer"]).plan(ast_base(), METHODS["conformer"].options(placement="houlsby"))
    norms = {row.site for row in plan.rows if row.kind in ("scale", "shift")}
    assert norms == {f"block.{n}.{norm}" for n in range(L) for norm in ("norm1", "norm2")}
