"""Banks in torch: every row of a batch answers as it would alone with its artifact, in float64, for every kind that allows it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from polyadapt.edits import KINDS, Bank, Edit, Lowered, attachments_of, kind_of, stacked_edits
from polyadapt.errors import UserError
from polyadapt.families.bert.card import CARD as BERT
from polyadapt.families.card import FamilyCard
from polyadapt.families.t5.card import CARD as T5
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.families.wav2vec2.card import CARD as WAV2VEC2
from polyadapt.families.whisper.card import CARD as WHISPER
from polyadapt.model import Head
from polyadapt.sites import AttentionPort, HeadPort, Ports, SpanPort, StreamPort, op_port
from polyadapt.testing.conformance import example_of, tiny_model

Sets = Sequence[Sequence[Edit]]
WIDTH = 6


def seeded(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check_rows(root: nn.Module, ports: Ports, sets: Sets, *inputs: torch.Tensor, **named: torch.Tensor) -> None:
    """A batch that has every set twice, out of order, against each set alone on the whole batch."""

    def answer() -> torch.Tensor:
        given = root(*inputs, **named)
        return next(iter(given.values())).detach() if isinstance(given, dict) else given.detach()

    ids = torch.tensor([2, 0, 1, 0, 2, 1])
    attachments = attachments_of(root, ports)
    expected = []
    for number in ids.tolist():
        attachments.add("alone", Lowered(sets[number]))
        expected.append(answer()[len(expected)])
        attachments.remove("alone")
    keys = list(dict.fromkeys((edit.site, edit.kind, edit.variant) for edits in sets for edit in edits))
    bank = Bank(stacked_edits(ports, keys, sets))
    attachments.add("bank", bank)
    with bank.choosing(ids):
        found = answer()
    nobody = answer()
    attachments.remove_all()
    for number, alone, plain in zip(ids.tolist(), expected, nobody, strict=True):
        assert number == 0 or alone.shape != plain.shape or not torch.allclose(alone, plain, atol=1e-6), "an artifact changes nothing, so the comparison says nothing"
    for row, alone in enumerate(expected):
        given = found[row]
        if given.shape != alone.shape:  # classes that an artifact does not have
            assert bool((given[alone.shape[-1] :] == float("-inf")).all())
            given = given[: alone.shape[-1]]
        assert float((given - alone).abs().max()) < 1e-12, row
    assert float((nobody - answer()).abs().max()) < 1e-12


def lowrank(port: Any, rank: int, seed: int) -> Edit:
    return Edit(port.site, "lowrank", {"a": seeded(port.in_features, rank, seed=seed), "b": seeded(rank, port.out_features, seed=seed + 1)})


def vectors(port: Any, seed: int) -> list[Edit]:
    inner = Edit(port.site, "scale", {"g": 1 + 0.3 * seeded(port.in_channels, seed=seed + 2)}, "input")
    return [inner, Edit(port.site, "scale", {"g": 1 + 0.3 * seeded(port.out_features, seed=seed)}), Edit(port.site, "shift", {"b": seeded(port.out_features, seed=seed + 1)})]


CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "1x1": (nn.Conv2d(4, 6, 1), (4, 5, 7)),
    "1x1, stride 2": (nn.Conv2d(4, 6, 1, stride=2), (4, 5, 7)),
    "3x3": (nn.Conv2d(4, 6, 3, padding=1), (4, 5, 7)),
    "stride, dilation": (nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=2), (4, 9, 8)),
    "reflected": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (4, 5, 7)),
    "groups": (nn.Conv2d(4, 6, (3, 2), groups=2), (4, 5, 7)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1), (4, 5, 7)),
    "one axis": (nn.Conv1d(4, 6, 5, stride=2), (4, 11)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    module, shape = CONVOLUTIONS[name]
    root = nn.Sequential(module).double().eval()
    port = op_port("conv", "0", module, None)
    assert port is not None
    sets: Sets = [(), (lowrank(port, 3, 1), *vectors(port, 7)), (lowrank(port, 1, 3),)]
    check_rows(root, Ports("toy", ops={"conv": port}), sets, seeded(6, *shape, seed=9))


@pytest.mark.parametrize("middle", [(), (3,), (2, 3)], ids=["rows alone", "tokens", "pixels"])
def test_projections(middle: tuple[int, ...]) -> None:
    root = nn.Sequential(nn.Linear(5, WIDTH)).double().eval()
    port = op_port("q", "0", root[0], None)
    assert port is not None
    sets: Sets = [(), (lowrank(port, 4, 1), *vectors(port, 7)), (lowrank(port, 2, 3),)]
    check_rows(root, Ports("toy", ops={"q": port}), sets, seeded(6, *middle, 5, seed=9))


def test_sites_of_a_fused_projection() -> None:
    root = nn.Sequential(nn.Linear(5, 3 * WIDTH)).double().eval()
    found = {name: op_port(name, "0", root[0], (part, 3)) for part, name in enumerate("qkv")}
    ports = {name: port for name, port in found.items() if port is not None}
    shift = Edit("k", "shift", {"b": seeded(WIDTH, seed=8)})
    sets: Sets = [(), (lowrank(ports["q"], 2, 1), lowrank(ports["v"], 3, 3)), (lowrank(ports["v"], 1, 5), shift)]
    check_rows(root, Ports("toy", ops=dict(ports)), sets, seeded(6, 4, 5, seed=9))


def test_embeddings() -> None:
    root = nn.Sequential(nn.Embedding(11, WIDTH)).double().eval()
    port = op_port("embed", "0", root[0], None)
    assert port is not None
    sets: Sets = [(), (lowrank(port, 2, 1),), (lowrank(port, 3, 3),)]
    check_rows(root, Ports("toy", ops={"embed": port}), sets, torch.arange(24).reshape(6, 4) % 11)


@pytest.mark.parametrize("variant", ["parallel-gelu", "sequential-relu-norm"])
def test_bottlenecks(variant: str) -> None:
    root = nn.Sequential(nn.Linear(WIDTH, 9), nn.Linear(9, WIDTH)).double().eval()
    ops = [op_port(name, str(index), root[index], None) for index, name in enumerate(("up", "down"))]
    assert ops[0] is not None and ops[1] is not None
    port = SpanPort("ffn", ops[0], ops[1])

    def edit(rank: int, seed: int) -> Edit:
        shapes = {"down": (WIDTH, rank), "down_bias": (rank,), "up": (rank, WIDTH), "up_bias": (WIDTH,)}
        return Edit("ffn", "bottleneck", {name: seeded(*shape, seed=seed + place) for place, (name, shape) in enumerate(shapes.items())}, variant)

    ports = Ports("toy", ops={op.site: op for op in ops if op is not None}, spans={"ffn": port})
    check_rows(root, ports, [(), (edit(4, 1),), (edit(2, 11),)], seeded(6, 3, WIDTH, seed=9))


@pytest.mark.parametrize("cosine", [0.0, 1.0])
def test_class_heads_of_different_sizes(cosine: float) -> None:
    head = Head(seeded(WIDTH, 3, seed=1))
    root = nn.Sequential(head).double().eval()

    def edit(classes: int, seed: int) -> Edit:
        return Edit("head", "prototypes", {"weight": seeded(WIDTH, classes, seed=seed), "bias": seeded(classes, seed=seed + 1), "cosine": torch.tensor([cosine]).double()})

    check_rows(root, Ports("toy", head=HeadPort("head", head, WIDTH, 3)), [(), (edit(5, 3),), (edit(2, 5),)], seeded(6, WIDTH, seed=9))


class Attention(nn.Module):
    """Grouped heads behind one mask of a given sort."""

    def __init__(self, mask: str) -> None:
        super().__init__()
        self._mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key = x, x[:, ::2]  # four heads share two of keys
        options: dict[str, Any] = {"enable_gqa": True}
        if self._mask == "causal":
            options["is_causal"] = True
        elif self._mask == "boolean":
            options["attn_mask"] = torch.ones(x.shape[2], x.shape[2], dtype=torch.bool).tril(1)
        elif self._mask == "added":
            options["attn_mask"] = seeded(1, 1, x.shape[2], x.shape[2], seed=4)
        return F.scaled_dot_product_attention(query, key, key.flip(-1), **options)


@pytest.mark.parametrize("mask", ["none", "causal", "boolean", "added"])
def test_prefixes_of_different_lengths(mask: str) -> None:
    """Padding takes no part of a softmax, whatever mask there was before."""
    attention = Attention(mask)
    root = nn.Sequential(attention).double().eval()
    ports = Ports("toy", attention={"attn": AttentionPort("attn", "0", attention, 2, 3, mask == "causal", False)})

    def edit(length: int, seed: int) -> Edit:
        return Edit("attn", "keys", {"k": seeded(2, length, 3, seed=seed), "v": seeded(2, length, 3, seed=seed + 1)})

    check_rows(root, ports, [(), (edit(5, 1),), (edit(2, 3),)], seeded(6, 4, 7, 3, seed=9))


class Block(nn.Module):
    """Attention over a whole sequence."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(seeded(WIDTH, WIDTH, seed=seed))
        self.attn = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = self.attn((x @ self.weight)[:, None])
        return x + F.scaled_dot_product_attention(heads, heads, heads)[:, 0]


