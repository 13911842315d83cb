"""Masks: the effect of leaving weights out, against the op with those weights set to zero, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polyadapt.edits import Edit, Lowered, attachments_of, kind_of, stacked_edits
from polyadapt.edits.attach import check_edit
from polyadapt.edits.bank import Bank
from polyadapt.edits.merge import folded
from polyadapt.errors import UserError
from polyadapt.sites import OpPort, Ports, op_port

WIDTH = 6


def seeded(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def keep_of(rows: int, columns: int, seed: int) -> torch.Tensor:
    return (seeded(rows, columns, seed=seed) > -0.5).double()


def port_of(module: nn.Module, site: str = "q", rows: tuple[int, int] | None = None) -> OpPort:
    port = op_port(site, "0", module, rows)
    assert port is not None
    return port


def distance(difference: torch.Tensor) -> float:
    return float(difference.detach().abs().max())


class Turned(nn.Module):
    """A linear op that stores its weight as [in, out], as GPT-2 does; recognised by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(seeded(5, WIDTH, seed=1)), nn.Parameter(seeded(WIDTH, seed=2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


Turned.__name__ = "Conv1D"


def without(module: nn.Linear, keep: torch.Tensor) -> nn.Linear:
    """The same op with the other weights at zero."""
    plain = nn.Linear(module.in_features, module.out_features).double()
    with torch.no_grad():
        plain.weight.copy_(module.weight * keep)
        plain.bias.copy_(module.bias)
    return plain


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_weights_are_left_out(shape: tuple[int, ...]) -> None:
    root = nn.Sequential(nn.Linear(5, WIDTH)).double()
    keep, x = keep_of(WIDTH, 5, 3), seeded(4, *shape, seed=9)
    attachments = attachments_of(root, Ports("toy", ops={"q": port_of(root[0])}))
    attachments.add("mask", Lowered([Edit("q", "mask", {"keep": keep})]))
    assert distance(root(x) - without(root[0], keep)(x)) < 1e-14  # type: ignore[arg-type]


def test_a_turned_weight() -> None:
    module = Turned()
    root = nn.Sequential(module)
    keep, x = keep_of(WIDTH, 5, 3), seeded(4, 5, seed=9)
    port = port_of(module)
    assert port.transposed
    attachments_of(root, Ports("toy", ops={"q": port})).add("mask", Lowered([Edit("q", "mask", {"keep": keep})]))
    assert distance(root(x) - (x @ (module.weight * keep.T) + module.bias)) < 1e-14


def test_sites_of_a_fused_projection_have_masks_of_their_own() -> None:
    root = nn.Sequential(nn.Linear(5, 3 * WIDTH)).double()
    ports = {name: port_of(root[0], name, (part, 3)) for part, name in enumerate("qkv")}
    masks = {name: keep_of(WIDTH, 5, seed) for seed, name in enumerate("qv", 3)}
    attachments_of(root, Ports("toy", ops=ports)).add("mask", Lowered([Edit(name, "mask", {"keep": keep}) for name, keep in masks.items()]))
    whole = torch.cat([masks["q"], torch.ones(WIDTH, 5, dtype=torch.float64), masks["v"]])
    x = seeded(2, 4, 5, seed=9)
    assert distance(root(x) - without(root[0], whole)(x)) < 1e-14  # type: ignore[arg-type]


def test_folding_sets_the_weights_to_zero_also_beside_a_lowrank_update() -> None:
    """The mask lies on the op's own weights: what a low-rank update adds is not masked, in whatever order the edits come."""
    root = nn.Sequential(nn.Linear(5, WIDTH)).double()
    ports = Ports("toy", ops={"q": port_of(root[0])})
    keep = keep_of(WIDTH, 5, 3)
    edits = [Edit("q", "lowrank", {"a": seeded(5, 2, seed=4), "b": seeded(2, WIDTH, seed=5)}), Edit("q", "mask", {"keep": keep})]
    expected = root[0].weight * keep + (edits[0].tensors["a"] @ edits[0].tensors["b"]).T
    with folded(ports, edits) as remaining:
        assert not remaining
        assert distance(root[0].weight - expected) < 1e-14
    attachments_of(root, ports).add("both", Lowered(edits))
    x = seeded(4, 5, seed=9)
    assert distance(root(x) - (x @ expected.T + root[0].bias)) < 1e-13


def test_the_gradient_of_the_mask_is_that_of_the_masked_weight() -> None:
    """d loss / d keep = W * d loss / d (W * keep): what straight-through scores learn from."""
    root = nn.Sequential(nn.Linear(5, WIDTH)).double()
    keep, x = keep_of(WIDTH, 5, 3), seeded(4, 5, seed=9)
    form = Lowered([Edit("q", "mask", {"keep": keep})], trainable=True)
    attachments_of(root, Ports("toy", ops={"q": port_of(root[0])})).add("mask", form)
    root(x).pow(2).sum().backward()
    plain = without(root[0], keep)  # type: ignore[arg-type]
    plain(x).pow(2).sum().backward()
    [found] = [parameter.grad for parameter in form.parameters()]
    assert plain.weight.grad is not None and found is not None
    assert distance(found - root[0].weight * plain.weight.grad) < 1e-12


def test_effects_add() -> None:
    """w times a mask and the sum of two act as the weighed sum of what each takes away."""
    kind, port = kind_of("mask"), port_of(nn.Linear(5, WIDTH).double())
    x, h = seeded(4, 5, seed=9), torch.zeros(4, WIDTH, dtype=torch.float64)
    one, two = ({"keep": keep_of(WIDTH, 5, seed)} for seed in (3, 4))

    def effect(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        found: torch.Tensor = kind.apply(Edit("q", "mask", tensors), x, h, port)  # type: ignore[attr-defined]
        return found

    mixed = kind.mix(kind.scaled(one, "", 0.3), two, "")
    assert distance(effect(mixed) - (0.3 * effect(one) + effect(two))) < 1e-14


def test_every_row_of_a_batch_has_its_own_mask() -> None:
    root = nn.Sequential(nn.Linear(5, WIDTH)).double()
    ports = Ports("toy", ops={"q": port_of(root[0])})
    keeps = [torch.ones(WIDTH, 5, dtype=torch.float64), keep_of(WIDTH, 5, 3), keep_of(WIDTH, 5, 4)]
    bank = Bank(stacked_edits(ports, [("q", "mask", "")], [[Edit("q", "mask", {"keep": keep})] for keep in keeps]))
    ids, x = torch.tensor([2, 0, 1, 2]), seeded(4, 3, 5, seed=9)
    attachments_of(root, ports).add("bank", bank)
    with bank.choosing(ids):
        found = root(x)
    attachments_of(root).remove_all()
    for row, number in enumerate(ids.tolist()):
        assert distance(found[row] - without(root[0], keeps[number])(x[row])) < 1e-14  # type: ignore[arg-type]


def test_only_linear_ops_take_masks() -> None:
    port = port_of(nn.Conv1d(4, 6, 3), "conv")
    with pytest.raises(UserError, match="fit linear ops, and conv is a conv op"):
        check_edit(Edit("conv", "mask", {"keep": torch.ones(6, 12)}), Ports("toy", ops={"conv": port}))
