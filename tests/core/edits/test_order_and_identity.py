"""Edits at one port compose as lowrank, scale, shift, bottleneck; each kind's identity is the base; padding is silent."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polyadapt.edits import KINDS, Edit, Lowered, attachments_of, kind_of
from polyadapt.edits.kinds.bottleneck import ACTIVATIONS
from polyadapt.errors import UserError
from polyadapt.families.ast.card import CARD as AST
from polyadapt.families.bert.card import CARD as BERT
from polyadapt.families.clip.card import CARD as CLIP
from polyadapt.families.efficientnet.card import CARD as EFFICIENTNET
from polyadapt.families.gpt2.card import CARD as GPT2
from polyadapt.families.llama.card import CARD as LLAMA
from polyadapt.families.t5.card import CARD as T5
from polyadapt.families.unet.card import CARD as UNET
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.families.wav2vec2.card import CARD as WAV2VEC2
from polyadapt.families.whisper.card import CARD as WHISPER
from polyadapt.model import Model
from polyadapt.sites import OpPort, Ports, SpanPort, op_port
from polyadapt.testing.conformance import example_of, tiny_model

CARDS = {card.id: card for card in (AST, BERT, CLIP, EFFICIENTNET, GPT2, LLAMA, T5, UNET, VIT, WAV2VEC2, WHISPER)}


class Branch(nn.Module):
    """up, gelu, down: the span that a feed-forward net is."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(F.gelu(self.up(x)))
        return result


def branch() -> tuple[Branch, Ports]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        root = Branch().double().eval()
    up, down = op_port("ffn.up", "up", root.up, None), op_port("ffn.down", "down", root.down, None)
    assert up is not None and down is not None
    return root, Ports("toy", ops={"ffn.up": up, "ffn.down": down}, spans={"ffn": SpanPort("ffn", up, down)})


