"""Each core method against its paper's formula, written out by hand, in float64 and away from its start."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polyadapt.edits import Edit, Form, Lowered, attachments_of
from polyadapt.edits.form import Composite
from polyadapt.edits.merge import folded, merge
from polyadapt.errors import UserError
from polyadapt.families.bert.card import CARD as BERT
from polyadapt.families.efficientnet.card import CARD as EFFICIENTNET
from polyadapt.families.gpt2.card import CARD as GPT2
from polyadapt.families.mlp_policy.card import CARD as POLICY
from polyadapt.families.resnet.card import CARD as RESNET
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.families.wav2vec2.card import CARD as WAV2VEC2
from polyadapt.families.whisper.card import CARD as WHISPER
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.methods.head import TEMPERATURE, HeadForm
from polyadapt.model import Model
from polyadapt.options import read_options
from polyadapt.testing.conformance import example_of, non_degenerate, state_of, tiny_model

METHODS = {claim.card.id: claim.card for claim in Host().registry.methods.claims()}
BOUND = 1e-12
RESNET_CONV = "stage.1.block.0.conv.1"


def doubled(card: Any, task: str = "") -> Model:
    model = tiny_model(card, task)
    model.module.double()
    return model


def bare(form: Form) -> Any:
    """The method's own form, without the class head that a labelled task adds."""
    return form.parts[0] if isinstance(form, Composite) and isinstance(form.parts[-1], HeadForm) else form


def form_of(model: Model, method: str, moved: bool = True, seed: int = 0, **options: Any) -> Form:
    made = load_method(METHODS[method])
    form = made.build(model, made.card.options(**options), torch.Generator().manual_seed(seed))
    if moved:
        non_degenerate(form)
    return form.to(next(model.module.parameters()).dtype)


def attach(model: Model, form: Form) -> None:
    attachments_of(model.module, model.ports, model.backbone).add("method", form)


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


@pytest.mark.parametrize("stabilised", [False, True])
def test_lora(stabilised: bool) -> None:
    """W x + alpha / r (x A) B, or alpha / sqrt(r); rank and alpha of single sites by pattern."""
    model = doubled(POLICY)
    form = form_of(model, "lora", rank=4, alpha=6.0, rank_stabilised=stabilised, rank_pattern={"block.1.*": 2}, alpha_pattern={"ffn.down": 9.0})
    x = seeded(5, 32)
    base = {site: port.module(seeded(5, port.in_features)) for site, port in model.ports.ops.items() if "ffn" in site}
    attach(model, form)
    for site, plain in base.items():
        rank, alpha = 2 if site.startswith("block.1") else 4, 9.0 if site.endswith("down") else 6.0
        name = site.replace(".", "/")
        a, b = form.a[name], form.b[name]  # type: ignore[index]
        assert a.shape[1] == rank
        x = seeded(5, model.ports.ops[site].in_features)
        assert error(model.ports.ops[site].module(x), plain + alpha / (math.sqrt(rank) if stabilised else rank) * (x @ a) @ b) < BOUND


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("lora", {"rank_pattern": {"block.0.*": 0}}, "option 'rank_pattern.block.0.*': Input should be greater than or equal to 1, got 0"),
        ("dora", {"alpha_pattern": {"block.0.*": -1.0}}, "option 'alpha_pattern.block.0.*': Input should be greater than 0, got -1.0"),
        ("lora", {"rank_pattern": {"block.7.*": 2}}, "rank_pattern 'block.7.*' matches no adapted site; sites: ffn.down, ffn.up"),
        ("dora", {"sites": ("ffn.up",), "alpha_pattern": {"ffn.down": 2.0}}, "alpha_pattern 'ffn.down' matches no adapted site; sites: ffn.up"),
        ("hydra", {"parallel_rank": 0, "sequential_rank": 0}, "option 'sequential_rank': Value error, parallel_rank is 0 too, which leaves nothing to train"),
    ],
)
def test_options_that_cannot_be_met_are_refused(method: str, options: dict[str, Any], words: str) -> None:
    card = METHODS[method]
    with pytest.raises(UserError, match=re.escape(words)):
        load_method(card).build(tiny_model(POLICY), read_options(card.options, options, f"method {method!r}"), torch.Generator())