@pytest.mark.parametrize("deep", [False, True], ids=["shallow", "deep"])
@pytest.mark.parametrize("prefixed", [False, True], ids=["alone", "behind a prefix"])
def test_prompts_of_different_lengths_between_blocks(deep: bool, prefixed: bool) -> None:
    """No token looks at padding, in any block, with a prefix before it or not."""
    blocks = [Block(1), Block(2)]
    root = nn.Sequential(*blocks).double().eval()
    first = StreamPort("tokens", "blocks", root, tuple(blocks), 0, WIDTH, 1)
    streams = {"tokens": first, "block.1.tokens": replace(first, site="block.1.tokens", index=1)}
    attention = {f"block.{index}.attn": AttentionPort(f"block.{index}.attn", str(index), block, 1, WIDTH, False, False) for index, block in enumerate(blocks)}

    def edits(length: int, seed: int, deeper: bool) -> tuple[Edit, ...]:
        made = [Edit("tokens", "prepend", {"tokens": seeded(length, WIDTH, seed=seed)})]
        if deeper:
            made.append(Edit("block.1.tokens", "prepend", {"tokens": seeded(length, WIDTH, seed=seed + 1)}))
        if prefixed:
            made.append(Edit("block.1.attn", "keys", {"k": seeded(1, length, WIDTH, seed=seed + 2), "v": seeded(1, length, WIDTH, seed=seed + 3)}))
        return tuple(made)

    check_rows(root, Ports("toy", streams=streams, attention=attention), [(), edits(5, 1, deep), edits(2, 11, False)], seeded(6, 4, WIDTH, seed=9))


