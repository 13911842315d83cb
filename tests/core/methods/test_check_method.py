"""The conformance checks themselves: every broken promise is seen and named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from polyadapt.edits import Edit, Form
from polyadapt.families.mlp_policy.card import CARD as POLICY
from polyadapt.methods.base import Method, Plan
from polyadapt.methods.bitfit.method import ShiftForm
from polyadapt.methods.lora.card import CARD, LoraOptions
from polyadapt.methods.lora.method import Lora, LoraForm
from polyadapt.model import Model
from polyadapt.testing.conformance import check_method, tiny_model

SITES = ("ffn.up",)


class Wrong(Method):
    """A method whose form is given by the test."""

    def __init__(self, make: Callable[[Model, torch.Generator], Form]) -> None:
        super().__init__(CARD)
        self.make = make

    def form(self, model: Model, options: Any, generator: torch.Generator) -> Form:
        return self.make(model, generator)


def lora_form(model: Model, generator: torch.Generator) -> LoraForm:
    ports = [model.ports.ops[site] for site in model.ports.select("op", SITES)]
    return LoraForm(ports, LoraOptions(rank=2), generator)


def with_form(change: Callable[[type[LoraForm]], type[LoraForm]]) -> Wrong:
    kind = change(LoraForm)
    return Wrong(lambda model, generator: kind([model.ports.ops[site] for site in model.ports.select("op", SITES)], LoraOptions(rank=2), generator))


def test_a_good_method_passes(tmp_path: Path) -> None:
    check_method(Wrong(lora_form), tiny_model(POLICY), tmp_path)


def test_no_identity_at_the_start(tmp_path: Path) -> None:
    def make(model: Model, generator: torch.Generator) -> Form:
        form = lora_form(model, generator)
        for b in form.b.values():
            torch.nn.init.ones_(b)
        return form

    with pytest.raises(AssertionError, match="moves by .* at the start, but the card declares identity"):
        check_method(Wrong(make), tiny_model(POLICY), tmp_path)


def test_it_trains_the_base(tmp_path: Path) -> None:
    class Greedy(LoraForm):
        def switch_on(self, base: Any) -> None:
            next(iter(base.slices.values())).parameter.requires_grad_(True)

        def base_values(self) -> int:
            return 32 * 64  # the first: block.0.ffn.down

    with pytest.raises(AssertionError, match="trains the base's"):
        check_method(with_form(lambda _: Greedy), tiny_model(POLICY), tmp_path)


def test_the_plan_counts_wrongly(tmp_path: Path) -> None:
    class Modest(Wrong):
        def plan(self, model: Model, options: Any, seed: int = 0) -> Plan:
            return replace(super().plan(model, options, seed), trainable=7)

    with pytest.raises(AssertionError, match="plan says 7 values train"):
        check_method(Modest(lora_form), tiny_model(POLICY), tmp_path)


def test_a_parameter_without_gradient(tmp_path: Path) -> None:
    class Idle(LoraForm):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.idle = torch.nn.Parameter(torch.ones(3))

    with pytest.raises(AssertionError, match="no gradient reaches idle"):
        check_method(with_form(lambda _: Idle), tiny_model(POLICY), tmp_path)


def test_it_changes_nothing(tmp_path: Path) -> None:
    class Silent(LoraForm):
        def edits(self) -> list[Edit]:
            return [Edit(edit.site, edit.kind, {"a": edit.tensors["a"], "b": edit.tensors["b"] * 0.0 + edit.tensors["b"].detach() * 0.0}) for edit in super().edits()]

    with pytest.raises(AssertionError, match=r"no gradient reaches|changes nothing"):
        check_method(with_form(lambda _: Silent), tiny_model(POLICY), tmp_path)


def test_lowering_loses_something(tmp_path: Path) -> None:
    class Lossy(LoraForm):
        def lower(self) -> list[Edit]:
            return [Edit(edit.site, edit.kind, {"a": edit.tensors["a"], "b": edit.tensors["b"] * 0.99}) for edit in super().lower()]

    with pytest.raises(AssertionError, match="a loaded artifact: action differs"):
        check_method(with_form(lambda _: Lossy), tiny_model(POLICY), tmp_path)


def test_a_checkpoint_loses_something(tmp_path: Path) -> None:
    class Forgetful(LoraForm):
        def load_trained(self, tensors: Mapping[str, torch.Tensor]) -> None:
            super().load_trained({**tensors, **{name: value * 0.5 for name, value in tensors.items() if name.startswith("b.")}})

    with pytest.raises(AssertionError, match="a checkpoint does not bring back"):
        check_method(with_form(lambda _: Forgetful), tiny_model(POLICY), tmp_path)


def test_detaching_leaves_a_trace(tmp_path: Path) -> None:
    class Sticky(LoraForm):
        def switch_off(self, base: Any) -> None:
            next(iter(base.slices.values())).parameter.data.add_(1e-6)

    with pytest.raises(AssertionError, match="detaching does not restore"):
        check_method(with_form(lambda _: Sticky), tiny_model(POLICY), tmp_path)


def test_a_buffer_of_the_base_changes(tmp_path: Path) -> None:
    model = tiny_model(POLICY)
    statistics = model.backbone.observation_mean

    class Leaky(LoraForm):
        def edits(self) -> list[Edit]:
            if torch.is_grad_enabled() and all(bool(b.any()) for b in self.b.values()):  # once it trains
                statistics.data.add_(1e-3)
            return super().edits()

    with pytest.raises(AssertionError, match=r"does not restore \['backbone\.observation_mean'\] bit for bit"):
        check_method(with_form(lambda _: Leaky), model, tmp_path)


def test_a_site_that_is_never_reached(tmp_path: Path) -> None:
    model = tiny_model(POLICY)
    model.backbone.add_module("spare", torch.nn.Linear(4, 4))
    port = replace(model.ports.ops["embed"], site="spare", path="spare", module=model.backbone.spare, in_features=4, out_features=4)
    model.ports.ops["spare"] = port
    from polyadapt.errors import UserError

    with pytest.raises(UserError, match="never reached in training mode: spare:shift"):
        check_method(Wrong(lambda *_: ShiftForm([port])), model, tmp_path)


def test_lora_itself_is_what_these_tests_bend(tmp_path: Path) -> None:
    check_method(Lora(CARD), tiny_model(POLICY), tmp_path)