def test_hydra_leaves_out_no_site_that_was_asked_for() -> None:
    """A grouped convolution cannot hold its sequential branch; where the family's own sites hold some, the others are adapted."""
    model = tiny_model(EFFICIENTNET)
    grouped = [site for site, port in model.ports.ops.items() if getattr(port.module, "groups", 1) > 1]
    chosen = {edit.site for edit in form_of(model, "hydra").lower() if edit.kind == "lowrank"}
    assert grouped and chosen and not chosen & set(grouped)
    for sites in (grouped[:1], [grouped[0], sorted(chosen)[0]]):
        with pytest.raises(UserError, match=rf"hydra takes no grouped convolutions, and {re.escape(grouped[0])} is grouped; choose other sites"):
            form_of(model, "hydra", sites=sites)


def test_lora_of_an_embedding_moves_no_token_that_it_has_not_met() -> None:
    model = tiny_model(GPT2, "causal-lm")
    form = form_of(model, "lora", moved=False, sites=("embed",), dropout=0.1)  # ids are nothing to drop
    attach(model, form)
    attachments_of(model.module).train()
    (edit,) = form.edits()
    assert not edit.tensors["a"].any() and edit.tensors["b"].std() > 0
    ids = torch.tensor([[3, 4, 5]])
    model.module(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"].logsumexp(-1).sum().backward()
    with torch.no_grad():
        for parameter in form.parameters():
            parameter -= 0.1 * parameter.grad  # type: ignore[operator]
    (edit,) = form.edits()
    moved = (edit.tensors["a"] @ edit.tensors["b"]).abs().amax(1) > 0  # (tokens,)
    assert moved.nonzero().flatten().tolist() == [3, 4, 5]


def test_attention_across_is_adapted_as_in_the_papers() -> None:
    """(IA)3 and prefixes stand at every attention of an encoder-decoder."""
    model = tiny_model(WHISPER, "transcription")
    for method, site in (("ia3", "cross.v"), ("prefix", "cross"), ("mam", "cross")):
        found = {edit.site for edit in form_of(model, method).edits()}
        assert any(name.startswith("decoder") and name.endswith(site) for name in found) and any(name.startswith("encoder") for name in found), method


def test_biases_fold_where_weights_cannot() -> None:
    """A bias leaves a weight alone that is made of two others."""
    model = tiny_model(WAV2VEC2, "features")
    form = form_of(model, "bitfit")
    attach(model, form)
    inputs = example_of(model)
    with torch.no_grad():
        expected = model.module(**inputs)["features"]
        edits = [Edit(edit.site, edit.kind, {name: value.detach() for name, value in edit.tensors.items()}, edit.variant) for edit in form.edits()]
        attachments_of(model.module).remove("method")
        assert any(model.ports.ops[edit.site].parametrised for edit in edits)
        merge(model.ports, edits)
        torch.testing.assert_close(model.module(**inputs)["features"], expected, rtol=0, atol=2e-6 * float(expected.abs().max()))


def test_lora_starts_as_torch_starts_a_linear() -> None:
    """A uniform within 1 / sqrt(in), B zero, the same for the same seed."""
    model = tiny_model(POLICY)
    one, same, other = (form_of(model, "lora", moved=False, seed=seed) for seed in (0, 0, 1))
    a = one.a["block/0/ffn/down"]  # type: ignore[index]
    assert 0.9 / 8 < float(a.detach().abs().max()) <= 1 / 8 and all(not bool(b.any()) for b in one.b.values())  # type: ignore[union-attr]
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in one.state_dict().items())
    assert not torch.equal(a, other.a["block/0/ffn/down"])  # type: ignore[index]


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize(("parallel", "sequential"), [(2, 3), (0, 3), (2, 0)])
def test_hydra_is_its_two_branches(parallel: int, sequential: int, biases: bool) -> None:
    """y = u + s (Bp (Ap x + ap) + bp) + s (Bs (As u + as) + bs), u = W x + b0: the second branch sees b0."""
    model = doubled(POLICY)
    form = form_of(model, "hydra", parallel_rank=parallel, sequential_rank=sequential, biases=biases, scale=1.7, sites=("block.0.ffn.down",))
    port = model.ports.ops["block.0.ffn.down"]
    assert bool(port.module.bias.any())
    x = seeded(5, port.in_features)
    u = port.module(x)
    expected, without_bias_term = u, u
    for branch, source in ((form.parallel, x), (form.sequential, u)):  # type: ignore[union-attr]
        for part in branch.values():
            inner = source @ part.down + (part.down_bias if biases else 0.0)
            expected = expected + 1.7 * (inner @ part.up + (part.up_bias if biases else 0.0))
            if source is u:
                without_bias_term = expected - 1.7 * port.module.bias @ part.down @ part.up
    attach(model, form)
    assert error(port.module(x), expected) < BOUND
    if sequential:
        assert error(expected, without_bias_term) > 1e-3  # the classic error would be seen
    ranks = {edit.kind: edit.tensors["a"].shape[1] for edit in form.edits() if edit.kind == "lowrank"}
    assert ranks == {"lowrank": parallel + sequential}


