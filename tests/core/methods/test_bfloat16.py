"""A base in bfloat16: adapters train in float32 beside it, and every core method attaches, trains and comes off."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import polyadapt as pa
from polyadapt.data.dataset import Dataset, Example
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.testing.conformance import applies, example_of, has_form, non_degenerate, tiny_model

METHODS = {claim.card.id: claim.card for claim in Host().registry.methods.claims() if claim.card.implementation.startswith("polyadapt.")}
USABLE = [name for name, card in METHODS.items() if has_form(load_method(card)) and not applies(load_method(card), tiny_model(VIT, "classification"))]
ROUNDING = 2.0**-8  # of bfloat16; a mean loss and a score err by less
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


@pytest.mark.parametrize("whole", [False, True], ids=("backbone", "module"))
@pytest.mark.parametrize("reference", ["polyadapt:tiny-vit", "polyadapt:tiny-ast"], ids=("pictures", "sounds, through a front end in float32"))
def test_the_common_loop_on_a_base_in_bfloat16(reference: str, whole: bool) -> None:
    """Inputs come in float32 and answers go as such; artifacts train in float32 and fit the base as it was loaded."""
    kept, plain = pa.load(reference), pa.load(reference)
    (kept.module if whole else kept.backbone).to(torch.bfloat16)
    draw = np.random.default_rng(0)
    raw = [draw.integers(0, 256, (28, 28, 3), dtype=np.uint8) if "vit" in reference else (draw.uniform(-0.5, 0.5, 3000).astype(np.float32), 16000) for _ in range(8)]
    data = Dataset("drawn", [Example(str(number), value, "ab"[number % 2]) for number, value in enumerate(raw)], "image" if "vit" in reference else "audio")
    train, split = {"max_steps": 3, "learning_rate": 1e-2, "batch_size": 4}, {"fractions": {"train": 1}}
    artifact, twin = (pa.adapt(model, "lora", data, train=train, split=split) for model in (kept, plain))
    assert (artifact.dtype, twin.dtype) == ("bfloat16", "float32")
    assert all(value.dtype == torch.float32 for edit in artifact.edits for value in edit.tensors.values())
    loss, expected = (each.provenance["metrics"]["train"]["loss"] for each in (artifact, twin))
    assert loss == pytest.approx(expected, rel=ROUNDING)
    [[score], [same]] = ([answer["score"] for answer in pa.infer(model, raw[:1], artifact=artifact)] for model in (kept, plain))
    assert score == pytest.approx(same, rel=ROUNDING)
