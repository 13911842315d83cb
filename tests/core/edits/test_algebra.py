"""Algebra acts on effects: the output of a sum is the sum of the changes, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polyadapt.edits import Edit, Lowered, attachments_of
from polyadapt.edits.algebra import added, average, scaled, truncated
from polyadapt.errors import UserError
from polyadapt.sites import Ports, SpanPort, op_port


class Block(nn.Module):
    """One Linear whose span is itself, and a second op behind it that is not edited."""

    def __init__(self) -> None:
        super().__init__()
        self.op = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.op(x)
        return result


def seeded(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def effect(edits: Sequence[Edit]) -> torch.Tensor:
    """What edits add to the output of the block."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        root = Block().double().eval()
        port = op_port("op", "op", root.op, None)
        assert port is not None
        x = seeded(7, 6, seed=99)
        base = root(x)
        attachments_of(root, Ports("toy", ops={"op": port}, spans={"span": SpanPort("span", port, port)})).add("edits", Lowered(edits))
        found: torch.Tensor = root(x) - base
        return found


def lowrank(seed: int, rank: int = 2) -> Edit:
    return Edit("op", "lowrank", {"a": seeded(6, rank, seed=seed), "b": seeded(rank, 5, seed=seed + 1)})


def shift(seed: int) -> Edit:
    return Edit("op", "shift", {"b": seeded(5, seed=seed)})


def scale(seed: int, variant: str = "") -> Edit:
    return Edit("op", "scale", {"g": 1 + 0.5 * seeded(6 if variant else 5, seed=seed)}, variant)


def adapter(seed: int, variant: str = "parallel-gelu") -> Edit:
    n_in = 6 if variant.startswith("parallel") else 5
    tensors = {"down": seeded(n_in, 2, seed=seed), "down_bias": seeded(2, seed=seed + 1), "up": seeded(2, 5, seed=seed + 2), "up_bias": seeded(5, seed=seed + 3)}
    return Edit("span", "bottleneck", tensors, variant)


ADDITIVE = {"lowrank": lowrank, "shift": shift, "bottleneck": adapter}


@pytest.mark.parametrize("kind", ADDITIVE)
def test_a_sum_has_the_sum_of_the_effects(kind: str) -> None:
    left, right = ADDITIVE[kind](1), ADDITIVE[kind](20)
    found = effect(added([left], [right]))
    assert float((found - effect([left]) - effect([right])).abs().max()) < 1e-12


@pytest.mark.parametrize("weight", [0.0, 0.3, -2.0])
@pytest.mark.parametrize("kind", [*ADDITIVE, "scale", "sequential"])
def test_scaling_scales_the_effect(kind: str, weight: float) -> None:
    edit = {**ADDITIVE, "scale": scale, "sequential": lambda seed: adapter(seed, "sequential-tanh")}[kind](1)
    assert float((effect(scaled([edit], weight)) - weight * effect([edit])).abs().max()) < 1e-12


def test_scales_multiply() -> None:
    """One after the other: the product, not a sum of effects; 1 + w (g - 1) undoes at w = 0."""
    left, right = scale(1), scale(5)
    both = added([left], [right])
    assert len(both) == 1 and torch.equal(both[0].tensors["g"], left.tensors["g"] * right.tensors["g"])
    assert torch.equal(scaled([left], 0.0)[0].tensors["g"], torch.ones(5, dtype=torch.float64))


def test_edits_at_different_places_stand_side_by_side() -> None:
    elsewhere = Edit("other", "lowrank", lowrank(5).tensors)
    both = added([lowrank(1), shift(3)], [elsewhere, shift(7)])
    assert [edit.key for edit in both] == ["op:lowrank", "op:shift", "other:lowrank"]
    assert torch.equal(both[1].tensors["b"], shift(3).tensors["b"] + shift(7).tensors["b"])


def test_an_average_of_three() -> None:
    sets, weights = [[lowrank(1), shift(2)], [lowrank(10, 3), shift(11)], [lowrank(20), shift(21)]], [0.5, 0.3, 0.2]
    total = average(sets, weights)
    expected = sum(weight * effect(edits) for weight, edits in zip(weights, sets, strict=True))
    assert float((effect(total) - expected).abs().max()) < 1e-12
    assert total[0].tensors["a"].shape == (6, 7)


def test_svd_brings_a_rank_back_without_loss_where_the_product_has_it() -> None:
    """Two times the same LoRA has rank 4 in its factors and rank 2 in truth."""
    same = average([[lowrank(1)], [lowrank(1)]], [0.5, 0.5], rank=2)
    assert same[0].tensors["a"].shape == (6, 2)
    assert float((effect(same) - effect([lowrank(1)])).abs().max()) < 1e-12