@pytest.mark.parametrize(("card", "site"), [(POLICY, "block.0.ffn.down"), (VIT, "block.1.attn.o"), (VIT, "block.0.attn.v"), (GPT2, "block.0.attn.q"), (RESNET, RESNET_CONV)])
def test_hydra_folds_without_a_rest(card: Any, site: str) -> None:
    """W = W0 + s Bp Ap + s Bs As W0, b = b0 + s Bs As b0 + …: also in rows of a fused weight and in a convolution."""
    model = doubled(card)
    form = form_of(model, "hydra", sites=(site,))
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in example_of(model).items()}
    with torch.no_grad():
        base = next(iter(model.module(**inputs).values()))
        attach(model, form)
        unfolded = next(iter(model.module(**inputs).values()))
        edits = [edit for edit in form.lower() if edit.kind != "prototypes"]
        attachments_of(model.module).remove_all()
        with folded(model.ports, edits) as remaining:
            assert remaining == []
            head = [edit for edit in form.lower() if edit.kind == "prototypes"]
            if head:
                attach(model, Lowered(head))
            found = next(iter(model.module(**inputs).values()))
    assert error(found, unfolded) < BOUND
    assert base.shape != unfolded.shape or error(unfolded, base) > 1e-4


@pytest.mark.parametrize("site", ["block.0.ffn.up", "block.1.ffn.down"])
def test_dora(site: str) -> None:
    """m / |W + s B A| (W x + s B A x) + b, with the norm of each output's row; m starts at |W|, so the start is the base."""
    model = doubled(POLICY)
    port = model.ports.ops[site]
    x = seeded(5, port.in_features)
    base = port.module(x)
    start = form_of(model, "dora", moved=False, rank=3, sites=(site,))
    attach(model, start)
    assert error(port.module(x), base) < 1.2e-7  # magnitudes are kept in float32
    attachments_of(model.module).remove_all()
    form = form_of(model, "dora", rank=3, alpha=5.0, sites=(site,))
    name = site.replace(".", "/")
    a, b, m = form.lora.a[name], form.lora.b[name], form.magnitude[name]  # type: ignore[union-attr]
    direction = port.module.weight + 5.0 / 3 * (a @ b).T
    attach(model, form)
    assert error(port.module(x), x @ (m[:, None] * direction / direction.norm(dim=1, keepdim=True)).T + port.module.bias) < BOUND


@pytest.mark.parametrize(("card", "site"), [(VIT, "block.0.attn.q"), (GPT2, "block.0.attn.v"), (RESNET, RESNET_CONV)])
def test_dora_in_fused_transposed_and_convolutional_weights(card: Any, site: str) -> None:
    model = doubled(card)
    port = model.ports.ops[site]
    form = form_of(model, "dora", rank=2, alpha=4.0, sites=(site,))
    name = site.replace(".", "/")
    own = bare(form)
    a, b, m = own.lora.a[name], own.lora.b[name], own.magnitude[name]
    weight = port.module.weight.detach()
    start, stop = port.rows or (0, port.out_features)
    rows = (weight.T if port.transposed else weight).flatten(1)[start:stop]
    direction = rows + 2.0 * (a @ b).T
    new = m[:, None] * direction / direction.norm(dim=1, keepdim=True)
    dense = weight.T.clone() if port.transposed else weight.clone()
    dense[start:stop] = new.detach().reshape(dense[start:stop].shape)
    bias = port.module.bias
    if port.kind == "conv":
        x = seeded(2, port.module.in_channels, 6, 6)
        expected = F.conv2d(x, dense, bias, port.module.stride, port.module.padding)
    else:
        x = seeded(3, port.in_features)
        expected = F.linear(x, dense, bias)
    attach(model, form)
    assert error(port.module(x), expected) < BOUND