def seeded(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LOWRANK = Edit("ffn.down", "lowrank", {"a": seeded(8, 2, seed=1), "b": seeded(2, 5, seed=2)})
SCALE = Edit("ffn.down", "scale", {"g": seeded(5, seed=3)})
SHIFT = Edit("ffn.down", "shift", {"b": seeded(5, seed=4)})
INPUT = Edit("ffn.down", "scale", {"g": seeded(8, seed=5)}, "input")
ADAPTER = {"down": seeded(5, 3, seed=6), "down_bias": seeded(3, seed=7), "up": seeded(3, 5, seed=8), "up_bias": seeded(5, seed=9)}


@pytest.mark.parametrize("variant", ["parallel-relu", "sequential-gelu", "parallel-tanh-norm", "sequential-silu-norm", "parallel-none"])
def test_the_order_at_one_port(variant: str) -> None:
    root, ports = branch()
    x = seeded(4, 5, seed=10)
    adapter = Edit("ffn", "bottleneck", ADAPTER, variant)
    inner = F.gelu(root.up(x)) * INPUT.tensors["g"]
    h = (root.down(inner) + inner @ LOWRANK.tensors["a"] @ LOWRANK.tensors["b"]) * SCALE.tensors["g"] + SHIFT.tensors["b"]
    u = x if variant.startswith("parallel") else h
    if variant.endswith("-norm"):
        u = (u - u.mean(-1, keepdim=True)) / (u.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    activation = {"relu": torch.relu, "gelu": F.gelu, "tanh": torch.tanh, "silu": F.silu, "none": lambda value: value}[variant.split("-")[1]]
    expected = h + activation(u @ ADAPTER["down"] + ADAPTER["down_bias"]) @ ADAPTER["up"] + ADAPTER["up_bias"]
    expected = expected.detach()
    attachments = attachments_of(root, ports)
    for index, order in enumerate(itertools.islice(itertools.permutations([LOWRANK, SCALE, SHIFT, INPUT, adapter]), 0, 120, 17)):
        attachments.add(f"order{index}", Lowered(order), activate=False)
        with attachments.using(f"order{index}"):
            assert float((root(x).detach() - expected).abs().max()) < 1e-12
    split = [Lowered([edit]) for edit in (adapter, SHIFT, SCALE, INPUT, LOWRANK)]  # five adapters active at once
    for index, form in enumerate(split):
        attachments.add(f"part{index}", form)
        attachments.activate(*(f"part{number}" for number in range(index + 1)))
    assert float((root(x).detach() - expected).abs().max()) < 1e-12


@functools.cache
def model_of(family: str) -> Model:
    return tiny_model(CARDS[family])


def identity_edits(model: Model, kind: str, variant: str) -> list[Edit]:
    ports = model.ports.of(kind_of(kind).port)
    # The input of a fused projection is that of several sites at once, so none of them can scale it.
    return [Edit(site, kind, kind_of(kind).identity(port, variant), variant) for site, port in ports.items() if variant != "input" or getattr(port, "rows", None) is None]


def does_not_take(port: OpPort, kind: str, variant: str) -> bool:
    """A norm has no matrix, masks lie on projections, and ids have no channels to scale."""
    return (kind == "lowrank" and port.kind == "norm") or (kind == "mask" and port.kind != "linear") or (variant == "input" and port.kind == "embedding")


PLAIN = [(name, variant) for name, kind in KINDS.items() if kind.has_slots and name not in ("module", "bottleneck", "cross") for variant in kind.variants]
IDENTITIES = [*PLAIN, ("bottleneck", "parallel-gelu"), ("bottleneck", "sequential-relu-norm")]


@pytest.mark.parametrize(("family", "kind", "rank"), [("efficientnet", "conv", 1), ("vit", "linear", 0)])
def test_an_empty_slot_of_a_convolution_holds_a_channel(family: str, kind: str, rank: int) -> None:
    """cuDNN runs no convolution over no channels, and onnxruntime's build for the web leaves its output unwritten."""
    ports = [port for port in model_of(family).ports.ops.values() if port.kind == kind]
    for port in ports:
        identity = kind_of("lowrank").identity(port)
        assert identity["a"].shape == (port.in_features, rank) and identity["b"].shape == (rank, port.out_features)
        assert not any(value.any() for value in identity.values())
    assert ports


@pytest.mark.parametrize("family", CARDS)
@pytest.mark.parametrize(("kind", "variant"), IDENTITIES, ids=["~".join(filter(None, pair)) for pair in IDENTITIES])
def test_identity_is_the_base(family: str, kind: str, variant: str) -> None:
    model = model_of(family)
    if variant == "instead" and not all(port.offset for port in model.ports.streams.values()):
        with pytest.raises(UserError, match="no token of its own"):
            identity_edits(model, kind, variant)
        return
    edits = [edit for edit in identity_edits(model, kind, variant) if not (edit.site in model.ports.ops and does_not_take(model.ports.ops[edit.site], kind, variant))]
    if not edits:
        assert not model.ports.of(kind_of(kind).port) or (kind == "mask" and all(port.kind != "linear" for port in model.ports.ops.values()))
        return
    inputs = example_of(model)
    with torch.no_grad():
        base = model.module(**inputs)
        attachments = attachments_of(model.module, model.ports, model.backbone)
        attachments.add("identity", Lowered(edits))
        try:
            with attachments.counting() as seen:
                found = model.module(**inputs)
        finally:
            attachments.remove_all()
    assert len(seen) == len(edits)
    # An empty prefix turns `is_causal` into a mask: another kernel of torch, so the last bit may differ there.
    exact = kind != "keys" or not any(port.causal for port in model.ports.attention.values())
    for name, value in base.items():
        if exact:
            assert torch.equal(found[name], value), name
        else:
            assert float((found[name] - value).abs().max()) <= 2e-6 * float(value.abs().max())


def test_identity_of_cross_is_the_base() -> None:
    model = model_of("unet")
    inputs = example_of(model)
    with torch.no_grad():
        base = model.module(**inputs)
        attachments = attachments_of(model.module, model.ports, model.backbone)
        attachments.context = torch.zeros(2, 1, 1)
        attachments.add("identity", Lowered(identity_edits(model, "cross", "")))
        try:
            found = model.module(**inputs)
        finally:
            attachments.remove_all()
    assert all(torch.equal(found[name], value) for name, value in base.items())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_padding_a_bottleneck_leaves_its_effect(activation: str) -> None:
    """Whatever act(0 + 0) is, the rows of `up` behind it are zero."""
    root, ports = branch()
    x = seeded(4, 5, seed=10)
    wide = kind_of("bottleneck").pad(ADAPTER, f"parallel-{activation}", 7)
    assert wide["down"].shape == (5, 7) and wide["up"].shape == (7, 5)
    attachments = attachments_of(root, ports)
    attachments.add("narrow", Lowered([Edit("ffn", "bottleneck", ADAPTER, f"parallel-{activation}")]), activate=False)
    attachments.add("wide", Lowered([Edit("ffn", "bottleneck", wide, f"parallel-{activation}")]), activate=False)
    with attachments.using("narrow"):
        expected = root(x).detach()
    with attachments.using("wide"):
        assert float((root(x).detach() - expected).abs().max()) < 1e-14


def test_padding_a_lowrank_leaves_its_effect() -> None:
    wide = kind_of("lowrank").pad(LOWRANK.tensors, "", 6)
    assert wide["a"].shape == (8, 6) and wide["b"].shape == (6, 5)
    assert torch.equal(wide["a"] @ wide["b"], LOWRANK.tensors["a"] @ LOWRANK.tensors["b"])


def test_padded_classes_are_never_chosen() -> None:
    """Class scores keep their values; classes that do not exist get the lowest score there is."""
    tensors = {"weight": seeded(4, 3, seed=1).float(), "bias": seeded(3, seed=2).float(), "cosine": torch.tensor([1.0])}
    wide = kind_of("prototypes").pad(tensors, "", 5)
    from polyadapt.model import score

    x = seeded(6, 4, seed=3).float()
    narrow, padded = score(x, **tensors), score(x, **wide)
    assert torch.equal(padded[:, :3], narrow) and bool((padded[:, 3:] < -1e37).all())
    assert torch.equal(padded.softmax(-1)[:, :3], narrow.softmax(-1)) and bool((padded.argmax(-1) < 3).all())


@pytest.mark.parametrize("kind", ["scale", "shift"])
def test_vectors_have_nothing_to_pad(kind: str) -> None:
    given = {"g" if kind == "scale" else "b": seeded(5, seed=1)}
    assert all(torch.equal(value, given[name]) for name, value in kind_of(kind).pad(given, "", 9).items())
