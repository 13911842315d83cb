"""The plugin keeps the contract, and its method does to its model what it says."""

from __future__ import annotations

import torch
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.testing.plugins import check_plugin

from polyadapt_demo import entry
from polyadapt_demo.cards import METHOD


def test_the_plugin_keeps_the_contract() -> None:
    report = check_plugin("polyadapt_demo.entry")
    assert report.registered == {"models": ["demo:tiny"], "families": ["demo-net"], "methods": ["demo-gain"], "readers": []}


def test_the_method_trains_one_gain_for_each_feature() -> None:
    model = Host(plugins=[("demo", entry)], discover=False).load("demo:tiny")
    plan = load_method(METHOD).plan(model, METHOD.options())
    assert plan.trainable == 2 * (32 + 16)  # two blocks, up and down


def test_attached_gains_change_nothing_at_the_start() -> None:
    model = Host(plugins=[("demo", entry)], discover=False).load("demo:tiny")
    form = load_method(METHOD).build(model, METHOD.options(), torch.Generator().manual_seed(0))
    assert all(torch.equal(edit.tensors["g"], torch.ones_like(edit.tensors["g"])) for edit in form.edits())