@pytest.mark.parametrize("detach", [True, False])
def test_gradient_of_doras_norm(detach: bool) -> None:
    """Section 4.3: with `detach_norm` the norm is a constant in the gradient, otherwise it is not."""
    model = doubled(POLICY)
    form = form_of(model, "dora", rank=3, sites=("block.0.ffn.up",), detach_norm=detach)
    port = model.ports.ops["block.0.ffn.up"]
    x, weights = seeded(5, 32), seeded(5, port.out_features, seed=1)
    attach(model, form)
    (port.module(x) * weights).sum().backward()
    name = "block/0/ffn/up"
    found = form.lora.a[name].grad.clone()  # type: ignore[union-attr]
    a, b, m = (value.detach().clone().requires_grad_() for value in (form.lora.a[name], form.lora.b[name], form.magnitude[name]))  # type: ignore[union-attr]
    direction = port.module.weight.detach() + 16.0 / 3 * (a @ b).T
    norm = direction.norm(dim=1, keepdim=True)
    output = x @ (m[:, None] * direction / (norm.detach() if detach else norm)).T + port.module.bias.detach()
    (output * weights).sum().backward()
    assert a.grad is not None and error(found, a.grad) < BOUND


def test_ia3() -> None:
    """k and v of a fused projection times learned vectors, q untouched; the FFN's inner activation times another."""
    model = doubled(VIT, "features")
    form = form_of(model, "ia3")
    qkv, down = model.backbone.blocks[0].attn.qkv, model.backbone.blocks[0].mlp.fc2
    x, inner = seeded(2, 5, 32), seeded(2, 5, down.in_features)
    plain, plain_down = qkv(x), down
    factors = torch.ones(96, dtype=torch.float64)
    factors[32:64], factors[64:] = form.output["block/0/attn/k"].detach(), form.output["block/0/attn/v"].detach()  # type: ignore[index]
    expected_down = F.linear(inner * form.input["block/0/ffn/down"], plain_down.weight, plain_down.bias)  # type: ignore[index]
    attach(model, form)
    assert error(qkv(x), plain * factors) < BOUND and torch.equal(qkv(x)[..., :32], plain[..., :32])
    assert error(down(inner), expected_down) < BOUND
    assert sorted(edit.key for edit in form.edits() if edit.site.startswith("block.0")) == ["block.0.attn.k:scale", "block.0.attn.v:scale", "block.0.ffn.down:scale~input"]


def test_ia3_starts_at_one() -> None:
    assert all(bool((value == 1).all()) for value in form_of(tiny_model(VIT, "features"), "ia3", moved=False).parameters())


def sequential_twin(adapter: Any, activation: str) -> nn.Sequential:
    """The same adapter as people write it: Linear, activation, Linear, with a LayerNorm in front where it has one."""
    n_in, rank = adapter.down.shape
    layers: list[nn.Module] = [
        nn.Linear(n_in, rank),
        {"relu": nn.ReLU(), "gelu": nn.GELU(), "silu": nn.SiLU(), "tanh": nn.Tanh(), "none": nn.Identity()}[activation],
        nn.Linear(rank, adapter.up.shape[1]),
    ]
    with torch.no_grad():
        for layer, weight, bias in ((layers[0], adapter.down, adapter.down_bias), (layers[2], adapter.up, adapter.up_bias)):
            layer.weight.copy_(weight.T)
            layer.bias.copy_(bias)
        if adapter.norm_weight is not None:
            norm = nn.LayerNorm(n_in)
            norm.weight.copy_(adapter.norm_weight)
            norm.bias.copy_(adapter.norm_bias)
            layers.insert(0, norm)
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh", "none"])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("insertion", ["parallel", "sequential"])
def test_bottleneck_is_a_small_sequential(insertion: str, norm: bool, activation: str) -> None:
    """x + [f(n) + s A(n)] or x + [f(n) + s A(f(n))] with n the normed input: scale and norm are folded and change nothing."""
    model = doubled(POLICY)
    learned = activation != "gelu"
    form = form_of(model, "bottleneck", rank=5, insertion=insertion, norm=norm, activation=activation, scale=1.7, learned_scale=learned)
    block = model.backbone.blocks[1]
    adapter = form.adapters["block/1/ffn"]  # type: ignore[index]
    twin = sequential_twin(adapter, activation)
    scale = adapter.scale if learned else 1.7
    assert not learned or float(adapter.scale) != 1.7  # it has been moved as all trained values have
    x = seeded(4, 32)
    inner = block.norm(x)
    f = block.down(F.gelu(block.up(inner)))
    expected = x + f + scale * twin(inner if insertion == "parallel" else f)
    attach(model, form)
    assert error(block(x), expected) < BOUND


