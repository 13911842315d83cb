"""Patches: every parameter of a base belongs to one site, differences go in and out bit for bit."""

from __future__ import annotations

import pytest
import torch

from polyadapt.artifact import Artifact
from polyadapt.edits import Edit, Lowered, attachments_of
from polyadapt.edits.form import Composite
from polyadapt.edits.patches import BaseParameters, parameter_slices
from polyadapt.errors import UserError
from polyadapt.host import Host
from polyadapt.host.inference import adapted
from polyadapt.testing.conformance import example_of, state_of, tasks_of, tiny_model

CARDS = {claim.card.id: claim.card for claim in Host().registry.families.claims()}


@pytest.mark.parametrize("family", CARDS)
def test_every_parameter_belongs_to_exactly_one_site(family: str) -> None:
    """The slices of a family cover each value of each parameter once, fused projections row by row."""
    model = tiny_model(CARDS[family], tasks_of(CARDS[family])[0])
    hits = {id(parameter): torch.zeros(parameter.shape, dtype=torch.int64) for parameter in model.backbone.parameters()}
    slices = parameter_slices(model.backbone, model.ports)
    for part in slices:
        counted = hits[id(part.parameter)]
        view = counted if part.rows is None else counted.narrow(part.dim, part.rows[0], part.rows[1] - part.rows[0])
        assert view.shape == part.view().shape
        view += 1
    assert all(bool((counted == 1).all()) for counted in hits.values())
    assert len({(part.site, part.tensor) for part in slices}) == len(slices)


def test_a_patch_is_its_difference_and_leaves_no_trace() -> None:
    model = tiny_model(CARDS["vit"], "features")
    before, inputs = state_of(model), example_of(model)
    with torch.no_grad():
        base = model.module(**inputs)["features"]
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(32, 32, generator=generator)
    edits = [Edit("block.0.attn.v", "patch", {"weight": delta}), Edit("other.cls_token", "patch", {"weight": torch.ones(1, 1, 32)})]
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("patch", Lowered(edits))
    qkv = model.backbone.blocks[0].attn.qkv.weight
    assert torch.equal(qkv[64:], before["backbone.blocks.0.attn.qkv.weight"][64:] + delta)
    assert torch.equal(qkv[:64], before["backbone.blocks.0.attn.qkv.weight"][:64])
    assert torch.equal(model.backbone.cls_token, before["backbone.cls_token"] + 1)
    with torch.no_grad():
        assert float((model.module(**inputs)["features"] - base).abs().max()) > 1e-3
    with attachments.using():
        assert all(torch.equal(value, before[name]) for name, value in state_of(model).items() if name in before)
    attachments.remove_all()
    after = state_of(model)
    assert set(after) == set(before) and all(torch.equal(after[name], value) for name, value in before.items())


def test_adding_and_taking_away_would_not_be_bit_exact() -> None:
    """Why originals are kept: (w + d) - d is not w in floating point."""
    w, d = torch.tensor([1e-8]), torch.tensor([1.0])
    assert not torch.equal((w + d) - d, w)


def test_two_patches_come_off_in_the_opposite_order() -> None:
    model = tiny_model(CARDS["mlp-policy"])
    before = state_of(model)
    base = BaseParameters(model.backbone, model.ports)
    one, two = [Edit("embed", "patch", {"bias": torch.ones(32)})], [Edit("embed", "patch", {"bias": torch.full((32,), 2.0)})]
    base.add(one, owner="one")
    base.add(two, owner="two")
    assert torch.equal(model.backbone.embed.bias, before["backbone.embed.bias"] + 1 + 2)
    with pytest.raises(UserError, match="switch the later one off first"):
        base.restore("one")
    base.restore("two")
    assert torch.equal(model.backbone.embed.bias, before["backbone.embed.bias"] + 1)
    base.restore("one")
    base.restore("one")  # a second time is nothing
    assert torch.equal(model.backbone.embed.bias, before["backbone.embed.bias"])


def test_patches_come_off_in_whatever_order_they_are_named() -> None:
    model = tiny_model(CARDS["mlp-policy"])
    before = state_of(model)
    attachments = attachments_of(model.module, model.ports, model.backbone)
    for name, value in (("a", 1.0), ("b", 2.0)):
        attachments.add(name, Lowered([Edit("embed", "patch", {"bias": torch.full((32,), value)})]), activate=False)
    attachments.activate("b")
    attachments.activate("a", "b")
    assert torch.equal(model.backbone.embed.bias, before["backbone.embed.bias"] + 2 + 1)
    attachments.remove_all()
    assert torch.equal(model.backbone.embed.bias, before["backbone.embed.bias"])


@pytest.mark.parametrize(
    ("site", "tensor", "shape", "words"),
    [("embde", "weight", (32, 39), "no parameter 'weight' at site 'embde'; did you mean 'embed'"), ("embed", "weight", (39, 32), r"expected shape \(32, 39\), found \(39, 32\)")],
)
def test_a_patch_that_does_not_fit_is_refused(site: str, tensor: str, shape: tuple[int, ...], words: str) -> None:
    model = tiny_model(CARDS["mlp-policy"])
    with pytest.raises(UserError, match=words):
        BaseParameters(model.backbone, model.ports).add([Edit(site, "patch", {tensor: torch.zeros(shape)})], owner="x")


GOOD = Edit("embed", "patch", {"bias": torch.ones(32)})
BAD = Edit("embde", "patch", {"bias": torch.ones(32)})


def test_patches_that_do_not_all_fit_change_nothing_and_leave_no_name() -> None:
    model = tiny_model(CARDS["mlp-policy"])
    before = state_of(model)
    artifact = Artifact("full", model.base_id, "mlp-policy", model.task.kind, (GOOD, BAD))
    for attempt in (lambda: artifact.attach(model), lambda: artifact.merge(model), lambda: adapted(model, artifact).__enter__()):
        with pytest.raises(UserError, match="no parameter 'bias' at site 'embde'"):
            attempt()
        after = state_of(model)
        assert set(after) == set(before) and all(torch.equal(after[name], value) for name, value in before.items())
        assert not hasattr(model.module, "polyadapt")


def test_what_was_active_stays_so_when_the_next_does_not_fit() -> None:
    model = tiny_model(CARDS["mlp-policy"])
    bias = model.backbone.embed.bias
    base = bias.detach().clone()
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("good", Lowered([GOOD]))
    attachments.add("bad", Composite([Lowered([GOOD]), Lowered([BAD])]), activate=False)
    with pytest.raises(UserError, match="no parameter 'bias' at site 'embde'"):
        attachments.activate("bad")
    assert attachments.active == ("good",) and torch.equal(bias, base + 1)
    with pytest.raises(UserError, match="embde"), adapted(model, Artifact("full", model.base_id, "mlp-policy", model.task.kind, (BAD,))):
        pass
    assert attachments.names == ("good", "bad") and attachments.active == ("good",) and torch.equal(bias, base + 1)
    attachments.remove_all()
    assert torch.equal(bias, base)
