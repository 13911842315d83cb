"""The conformance checks themselves: every broken promise is seen and named, each by a method that breaks it alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polyadapt.artifact import Artifact
from polyadapt.edits import Edit, Form
from polyadapt.edits.kinds.module import tensors_of
from polyadapt.edits.patches import parameter_slices
from polyadapt.families.card import FamilyCard
from polyadapt.families.mlp_policy.card import CARD as POLICY
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.methods.base import Method, Plan
from polyadapt.methods.bitfit.method import ShiftForm
from polyadapt.methods.full.method import FullForm
from polyadapt.methods.lora.card import CARD, LoraOptions
from polyadapt.methods.lora.method import Lora, LoraForm
from polyadapt.model import Model
from polyadapt.testing.conformance import check_method, tiny_model

SITES = ("ffn.up",)
SPAN = "block.0.ffn"


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


class BesideForm(Form):
    """One module beside one span."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def edits(self) -> list[Edit]:
        return [Edit(SPAN, "module", tensors_of(self.module), "bent", structure=self.module)]


class Beside(Wrong):
    """A method with one module of its own, which starts at zero."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__(lambda model, generator: BesideForm(kind(model.ports.spans[SPAN].out_features)))
        self.kind = kind

    def structure(self, edit: Edit, options: Any) -> nn.Module:
        return self.kind(len(edit.tensors["weight"]))


class Square(nn.Module):
    """x W with a square W."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def test_a_good_method_passes(tmp_path: Path) -> None:
    check_method(Wrong(lora_form), tiny_model(POLICY), tmp_path)
    check_method(Beside(Square), tiny_model(POLICY), tmp_path)


def test_no_identity_at_the_start(tmp_path: Path) -> None:
    def make(model: Model, generator: torch.Generator) -> Form:
        form = lora_form(model, generator)
        for b in form.b.values():
            torch.nn.init.ones_(b)
        return form

    with pytest.raises(AssertionError, match=r"^lora on mlp-policy: action moves by \S+ at the start, but the card declares identity$"):
        check_method(Wrong(make), tiny_model(POLICY), tmp_path)


def test_it_trains_the_base(tmp_path: Path) -> None:
    class Greedy(LoraForm):
        def switch_on(self, base: Any) -> None:
            next(iter(base.slices.values())).parameter.requires_grad_(True)

        def base_values(self) -> int:
            return 32 * 64  # the first: block.0.ffn.down

    with pytest.raises(AssertionError, match=r"^lora trains the base's backbone\.blocks\.0\.down\.weight$"):
        check_method(with_form(lambda _: Greedy), tiny_model(POLICY), tmp_path)


def test_the_plan_counts_wrongly(tmp_path: Path) -> None:
    class Modest(Wrong):
        def plan(self, model: Model, options: Any, seed: int = 0) -> Plan:
            return replace(super().plan(model, options, seed), trainable=7)

    with pytest.raises(AssertionError, match=r"^lora on mlp-policy: plan says 7 values train, 384 do$"):
        check_method(Modest(lora_form), tiny_model(POLICY), tmp_path)


def test_a_parameter_without_gradient(tmp_path: Path) -> None:
    class Idle(LoraForm):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.idle = torch.nn.Parameter(torch.ones(3))

    with pytest.raises(AssertionError, match=r"^no gradient reaches idle on mlp-policy$"):
        check_method(with_form(lambda _: Idle), tiny_model(POLICY), tmp_path)


def test_a_parameter_of_the_base_without_gradient(tmp_path: Path) -> None:
    """A form that trains the base has no parameters of its own to look at."""

    class Deaf(FullForm):
        def switch_on(self, base: Any) -> None:
            super().switch_on(base)
            self.parameters_of_base()[0].register_hook(torch.zeros_like)

    with pytest.raises(AssertionError, match=r"^no gradient reaches backbone\.blocks\.0\.down\.weight on mlp-policy$"):
        check_method(Wrong(lambda model, generator: Deaf(parameter_slices(model.backbone, model.ports))), tiny_model(POLICY), tmp_path)


@pytest.mark.parametrize("card", [POLICY, VIT], ids=["without a head", "beside a fresh head"])
def test_it_changes_nothing(card: FamilyCard, tmp_path: Path) -> None:
    """A B - A B with gradients through the first alone: rounding is all that is left, and the scores of a new class head must not hide it."""

    class Silent(LoraForm):
        def edits(self) -> list[Edit]:
            return [Edit(edit.site, edit.kind, self.undone(**edit.tensors)) for edit in super().edits()]

        @staticmethod
        def undone(a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"a": torch.cat([a, a.detach()], 1), "b": torch.cat([b, -b.detach()])}  # (in, 2r), (2r, out)

    with pytest.raises(AssertionError, match=rf"^lora changes nothing on {card.id} at a non-degenerate state$"):
        check_method(with_form(lambda _: Silent), tiny_model(card), tmp_path)


def test_lowering_loses_something(tmp_path: Path) -> None:
    class Lossy(LoraForm):
        def lower(self) -> list[Edit]:
            return [Edit(edit.site, edit.kind, {"a": edit.tensors["a"], "b": edit.tensors["b"] * 0.99}) for edit in super().lower()]

    with pytest.raises(AssertionError, match=r"^lora on mlp-policy: a loaded artifact: action differs by \S+ of its largest value \(tolerance 1e-05\)$"):
        check_method(with_form(lambda _: Lossy), tiny_model(POLICY), tmp_path)