@pytest.mark.parametrize("init", ["lora", "bert"])
def test_how_a_bottleneck_starts(init: str) -> None:
    model = tiny_model(POLICY)
    adapter = form_of(model, "bottleneck", moved=False, rank=64, init=init).adapters["block/0/ffn"]  # type: ignore[index]
    if init == "lora":
        assert not bool(adapter.up.any()) and float(adapter.down.abs().max()) <= 32**-0.5
    else:
        assert abs(float(adapter.up.std()) - 0.02) < 2e-3 and abs(float(adapter.down.std()) - 0.02) < 2e-3
    assert not bool(adapter.up_bias.any()) and not bool(adapter.down_bias.any())


@pytest.mark.parametrize(("card", "task"), [(VIT, "features"), (GPT2, "causal-lm"), (WHISPER, "features")], ids=lambda value: getattr(value, "id", value))
def test_a_prefix_made_by_an_mlp_lowers_to_the_same_outputs(card: Any, task: str) -> None:
    """Only P_k and P_v are kept: embedding -> Linear -> tanh -> Linear, cut into layers, keys, values and heads."""
    model = tiny_model(card, task)
    form = form_of(model, "prefix", length=3, reparametrisation="mlp", hidden=20)
    inputs = example_of(model)
    with torch.no_grad():
        attach(model, form)
        expected = next(iter(model.module(**inputs).values()))
        attachments_of(model.module).remove_all()
        lowered = form.lower()
        attach(model, Lowered(lowered))
        found = next(iter(model.module(**inputs).values()))
        attachments_of(model.module).remove_all()
        made = torch.tanh(form.embedding @ form.inner + form.inner_bias) @ form.outer + form.outer_bias  # type: ignore[operator]
    assert torch.equal(found, expected)
    position = 0
    for edit, port in zip(lowered, model.ports.attention.values(), strict=True):
        width = port.heads * port.head_size
        for name in ("k", "v"):
            for head in range(port.heads):
                start = position + head * port.head_size
                assert torch.equal(edit.tensors[name][head], made[:, start : start + port.head_size])
            position += width
    assert position == made.shape[1]


def test_full_fine_tuning_lowers_to_the_difference() -> None:
    model = tiny_model(VIT, "features")
    before, inputs = state_of(model), example_of(model)
    form = form_of(model, "full", moved=False)
    attach(model, form)
    optimiser = torch.optim.SGD(attachments_of(model.module).trainable(), lr=0.1)
    model.module(**inputs)["features"].square().sum().backward()
    optimiser.step()
    with torch.no_grad():
        expected = model.module(**inputs)["features"]
    moved = state_of(model)
    edits = form.lower()
    attachments_of(model.module).remove_all()
    assert {edit.kind for edit in edits} == {"patch"}
    rows = next(edit for edit in edits if edit.site == "block.0.attn.k").tensors["weight"]
    name = "backbone.blocks.0.attn.qkv.weight"
    assert torch.equal(rows, (moved[name] - before[name])[32:64])
    tokens = next(edit for edit in edits if edit.site == "other.cls_token").tensors["weight"]
    assert torch.equal(tokens, moved["backbone.cls_token"] - before["backbone.cls_token"]) and bool(tokens.any())
    attach(model, Lowered(edits))
    with torch.no_grad():
        assert error(model.module(**inputs)["features"], expected) < 2e-6
    attachments_of(model.module).remove_all()