@pytest.mark.parametrize("card", [BERT, T5, VIT, WAV2VEC2, WHISPER], ids=lambda card: card.id)
def test_prompts_of_different_lengths_in_libraries(card: FamilyCard) -> None:
    """Masks, positions and relative positions of rows whose prompts differ in length; texts of different lengths as well."""
    model = tiny_model(card, "seq2seq-lm" if card is T5 else "features")
    model.module.double()
    site = next(site for site, port in model.ports.streams.items() if port.index == 0)
    sets: Sets = [(), *((Edit(site, "prepend", {"tokens": seeded(length, model.ports.streams[site].width, seed=length)}),) for length in (5, 2))]
    inputs = example_of(model, sizes={**model.family.card.export[model.task.kind].trace, "batch": 6})
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    check_rows(model.module, model.ports, sets, **inputs)


def test_other_kinds_say_why_they_cannot() -> None:
    refusing = {name for name, kind in KINDS.items() if kind.no_rows}
    assert refusing == {"cross", "module", "patch"}
    for name in refusing:
        with pytest.raises(UserError, match=f"edits of kind '{name}' cannot differ from row to row of a batch: .{{20,}}"):
            kind_of(name).stacked([{}, {}], "")


def test_nothing_applies_before_a_batch_has_chosen() -> None:
    bank = Bank([Edit("q", "shift", {"b": seeded(2, WIDTH, seed=1)})])
    assert bank.edits() == []
    with bank.choosing(torch.tensor([1, 1, 0])):
        assert bank.edits()[0].tensors["b"].shape == (3, WIDTH)
    assert bank.edits() == []