def test_a_checkpoint_loses_something(tmp_path: Path) -> None:
    class Forgetful(LoraForm):
        def load_trained(self, tensors: Mapping[str, torch.Tensor]) -> None:
            super().load_trained({**tensors, **{name: value * 0.5 for name, value in tensors.items() if name.startswith("b.")}})

    with pytest.raises(AssertionError, match=r"^lora on mlp-policy: a checkpoint does not bring back the outputs$"):
        check_method(with_form(lambda _: Forgetful), tiny_model(POLICY), tmp_path)


def test_detaching_leaves_a_trace(tmp_path: Path) -> None:
    class Sticky(LoraForm):
        def switch_off(self, base: Any) -> None:
            next(iter(base.slices.values())).parameter.data.add_(1e-6)

    with pytest.raises(AssertionError, match=r"^detaching does not restore \['backbone\.blocks\.0\.down\.weight'\] bit for bit$"):
        check_method(with_form(lambda _: Sticky), tiny_model(POLICY), tmp_path)


def test_a_buffer_of_the_base_changes(tmp_path: Path) -> None:
    model = tiny_model(POLICY)
    statistics = model.backbone.observation_mean

    class Leaky(LoraForm):
        def edits(self) -> list[Edit]:
            if torch.is_grad_enabled() and all(bool(b.any()) for b in self.b.values()):  # once it trains
                statistics.data.add_(1e-3)
            return super().edits()

    with pytest.raises(AssertionError, match=r"^detaching does not restore \['backbone\.observation_mean'\] bit for bit$"):
        check_method(with_form(lambda _: Leaky), model, tmp_path)


def test_detaching_leaves_something_behind(tmp_path: Path) -> None:
    model = tiny_model(POLICY)

    class Littering(LoraForm):
        def switch_off(self, base: Any) -> None:
            model.backbone.register_buffer("trace", torch.ones(1), persistent=False)

    with pytest.raises(AssertionError, match=r"^detaching leaves \['backbone\.trace'\]$"):
        check_method(with_form(lambda _: Littering), model, tmp_path)


def test_loading_changes_the_tensors(tmp_path: Path) -> None:
    class Careless(Wrong):
        def restored(self, artifact: Artifact) -> Artifact:
            return artifact.with_edits(replace(edit, tensors={name: value.bfloat16().float() for name, value in edit.tensors.items()}) for edit in artifact.edits)

    with pytest.raises(AssertionError, match=r"^tensors change between save and load$"):
        check_method(Careless(lora_form), tiny_model(POLICY), tmp_path)


@pytest.mark.parametrize("card", [POLICY, VIT], ids=["without a head", "beside a fresh head"])
def test_another_adapter_is_no_other(card: FamilyCard, tmp_path: Path) -> None:
    """The other adapter is this one times 1.25, which a module that takes only the direction of its weights does not see."""

    class Direction(Square):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ F.normalize(self.weight, dim=0)

    with pytest.raises(AssertionError, match=rf"^lora on {card.id}: swapping to another adapter changes nothing$"):
        check_method(Beside(Direction), tiny_model(card), tmp_path)


def test_an_adapter_that_drifts(tmp_path: Path) -> None:
    """Once it is no longer trained, every call answers a little more: too little for the comparison with the trained form."""

    class Drifting(Square):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += not self.weight.requires_grad
            return super().forward(x) * (1 + 5e-7 * self.calls)

    with pytest.raises(AssertionError, match=r"^lora on mlp-policy: A, B, A does not repeat A$"):
        check_method(Beside(Drifting), tiny_model(POLICY), tmp_path)


def test_the_bare_base_answers_otherwise(tmp_path: Path) -> None:
    """A setting of a module is neither a parameter nor a buffer, so only the outputs tell."""
    model = tiny_model(POLICY)

    class Meddling(LoraForm):
        def switch_off(self, base: Any) -> None:
            model.backbone.norm.eps = 1.2e-5

    with pytest.raises(AssertionError, match=r"^lora on mlp-policy: with nothing active the base does not answer as before$"):
        check_method(with_form(lambda _: Meddling), model, tmp_path)


def test_folding_loses_something(tmp_path: Path) -> None:
    """Two ranks of 8192 and -8192 cancel, and what stands beside them in float32 keeps three digits; folded, other three than attached."""

    class Cancelling(LoraForm):
        def edits(self) -> list[Edit]:
            return [Edit(edit.site, edit.kind, self.padded(**edit.tensors)) for edit in super().edits()]

        @staticmethod
        def padded(a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
            far = b.new_full((1, b.shape[1]), 8192.0)
            return {"a": torch.cat([a, a.new_ones(len(a), 2)], 1), "b": torch.cat([b, far, -far])}  # (in, r + 2), (r + 2, out)

    with pytest.raises(AssertionError, match=r"^folded edits on mlp-policy: action differs by \S+ of its largest value \(tolerance 1e-05\)$"):
        check_method(with_form(lambda _: Cancelling), tiny_model(POLICY), tmp_path)


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