def test_svd_is_the_best_approximation() -> None:
    """Eckart and Young: the error of rank 2 is the root of the sum of the squares of what is cut off."""
    edit = lowrank(1, 5)
    product = edit.tensors["a"] @ edit.tensors["b"]
    short = truncated(edit, 2)
    assert (short.tensors["a"].shape, short.tensors["b"].shape) == ((6, 2), (2, 5))
    error = torch.linalg.norm(product - short.tensors["a"] @ short.tensors["b"])
    assert abs(float(error - torch.linalg.svdvals(product)[2:].pow(2).sum().sqrt())) < 1e-12
    assert truncated(edit, 5) is edit and truncated(shift(1), 1).kind == "shift"


def test_a_scale_and_what_it_would_multiply_are_refused() -> None:
    """(W x + x a b) g is not the sum of what g and what a b do; neither where g scales the input."""
    for variant in ("", "input"):
        factor = scale(3, variant)
        both = effect([lowrank(9), factor])
        assert float((both - effect([lowrank(9)]) - effect([factor])).abs().max()) > 0.1
        for left, right in (([factor], [lowrank(9)]), ([lowrank(9)], [factor]), ([lowrank(9), shift(1)], [factor])):
            with pytest.raises(UserError, match=r"one scales an op and another changes its weights \(DoRA\) at op: their effects do not add"):
                added(left, right)
        added([factor], [shift(2), Edit("other", "lowrank", lowrank(5).tensors)])


def test_two_edits_of_one_key_in_one_set_are_refused() -> None:
    for left, right in (([shift(1), shift(2)], []), ([], [shift(1), shift(2)])):
        with pytest.raises(UserError, match="two edits claim op:shift; combine them first"):
            added(left, right)


def test_sums_with_dora_are_refused() -> None:
    dora = [lowrank(1), scale(3)]
    for left, right in ((dora, [lowrank(9)]), ([lowrank(9)], dora), (dora, dora)):
        with pytest.raises(UserError, match=r"\(DoRA\) at op: their effects do not add"):
            added(left, right)


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        (adapter(1, "sequential-relu"), adapter(9, "sequential-relu"), "cannot be mixed when sequential"),
        (Edit("head", "prototypes", {"weight": seeded(5, 2, seed=1)}), Edit("head", "prototypes", {"weight": seeded(5, 2, seed=2)}), "'prototypes' cannot be mixed"),
        (Edit("attn", "cross", {"k": seeded(2, 2, seed=1)}), Edit("attn", "cross", {"k": seeded(2, 2, seed=1)}), "'cross' cannot be mixed"),
    ],
)
def test_what_does_not_add_is_refused(left: Edit, right: Edit, words: str) -> None:
    with pytest.raises(UserError, match=words):
        added([left], [right])


def test_a_head_cannot_be_scaled() -> None:
    with pytest.raises(UserError, match="'prototypes' cannot be scaled"):
        scaled([Edit("head", "prototypes", {"weight": seeded(5, 2, seed=1)})], 0.5)


@pytest.mark.parametrize("kind", ["keys", "prepend"])
def test_prefixes_and_prompts_stand_side_by_side(kind: str) -> None:
    names, axis = (("k", "v"), 1) if kind == "keys" else (("tokens",), 0)
    shape = (2, 3, 4) if kind == "keys" else (3, 4)
    left, right = ({name: seeded(*shape, seed=seed + index) for index, name in enumerate(names)} for seed in (1, 5))
    both = added([Edit("attn", kind, left)], [Edit("attn", kind, right)])[0].tensors
    assert all(torch.equal(both[name], torch.cat([left[name], right[name]], dim=axis)) for name in names)


def test_patches_of_one_site_are_summed() -> None:
    left = Edit("op", "patch", {"weight": torch.tensor([[1.0, 0.0], [2.0, 3.0]]), "bias": torch.tensor([1.0, 0.0])})
    right = Edit("op", "patch", {"weight": torch.tensor([[4.0, 5.0], [0.0, 6.0]])})
    far = Edit("other", "patch", {"weight": torch.ones(2, 2)})
    both = {edit.site: edit for edit in added([left], [right, far])}
    assert torch.equal(both["op"].tensors["weight"], left.tensors["weight"] + right.tensors["weight"])
    assert torch.equal(both["op"].tensors["bias"], left.tensors["bias"]) and set(both) == {"op", "other"}


def test_weights_and_sets_must_match() -> None:
    with pytest.raises(UserError, match="2 sets, 1 weights"):
        average([[lowrank(1)], [lowrank(2)]], [1.0])


def test_the_block_is_a_linear() -> None:
    """The helper measures what it says: a shift adds itself, a low-rank pair adds x a b."""
    assert torch.allclose(effect([shift(1)]), shift(1).tensors["b"].expand(7, -1))
    assert torch.allclose(effect([lowrank(1)]), seeded(7, 6, seed=99) @ lowrank(1).tensors["a"] @ lowrank(1).tensors["b"])
    assert F.relu(torch.zeros(1)).item() == 0.0
