"""Modules of no family: ports by hand or found, and what a fast path skips is refused by name."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import polyadapt as pa
from polyadapt.errors import UserError


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def test_given_ports_train_only_there() -> None:
    module = network()
    base = module(X)
    attached = pa.attach(module, "lora", ports={"out": "2"}, sites=("out",), example=X)
    with torch.no_grad():
        for parameter in attached.parameters():
            parameter.add_(0.3)
    changed = module(X)
    edit = attached.form.edits()[0]
    hidden = module[1](module[0](X))
    assert torch.allclose(changed, base + hidden @ edit.tensors["a"] @ edit.tensors["b"], atol=1e-6)
    assert {name for name, parameter in module.named_parameters() if parameter.requires_grad} == {"polyadapt.forms.adapter.a.out", "polyadapt.forms.adapter.b.out"}
    attached.detach()
    assert torch.equal(module(X), base)


def test_auto_finds_and_shows_ports(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        attached = pa.attach(network(), "lora", sites="auto", example=X)
    assert [edit.site for edit in attached.form.edits()] == ["0", "2"]
    assert "ports found: 0, 2" in caplog.text


def test_auto_needs_an_example() -> None:
    with pytest.raises(UserError, match="pass example"):
        pa.attach(network(), "lora", sites="auto")


def test_a_fast_path_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    tokens = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    attached = pa.attach(layer, "lora", sites="auto", example=tokens)
    sites = {edit.site for edit in attached.form.edits()}
    assert "self_attn.out_proj" not in sites
    assert "no port at self_attn.out_proj" in caplog.text
    with pytest.raises(UserError, match="never reached"):
        pa.attach(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), "lora", ports={"attn.o": "self_attn.out_proj"}, sites=("attn.o",), example=tokens)


def test_an_example_that_does_not_fit_leaves_nothing_attached() -> None:
    module = pa.load("polyadapt:tiny-mlp-policy").backbone
    trained = {name: value.requires_grad for name, value in module.named_parameters()}
    with pytest.raises(UserError, match=r"the module does not take the example \(RuntimeError: .*give inputs as it is called with"):
        pa.attach(module, "lora", sites=["ffn.*"], example=torch.randn(2, 7))
    assert {name: value.requires_grad for name, value in module.named_parameters()} == trained
    pa.attach(module, "lora", sites=["ffn.*"], example=torch.randn(2, 39)).detach()


def test_a_wrong_path_names_the_nearest() -> None:
    with pytest.raises(UserError, match="no submodule '3'"):
        pa.attach(network(), "lora", ports={"out": "3"})
