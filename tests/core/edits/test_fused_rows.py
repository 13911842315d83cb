"""Sites of a fused projection: edits of its rows equal the same edits on three separate projections, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polyadapt.edits import Edit, Lowered, attachments_of
from polyadapt.edits.form import Form
from polyadapt.edits.merge import merge
from polyadapt.errors import UserError
from polyadapt.sites import Ports, op_port

WIDTH, INPUTS = 4, 6
PARTS = ("q", "k", "v")


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(INPUTS, 3 * WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.qkv(x)
        return result


def seeded(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fused() -> tuple[Fused, Ports]:
    root = Fused().double().eval()
    with torch.no_grad():
        root.qkv.weight.copy_(seeded(3 * WIDTH, INPUTS, seed=1))
        root.qkv.bias.copy_(seeded(3 * WIDTH, seed=2))
    ports = {name: op_port(name, "qkv", root.qkv, (index, 3)) for index, name in enumerate(PARTS)}
    return root, Ports("toy", ops={name: port for name, port in ports.items() if port is not None})


def lowrank(site: str, seed: int, rank: int, dropout: float = 0.0) -> Edit:
    return Edit(site, "lowrank", {"a": seeded(INPUTS, rank, seed=seed), "b": seeded(rank, WIDTH, seed=seed + 1)}, dropout=dropout)


def scale(site: str, seed: int) -> Edit:
    return Edit(site, "scale", {"g": 1 + 0.5 * seeded(WIDTH, seed=seed)})


def shift(site: str, seed: int) -> Edit:
    return Edit(site, "shift", {"b": seeded(WIDTH, seed=seed)})


CASES = {
    "one site": [lowrank("k", 3, 2)],
    "two sites, two ranks": [lowrank("q", 3, 2), lowrank("v", 5, 3)],
    "rank 0 beside another": [lowrank("q", 3, 0), lowrank("v", 5, 3)],
    "scales and shifts": [scale("q", 3), shift("q", 4), shift("k", 5), scale("v", 6)],
    "everything": [edit for index, site in enumerate(PARTS) for edit in (shift(site, 30 + index), lowrank(site, 10 + 2 * index, index + 1), scale(site, 20 + index))],
}


def separately(root: Fused, edits: list[Edit], x: torch.Tensor) -> torch.Tensor:
    """Every projection for itself, in the order lowrank, scale, shift."""
    pieces = []
    for index, site in enumerate(PARTS):
        rows = slice(index * WIDTH, (index + 1) * WIDTH)
        h = x @ root.qkv.weight[rows].T + root.qkv.bias[rows]
        own = {edit.kind: edit.tensors for edit in edits if edit.site == site}
        if "lowrank" in own:
            h = h + x @ own["lowrank"]["a"] @ own["lowrank"]["b"]
        if "scale" in own:
            h = h * own["scale"]["g"]
        if "shift" in own:
            h = h + own["shift"]["b"]
        pieces.append(h)
    return torch.cat(pieces, dim=-1)


@pytest.mark.parametrize("case", CASES)
def test_rows_equal_separate_projections(case: str) -> None:
    root, ports = fused()
    x = seeded(2, 5, INPUTS, seed=9)
    with torch.no_grad():
        expected = separately(root, CASES[case], x)
        attachments_of(root, ports).add("edits", Lowered(CASES[case]))
        torch.testing.assert_close(root(x), expected, rtol=1e-13, atol=1e-13)


def test_two_forms_on_one_site_add_up() -> None:
    root, ports = fused()
    x, first, second = seeded(5, INPUTS, seed=9), lowrank("q", 3, 2), lowrank("q", 5, 1)
    both = Edit("q", "lowrank", {"a": torch.cat([first.tensors["a"], second.tensors["a"]], 1), "b": torch.cat([first.tensors["b"], second.tensors["b"]], 0)})
    with torch.no_grad():
        expected = separately(root, [both], x)
        attachments = attachments_of(root, ports)
        attachments.add("first", Lowered([first]))
        attachments.add("second", Lowered([second]))
        attachments.activate("first", "second")
        torch.testing.assert_close(root(x), expected, rtol=1e-13, atol=1e-13)


def test_every_edit_is_seen() -> None:
    root, ports = fused()
    attachments = attachments_of(root, ports)
    attachments.add("edits", Lowered(CASES["everything"]))
    with attachments.counting() as seen:
        root(seeded(5, INPUTS, seed=9))
    assert seen == {("op", edit.key) for edit in CASES["everything"]}


class Dropped(Form):
    """Two edits that drop half of their input each."""

    def edits(self) -> list[Edit]:
        return [lowrank("q", 3, INPUTS, 0.5), lowrank("v", 3, INPUTS, 0.5)]


def test_dropout_is_drawn_for_every_site() -> None:
    """The same factors at q and v: equal without dropout, unequal with a draw each, and the rows of k untouched."""
    root, ports = fused()
    x = seeded(64, INPUTS, seed=9)
    with torch.random.fork_rng(), torch.no_grad():
        base = root(x)
        attachments = attachments_of(root, ports)
        attachments.add("edits", Dropped())
        root.eval()
        still = root(x) - base
        torch.testing.assert_close(still[:, :WIDTH], still[:, 2 * WIDTH :], rtol=1e-12, atol=1e-12)
        root.train()
        moved = root(x) - base
    assert (moved[:, :WIDTH] - moved[:, 2 * WIDTH :]).abs().max() > 0.1
    assert torch.equal(moved[:, WIDTH : 2 * WIDTH], torch.zeros_like(moved[:, :WIDTH]))


def test_an_input_scale_of_one_site_is_refused() -> None:
    """All sites of a fused projection read one input: scaled for q it would be scaled for k and v."""
    root, ports = fused()
    edit = Edit("q", "scale", {"g": torch.full((INPUTS,), 2.0)}, "input")
    with pytest.raises(UserError, match="cannot scale the input of q alone: its fused projection serves other sites too; scale their outputs"):
        attachments_of(root, ports).add("edits", Lowered([edit]))
    with pytest.raises(UserError, match="cannot merge q:scale~input: its fused projection takes one input for several sites"):
        merge(ports, [edit])
