"""Prompts in the place of the distillation token: against the library run on a sequence put together by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from polyadapt.edits import KINDS, Edit, Lowered, attachments_of
from polyadapt.errors import UserError
from polyadapt.families.ast.card import CARD as AST
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.methods.base import load_method
from polyadapt.methods.prompt.card import CARD
from polyadapt.model import Model
from polyadapt.testing.conformance import check_method, example_of, tiny_model

P = 4


def prompted(model: Model, deep: bool, length: int = P) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(features with prompts, the prompts of every block)."""
    form = load_method(CARD).form(model, CARD.options(length=length, deep=deep, place="distillation"), torch.Generator().manual_seed(0))
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("test", form)
    with torch.no_grad():
        found = model.module(**example_of(model))["features"]
    attachments.remove_all()
    return found, [torch.cat([edit.tensors["first"][None], edit.tensors["tokens"]]) for edit in form.lower()]


@pytest.mark.parametrize("deep", [False, True], ids=["shallow", "deep"])
def test_the_sequence_is_class_token_prompts_patches(deep: bool) -> None:
    model = tiny_model(AST, "features")
    found, prompts = prompted(model, deep)
    backbone: Any = model.backbone
    with torch.no_grad():
        hidden = backbone.embeddings(example_of(model)["input_values"])  # (B, 2 + N, d)
        for index, layer in enumerate(backbone.layers):
            if index == 0 or deep:
                patches = hidden[:, 2:] if index == 0 else hidden[:, 1 + P :]
                hidden = torch.cat([hidden[:, :1], prompts[index].expand(len(hidden), -1, -1), patches], dim=1)  # (B, 1 + P + N, d)
            hidden = layer(hidden)
        hidden = backbone.layernorm(hidden)
        expected = (hidden[:, 0] + hidden[:, 1]) / 2
    assert len(prompts) == (2 if deep else 1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_distillation_token_itself_is_gone() -> None:
    """Whatever it and its position hold, the answers are the same."""
    model = tiny_model(AST, "features")
    before, _ = prompted(model, False)
    with torch.no_grad():
        model.backbone.embeddings.distillation_token.add_(3.0)  # type: ignore[union-attr,operator]
    after, _ = prompted(model, False)
    assert torch.equal(before, after)


def test_the_identity_is_the_base_bit_for_bit() -> None:
    model = tiny_model(AST, "features")
    inputs = example_of(model)
    edits = [Edit(site, "prepend", KINDS["prepend"].identity(port, "instead"), "instead") for site, port in model.ports.streams.items()]
    with torch.no_grad():
        base = model.module(**inputs)["features"]
        attachments = attachments_of(model.module, model.ports, model.backbone)
        attachments.add("test", Lowered(edits))
        assert torch.equal(model.module(**inputs)["features"], base)
        attachments.remove_all()


def test_a_model_without_that_token_is_refused() -> None:
    with pytest.raises(UserError, match="no distillation token"):
        load_method(CARD).plan(tiny_model(VIT, "features"), CARD.options(place="distillation"))


def test_two_prompts_for_one_token_do_not_mix() -> None:
    port = tiny_model(AST, "features").ports.streams["tokens"]
    kind = KINDS["prepend"]
    tensors = kind.example(port, "instead", 2, torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="same token"):
        kind.mix(tensors, tensors, "instead")


@pytest.mark.parametrize("deep", [False, True], ids=["shallow", "deep"])
def test_prompts_in_its_place_conform(deep: bool, tmp_path: Any) -> None:
    from dataclasses import replace

    class Instead(CARD.options):  # type: ignore[name-defined,misc]
        place: Any = "distillation"
        deep: Any = False

    class Deep(Instead):
        deep: Any = True

    check_method(load_method(replace(CARD, options=Deep if deep else Instead)), tiny_model(AST), tmp_path)