def test_full_fine_tuning_of_chosen_sites_moves_no_other() -> None:
    model = tiny_model(VIT, "features")
    form = form_of(model, "full", moved=False, sites=("block.1.norm?",))
    assert form.base_values() == 2 * 2 * 32
    assert sorted(edit.site for edit in form.lower()) == ["block.1.norm1", "block.1.norm2"]
    queries = form_of(model, "full", moved=False, sites=("attn.q",))  # the end of a site, as for every method
    assert [edit.site for edit in queries.lower()] == ["block.0.attn.q", "block.1.attn.q"]
    for sites in (("nothing.here",), ("block.1.norm?", "nothing.here")):  # one that matches does not excuse the other
        with pytest.raises(UserError, match=r"no parameter matches 'nothing\.here' in family vit"):
            form_of(model, "full", moved=False, sites=sites)


def test_mam_is_a_prefix_and_a_scaled_parallel_adapter() -> None:
    model = tiny_model(VIT, "features")
    edits = form_of(model, "mam", length=3, rank=4, scale=2.0).edits()
    kinds = sorted({(edit.kind, edit.variant) for edit in edits})
    assert kinds == [("bottleneck", "parallel-relu"), ("keys", "")]
    assert edits[0].tensors["k"].shape == (2, 3, 16)
    with torch.random.fork_rng():
        one, two = (form_of(model, "mam", length=3, rank=4, scale=scale).edits()[-1].tensors for scale in (1.0, 2.0))
    assert torch.equal(two["up"], 2 * one["up"]) and torch.equal(two["up_bias"], 2 * one["up_bias"]) and torch.equal(two["down"], one["down"])


def test_bitfit_adds_to_biases() -> None:
    model = doubled(VIT, "features")
    form = form_of(model, "bitfit", sites=("attn.v", "norm1"))
    x = seeded(2, 5, 32)
    qkv, norm = model.backbone.blocks[0].attn.qkv, model.backbone.blocks[0].norm1
    plain, normed = qkv(x), norm(x)
    attach(model, form)
    assert error(qkv(x)[..., 64:], plain[..., 64:] + form.b["block/0/attn/v"]) < BOUND and torch.equal(qkv(x)[..., :64], plain[..., :64])  # type: ignore[index]
    assert error(norm(x), normed + form.b["block/0/norm1"]) < BOUND  # type: ignore[index]


def test_prompts_start_from_words_or_uniform() -> None:
    """Lester et al.: embeddings of words; VPT: uniform within sqrt(6 / (2 width))."""
    model = tiny_model(BERT)
    tokens = form_of(model, "prompt", moved=False, length=4).edits()[0].tensors["tokens"]
    table = model.backbone.embeddings.word_embeddings.weight
    assert all(bool((table == row).all(dim=1).any()) for row in tokens)
    uniform = form_of(model, "prompt", moved=False, length=200, init="uniform").edits()[0].tensors["tokens"]
    bound = math.sqrt(6 / 64)  # width 32
    assert 0.95 * bound < float(uniform.abs().max()) <= bound
    with pytest.raises(UserError, match="has no word embeddings to start from"):
        form_of(tiny_model(VIT, "features"), "prompt", init="vocabulary")
    with pytest.raises(UserError, match="so no deep prompts; use prefix"):
        form_of(model, "prompt", deep=True)


def test_heads_linear_and_cosine() -> None:
    features = seeded(6, 8).float()
    linear, cosine = (HeadForm(8, 3, kind, torch.Generator().manual_seed(0)) for kind in ("linear", "cosine"))
    from polyadapt.model import score

    assert not bool(score(features, **linear.edits()[0].tensors).any())
    non_degenerate(linear)
    assert torch.allclose(score(features, **linear.edits()[0].tensors), features @ linear.weight + linear.bias, atol=1e-6)
    expected = TEMPERATURE * F.cosine_similarity(features[:, :, None], cosine.weight[None], dim=1)
    assert torch.allclose(score(features, **cosine.edits()[0].tensors), expected, atol=1e-5)


def test_lowered_edits_are_copies() -> None:
    """What is saved does not move when training goes on."""
    form = form_of(tiny_model(POLICY), "lora")
    lowered: list[Edit] = form.lower()
    before = lowered[0].tensors["a"].clone()
    with torch.no_grad():
        for parameter in form.parameters():
            parameter.add_(1.0)
    assert torch.equal(lowered[0].tensors["a"], before) and not lowered[0].tensors["b"].requires_grad
