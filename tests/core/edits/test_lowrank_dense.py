"""`lowrank` on every sort of op is the dense change of its weight, and folding puts exactly that into the weight."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.layers import Conv2dSame, LayerNorm2d
from torch import nn
from transformers.pytorch_utils import Conv1D

from polyadapt.edits import Edit, Lowered, attachments_of
from polyadapt.edits.merge import canonical, folded, merge
from polyadapt.errors import UserError
from polyadapt.sites import OpPort, Ports, op_port

RANK = 3


class Root(nn.Module):
    def __init__(self, op: nn.Module) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.op(x)
        return result


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def made(name: str, dtype: torch.dtype = torch.float64) -> tuple[Root, torch.Tensor]:
    """An op with seeded weights and an input for it."""
    ops: dict[str, tuple[nn.Module, torch.Tensor]] = {
        "linear": (nn.Linear(6, 9), seeded(2, 5, 6)),
        "linear-without-bias": (nn.Linear(6, 9, bias=False), seeded(2, 6)),
        "transposed": (Conv1D(9, 6), seeded(2, 5, 6)),
        "conv1d": (nn.Conv1d(4, 9, 3, stride=2, padding=1), seeded(2, 4, 11)),
        "conv2d": (nn.Conv2d(4, 9, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), seeded(2, 4, 8, 9)),
        "conv3d": (nn.Conv3d(2, 9, 2), seeded(2, 2, 4, 5, 3)),
        "conv-reflect": (nn.Conv2d(4, 9, 3, padding=1, padding_mode="reflect"), seeded(2, 4, 6, 7)),
        "conv-same-name": (nn.Conv1d(4, 9, 4, padding="same"), seeded(2, 4, 11)),
        "conv-tf-same": (Conv2dSame(4, 9, 3, stride=2, bias=False), seeded(2, 4, 7, 10)),
        "grouped": (nn.Conv2d(6, 9, 3, groups=3, padding=1), seeded(2, 6, 5, 5)),
        "depthwise": (nn.Conv2d(9, 9, 3, groups=9, padding=1), seeded(2, 9, 5, 5)),
        "embedding": (nn.Embedding(12, 9), torch.randint(0, 12, (3, 5), generator=torch.Generator().manual_seed(0))),
        "layer-norm": (nn.LayerNorm(9), seeded(2, 5, 9)),
        "layer-norm-2d": (LayerNorm2d(9), seeded(2, 9, 4, 4)),
        "group-norm": (nn.GroupNorm(3, 9), seeded(2, 9, 4, 4)),
        "batch-norm": (nn.BatchNorm2d(9), seeded(2, 9, 4, 4)),
    }
    op, x = ops[name]
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in op.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        for buffer in op.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return Root(op).to(dtype).eval(), x.to(dtype) if x.is_floating_point() else x


def port_of(root: Root, site: str = "op", rows: tuple[int, int] | None = None) -> OpPort:
    port = op_port(site, "op", root.op, rows)
    assert port is not None
    return replace(port, channels_first=isinstance(root.op, LayerNorm2d))  # as a card says of norms that transpose inside


def attach(root: Root, ports: list[OpPort], edits: list[Edit]) -> Any:
    attachments = attachments_of(root, Ports("toy", ops={port.site: port for port in ports}))
    attachments.add("edits", Lowered(edits))
    return attachments


def lowrank(port: OpPort, seed: int = 1, dtype: torch.dtype = torch.float64) -> Edit:
    return Edit(port.site, "lowrank", {"a": seeded(port.in_features, RANK, seed=seed, dtype=dtype), "b": seeded(RANK, port.out_features, seed=seed + 1, dtype=dtype)})


OPS = ("linear", "linear-without-bias", "transposed", "conv1d", "conv2d", "conv3d", "conv-reflect", "conv-same-name", "conv-tf-same", "grouped", "depthwise", "embedding")


@pytest.mark.parametrize("name", OPS)
def test_lowrank_is_a_dense_change_of_the_weight(name: str) -> None:
    root, x = made(name)
    port = port_of(root)
    edit = lowrank(port)
    dense = copy.deepcopy(root)
    with torch.no_grad():
        product = edit.tensors["a"] @ edit.tensors["b"]  # (in, out), as [out, in, k…] in the weight
        turned = product if name in ("transposed", "embedding") else product.T
        dense.op.weight += turned.reshape(dense.op.weight.shape)
        expected = dense(x)
        attach(root, [port], [edit])
        found = root(x)
        assert float((found - expected).abs().max()) < 1e-12 * float(expected.abs().max())
        assert float((expected - made(name)[0](x)).abs().max()) > 0.1  # and it is a change


@pytest.mark.parametrize("name", ["linear", "transposed"])
@pytest.mark.parametrize("sites", [(0,), (1,), (2,), (0, 2), (2, 1, 0)])
def test_rows_of_a_fused_projection(name: str, sites: tuple[int, ...]) -> None:
    root, x = made(name)
    ports = [port_of(root, f"part.{part}", (part, 3)) for part in sites]
    edits = [lowrank(port, seed=10 * index) for index, port in enumerate(ports)]
    dense = copy.deepcopy(root)
    with torch.no_grad():
        for part, edit in zip(sites, edits, strict=True):
            product = edit.tensors["a"] @ edit.tensors["b"]  # (in, 3)
            if name == "transposed":
                dense.op.weight[:, 3 * part : 3 * part + 3] += product
            else:
                dense.op.weight[3 * part : 3 * part + 3] += product.T
        expected = dense(x)
        attach(root, ports, edits)
        found = root(x)
    assert float((found - expected).abs().max()) < 1e-12 * float(expected.abs().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        *((name, ("lowrank",)) for name in OPS),
        *((name, ("lowrank", "scale", "shift")) for name in OPS if name not in ("linear-without-bias", "conv-tf-same", "embedding")),
        *((name, ("scale",)) for name in ("embedding", "layer-norm", "layer-norm-2d", "group-norm", "batch-norm")),
        *((name, ("scale", "shift")) for name in ("layer-norm", "layer-norm-2d", "group-norm", "batch-norm")),
        *((name, ("input", "scale")) for name in ("linear", "transposed", "conv1d", "conv2d")),
        ("linear-without-bias", ("shift",)),
        ("conv-tf-same", ("scale", "shift")),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else value,
)
def test_folded_equals_attached(name: str, kinds: tuple[str, ...], dtype: torch.dtype) -> None:
    root, x = made(name, dtype)
    port = port_of(root)
    tensors = {
        "lowrank": Edit("op", "lowrank", lowrank(port, dtype=dtype).tensors),
        "scale": Edit("op", "scale", {"g": 1 + 0.5 * seeded(port.out_features, seed=3, dtype=dtype)}),
        "shift": Edit("op", "shift", {"b": seeded(port.out_features, seed=4, dtype=dtype)}),
        "input": Edit("op", "scale", {"g": 1 + 0.5 * seeded(port.in_channels, seed=5, dtype=dtype)}, "input"),
    }
    edits = [tensors[kind] for kind in kinds]
    ports = Ports("toy", ops={"op": port})
    with torch.no_grad():
        base = root(x)
        attachments = attachments_of(root, ports)
        attachments.add("edits", Lowered(edits))
        expected = root(x)
        attachments.remove_all()
        weight = root.op.weight
        with folded(ports, edits) as remaining:
            assert remaining == []
            found = root(x)
        assert root.op.weight is weight and torch.equal(root(x), base)  # back, bit for bit
    bound = 1e-12 if dtype == torch.float64 else 4e-6
    assert float((found - expected).abs().max()) < bound * float(expected.abs().max())
    assert float((expected - base).abs().max()) > 0.1


def test_fused_rows_fold_into_their_own_rows_only() -> None:
    root, x = made("linear")
    ports = [port_of(root, f"part.{part}", (part, 3)) for part in range(3)]
    table = Ports("toy", ops={port.site: port for port in ports})
    edits = [lowrank(ports[2]), Edit("part.0", "shift", {"b": seeded(3, seed=5)}), Edit("part.2", "scale", {"g": seeded(3, seed=6)})]
    before = root.op.weight.detach().clone()
    with torch.no_grad():
        attachments = attachments_of(root, table)
        attachments.add("edits", Lowered(edits))
        expected = root(x)
        attachments.remove_all()
        merge(table, edits)
        found = root(x)
    assert float((found - expected).abs().max()) < 1e-12
    assert torch.equal(root.op.weight[:6], before[:6]) and not torch.equal(root.op.weight[6:], before[6:])


def test_half_precision_folds_in_float32() -> None:
    """2048 + 1 has no bfloat16 value; a sum of many small changes made in bfloat16 would be lost."""
    root, _ = made("linear", torch.bfloat16)
    weight, bias = canonical(port_of(root))
    assert weight.dtype == bias.dtype == torch.float32
    assert canonical(port_of(made("linear")[0]))[0].dtype == torch.float64


def test_shared_weights_are_not_merged_unless_untied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.embed(ids))
            return result

    root = Tied().eval()
    shared = frozenset([id(root.head.weight)])
    head = op_port("head", "head", root.head, None, shared)
    assert head is not None and head.tied
    ports = Ports("toy", ops={"head": head})
    edit = Edit("head", "lowrank", {"a": seeded(4, 2, dtype=torch.float32), "b": seeded(2, 8, seed=1, dtype=torch.float32)})
    before = root.embed.weight.detach().clone()
    with pytest.raises(UserError, match="cannot merge head:lowrank: its weight is shared with another module; pass untie=True"):
        merge(ports, [edit])
    assert torch.equal(root.head.weight, before)
    ids = torch.arange(8)
    with torch.no_grad():
        attachments = attachments_of(root, ports)
        attachments.add("edits", Lowered([edit]))
        expected = root(ids)
        attachments.remove_all()
        merge(ports, [edit], untie=True)
        assert float((root(ids) - expected).abs().max()) < 1e-5
    assert torch.equal(root.embed.weight, before) and root.head.weight is not root.embed.weight


def test_parametrised_weights_are_edited_by_activation_and_not_merged() -> None:
    root, x = made("conv1d")
    root.op = torch.nn.utils.parametrizations.weight_norm(root.op)
    port = port_of(root)
    edit = lowrank(port)
    with torch.no_grad():
        base = root(x)
        attachments = attach(root, [port], [edit])
        assert float((root(x) - base).abs().max()) > 0.1
        attachments.remove_all()
    with pytest.raises(UserError, match="cannot merge op:lowrank: its weight is parametrised"):
        merge(Ports("toy", ops={"op": port}), [edit])


def test_what_cannot_be_merged_is_refused_before_anything_changes() -> None:
    root, _ = made("linear")
    port = port_of(root)
    ports = Ports("toy", ops={"op": port, "norm": port_of(made("layer-norm")[0], "norm")})
    before = root.op.weight.detach().clone()
    with pytest.raises(UserError, match="cannot merge norm:scale~input: a norm undoes scales of its input"):
        merge(ports, [lowrank(port), Edit("norm", "scale", {"g": torch.ones(9)}, "input")])
    assert torch.equal(root.op.weight, before)


def test_a_merge_that_goes_wrong_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check after folding compares with the attached edits; a wrong fold leaves nothing behind."""
    from polyadapt.edits.kinds.lowrank import LowRank

    monkeypatch.setattr(LowRank, "fold", lambda self, tensors, variant, weight, bias: (weight - (tensors["a"] @ tensors["b"]).T, bias))
    root, _ = made("linear")
    port = port_of(root)
    weight = root.op.weight
    with pytest.raises(UserError, match="cannot merge op: the merged weights answer .* away"):
        merge(Ports("toy", ops={"op": port}), [lowrank(port)])
    assert root.op.weight is weight


def test_an_edit_behind_one_that_stays_is_not_folded_in_front_of_it() -> None:
    """A scale cannot be folded where the low-rank edit before it stays attached."""
    root, x = made("grouped")
    port = port_of(root)
    ports = Ports("toy", ops={"op": port})
    edits = [Edit("op", "scale", {"g": seeded(2, seed=1)}, "input"), Edit("op", "shift", {"b": seeded(9, seed=2)})]
    with folded(ports, edits) as remaining:
        assert [edit.key for edit in remaining] == ["op:scale~input", "op:shift"]
    assert x.shape[1] == 6
