"""Norm tuning: identity at the start, the same as PEFT's `ln_tuning` in value and in training, conformance."""

from __future__ import annotations

import copy
from importlib import import_module
from pathlib import Path

import pytest
import torch

from polyadapt.edits import attachments_of
from polyadapt.errors import UserError
from polyadapt.methods.base import load_method
from polyadapt.model import Model
from polyadapt.testing.conformance import applies, check_method, tiny_model
from polyadapt_text.norm_tuning.card import CARD

FAMILIES = ("bert", "llama", "gpt2", "vit", "whisper", "wav2vec2", "efficientnet", "t5")
PEFT_MODULES = {"bert": ["LayerNorm"], "llama": ["input_layernorm", "post_attention_layernorm", "norm"], "gpt2": ["ln_1", "ln_2", "ln_f"]}


def model_of(family: str, task: str = "") -> Model:
    return tiny_model(import_module(f"polyadapt.families.{family}.card").CARD, task)


def form_of(model: Model, **options: object):
    return load_method(CARD).build(model, CARD.options(**options), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_norm_tuning_conforms(family: str, tmp_path: Path) -> None:
    if family in ("vit", "efficientnet"):
        pytest.importorskip("timm", reason="the plugin alone brings no library of pictures")
    model = model_of(family)
    assert applies(load_method(CARD), model) == ""
    check_method(load_method(CARD), model, tmp_path)


def test_only_norms_are_edited_and_the_count_is_twice_their_width() -> None:
    model = model_of("bert", "features")
    plan = load_method(CARD).plan(model, CARD.options())
    assert {row.kind for row in plan.rows} == {"scale", "shift"}
    assert all(model.ports.ops[row.site].kind == "norm" for row in plan.rows)
    norms = [module for module in model.backbone.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert plan.trainable == sum(module.weight.numel() + module.bias.numel() for module in norms)


def test_a_norm_without_bias_gets_one_on_request_only() -> None:
    model = model_of("llama")
    kinds = [{edit.kind for edit in form_of(model, add_missing=wanted).edits()} for wanted in (False, True)]
    assert kinds == [{"scale"}, {"scale", "shift"}]


def test_a_weight_of_zero_stays_zero_without_infinities() -> None:
    model = model_of("bert", "features")
    port = next(port for port in model.ports.ops.values() if port.kind == "norm")
    with torch.no_grad():
        port.module.weight[0] = 0.0
    form = form_of(model)
    with torch.no_grad():
        for parameter in form.parameters():
            parameter.fill_(0.5)
    assert all(torch.isfinite(value).all() for edit in form.edits() for value in edit.tensors.values())


def test_sites_without_a_norm_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="linear ops; this method takes norm"):
        form_of(model_of("bert", "features"), sites=("attn.q",))


def inputs_of(model: Model) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 60, (3, 9), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("family", PEFT_MODULES)
def test_training_takes_the_same_steps_as_peft(family: str) -> None:
    """Five AdamW steps on the same loss give the same outputs: dw and db have the gradients of w and b."""
    peft = pytest.importorskip("peft", reason="peft is the oracle of this test; it is in the test extra")
    model = model_of(family, "features" if family == "bert" else "")
    inputs = inputs_of(model)
    wrapped = peft.get_peft_model(copy.deepcopy(model.backbone), peft.LNTuningConfig(target_modules=PEFT_MODULES[family])).eval()
    form = form_of(model)
    assert sum(value.numel() for value in form.parameters()) == sum(value.numel() for value in wrapped.parameters() if value.requires_grad)
    attachments_of(model.module, model.ports, model.backbone).add("ours", form)
    sides = {
        "ours": (lambda: next(iter(model.module(**inputs).values())), list(form.parameters())),
        "peft": (lambda: next(iter(model.family.forward(wrapped.get_base_model(), model.task, inputs).values())), [value for value in wrapped.parameters() if value.requires_grad]),
    }
    target = torch.randn(sides["ours"][0]().shape, generator=torch.Generator().manual_seed(5))
    found = {}
    for name, (forward, parameters) in sides.items():
        optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
        before = forward().detach()
        for _ in range(5):
            optimiser.zero_grad()
            (forward() - target).square().mean().backward()
            optimiser.step()
        found[name] = (before, forward().detach())
    for ours, theirs in zip(found["ours"], found["peft"], strict=True):
        assert float((ours - theirs).abs().max() / theirs.abs().max()) < 2e-5
    assert float((found["ours"][1] - found["ours"][0]).abs().max()) > 0.05
