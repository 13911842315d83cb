"""A base in bfloat16: adapters train in float32 beside it, and every core method attaches, trains and comes off."""

from __future__ import annotations

import pytest
import torch

import polyadapt as pa
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.testing.conformance import applies, example_of, has_form, non_degenerate, tiny_model

METHODS = {claim.card.id: claim.card for claim in Host().registry.methods.claims() if claim.card.implementation.startswith("polyadapt.")}
USABLE = [name for name, card in METHODS.items() if has_form(load_method(card)) and not applies(load_method(card), tiny_model(VIT, "classification"))]
BOUND = 4e-2  # of the largest value: 8 bits of mantissa through two blocks


def test_the_core_methods_are_here() -> None:
    assert {"lora", "dora", "hydra", "ia3", "bitfit", "bottleneck", "mam", "prefix", "prompt", "linear-probe", "full"} <= set(USABLE)


@pytest.mark.parametrize("method", USABLE)
def test_a_method_on_a_base_in_bfloat16(method: str) -> None:
    """What it answers is what it answers on the same weights in float32, but for rounding; its own parameters keep float32."""
    model, plain = tiny_model(VIT, "classification"), tiny_model(VIT, "classification")
    model.module.to(torch.bfloat16)
    plain.module.load_state_dict(model.module.state_dict())
    image = example_of(plain)["image"]
    attached, twin = pa.attach(model, method), pa.attach(plain, method)
    for each in (attached, twin):
        non_degenerate(each.form)
    parameters, own = list(attached.parameters()), {id(value) for value in model.backbone.parameters()}
    assert parameters and all(value.dtype == (torch.bfloat16 if id(value) in own else torch.float32) for value in parameters)
    logits = model.module.train()(image=image.to(torch.bfloat16))["logits"]
    expected = plain.module.train()(image=image)["logits"].detach()
    assert logits.dtype == torch.bfloat16
    assert float((logits.detach().float() - expected).abs().max()) < BOUND * float(expected.abs().max())
    logits.float().square().sum().backward()
    assert all(value.grad is not None and value.grad.dtype == value.dtype and bool(value.grad.isfinite().all()) for value in parameters)
    attached.detach()
    assert all(value.dtype == torch.bfloat16 for value in model.module.parameters())
