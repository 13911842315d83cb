"""Places of adapters at a span: each of the grid is its formula, and an empty slot is the base everywhere.

Formulas: arXiv 2312.03694, section 4, with f the span, b its input, A the adapter:

    parallel before    f(b) + A(b) [+ b]      sequential before  f(A(b)) [+ A(b)]
    parallel after     f + A(f) [+ f]         sequential after   A(f) [+ f]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from polyadapt.artifact import Artifact
from polyadapt.edits import KINDS, Edit, Form, Lowered, attachments_of
from polyadapt.edits.kinds.module import module_variant
from polyadapt.edits.kinds.place import PLACES, has_skip
from polyadapt.families.ast.card import CARD as AST
from polyadapt.families.llama.card import CARD as LLAMA
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.families.whisper.card import CARD as WHISPER
from polyadapt.methods.base import load_method
from polyadapt.methods.bottleneck.card import CARD, BottleneckOptions
from polyadapt.model import Model
from polyadapt.sites import Ports, SpanPort, op_port
from polyadapt.testing.conformance import check_method, example_of, tiny_model

Adapter = Callable[[torch.Tensor], torch.Tensor]
Span = Callable[[torch.Tensor], torch.Tensor]

GRID: dict[tuple[str, str, bool], Callable[[Span, Adapter, torch.Tensor], torch.Tensor]] = {
    ("parallel", "before", False): lambda f, a, b: f(b) + a(b),
    ("parallel", "before", True): lambda f, a, b: f(b) + a(b) + b,
    ("parallel", "after", False): lambda f, a, b: f(b) + a(f(b)),
    ("parallel", "after", True): lambda f, a, b: f(b) + a(f(b)) + f(b),
    ("sequential", "before", False): lambda f, a, b: f(a(b)),
    ("sequential", "before", True): lambda f, a, b: f(a(b)) + a(b),
    ("sequential", "after", False): lambda f, a, b: a(f(b)),
    ("sequential", "after", True): lambda f, a, b: a(f(b)) + f(b),
}


def form_of(model: Model, seed: int = 1, **options: Any) -> torch.nn.Module:
    """A bottleneck form whose every value is random."""
    form = load_method(CARD).form(model, BottleneckOptions(rank=3, **options), torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in form.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.5)
    return form


def spans_of(part: str, block: Any) -> Span:
    """The library's own part of a block as a function of its input, without edits."""
    return block.mlp if part == "ffn" else lambda b: block.attn(b)


@pytest.mark.parametrize("part", ["ffn", "attn"])
@pytest.mark.parametrize("place", GRID, ids=lambda place: "-".join(map(str, place)))
def test_the_grid(place: tuple[str, str, bool], part: str) -> None:
    """On timm's fused q, k and v: the span of attention begins at all three."""
    model = tiny_model(VIT, "features")
    insertion, position, residual = place
    form = form_of(model, insertion=insertion, position=position, residual=residual, sites=(f"block.1.{part}",))
    [edit] = form.lower()  # type: ignore[operator]
    block = model.backbone.blocks[1]  # type: ignore[index,union-attr]
    inside = spans_of(part, block)
    b = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))
    t = edit.tensors

    def adapter(u: torch.Tensor) -> torch.Tensor:
        return torch.relu(u @ t["down"] + t["down_bias"]) @ t["up"] + t["up_bias"]

    with torch.no_grad():
        expected = GRID[place](inside, adapter, b)
        attachments = attachments_of(model.module, model.ports, model.backbone)
        attachments.add("test", Lowered([edit]))
        found = inside(b)
        attachments.remove_all()
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("card", [AST, WHISPER, LLAMA], ids=lambda card: card.id)
@pytest.mark.parametrize("part", ["attn", "ffn"])
def test_what_stands_before_a_span_reaches_every_module_that_reads_it(card: Any, part: str) -> None:
    """Three projections that are three modules, and an up and a gate: all get A(b) in place of b."""
    model = tiny_model(card, "features" if "features" in card.tasks else card.tasks[0])
    site = next(site for site in model.ports.spans if site.endswith(f"block.0.{part}"))
    span = model.ports.spans[site]
    given: dict[int, torch.Tensor] = {}
    handles = [module.register_forward_hook(lambda module, args, output: given.update({id(module): args[0]})) for module in span.readers]
    assert len(span.readers) == (3 if part == "attn" else 2 if card is LLAMA else 1)
    form = form_of(model, insertion="sequential", position="before", sites=(site,))
    attachments = attachments_of(model.module, model.ports, model.backbone)
    try:
        with torch.no_grad():
            model.module(**example_of(model))
            plain = dict(given)
            [edit] = form.lower()  # type: ignore[operator]
            attachments.add("test", Lowered([edit]))
            model.module(**example_of(model))
    finally:
        attachments.remove_all()
        for handle in handles:
            handle.remove()
    t = edit.tensors
    for module in span.readers:
        expected = torch.relu(plain[id(module)] @ t["down"] + t["down_bias"]) @ t["up"] + t["up_bias"]
        assert torch.allclose(given[id(module)], expected, atol=1e-5)


def test_a_cross_attentions_source_is_not_what_its_span_reads() -> None:
    span = tiny_model(WHISPER, "transcription").ports.spans["decoder.block.0.cross"]
    assert span.readers == (span.start.module,)


@pytest.mark.parametrize("place", PLACES)
def test_an_empty_slot_is_the_base_bit_for_bit(place: str) -> None:
    model = tiny_model(VIT, "features")
    inputs = example_of(model)
    kind = KINDS["bottleneck"]
    edits = [Edit(site, "bottleneck", kind.identity(model.ports.spans[site], f"{place}-relu"), f"{place}-relu") for site in model.ports.spans]
    with torch.no_grad():
        base = model.module(**inputs)["features"]
        attachments = attachments_of(model.module, model.ports, model.backbone)
        attachments.add("test", Lowered(edits))
        assert torch.equal(model.module(**inputs)["features"], base)
        attachments.remove_all()


@pytest.mark.parametrize("place", GRID, ids=lambda place: "-".join(map(str, place)))
def test_a_plan_says_which_places_move_the_base_at_the_start(place: tuple[str, str, bool]) -> None:
    """Truth is what the model answers."""
    model = tiny_model(AST, "features")
    insertion, position, residual = place
    options = BottleneckOptions(insertion=insertion, position=position, residual=residual)  # type: ignore[arg-type]
    method = load_method(CARD)
    inputs = example_of(model)
    with torch.no_grad():
        base = model.module(**inputs)["features"]
        attachments = attachments_of(model.module, model.ports, model.backbone)
        attachments.add("test", method.build(model, options, torch.Generator().manual_seed(0)))
        found = model.module(**inputs)["features"]
        attachments.remove_all()
    assert bool((found - base).abs().max() > 1e-4) == bool(method.plan(model, options).identity_at_start)


def test_two_adapters_before_a_span_stand_in_a_row() -> None:
    """The second reads what the first made; one that stands beside the span still reads the span's own input."""
    model = tiny_model(VIT, "features")
    options = {"insertion": "sequential", "position": "before", "sites": ("block.1.ffn",), "activation": "none"}
    first, second, beside = form_of(model, 1, **options), form_of(model, 2, **options), form_of(model, 3, sites=("block.1.ffn",), activation="none")
    block = model.backbone.blocks[1]  # type: ignore[index,union-attr]
    b = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))

    def linear(form: Any, u: torch.Tensor) -> torch.Tensor:
        t = form.lower()[0].tensors
        return (u @ t["down"] + t["down_bias"]) @ t["up"] + t["up_bias"]

    with torch.no_grad():
        one = linear(first, b)
        two = linear(second, one)
        expected = block.mlp(two) + one + two + linear(beside, b)
        attachments = attachments_of(model.module, model.ports, model.backbone)
        for name, form in (("first", first), ("second", second), ("beside", beside)):
            attachments.add(name, form)  # type: ignore[arg-type]
        attachments.activate("first", "second", "beside")
        found = block.mlp(b)
        attachments.remove_all()
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_forward_that_broke_off_leaves_nothing_behind() -> None:
    """What entered the span then is not taken for what enters it next."""
    model = tiny_model(VIT, "features")
    mlp: Any = model.backbone.blocks[1].mlp  # type: ignore[index,union-attr]
    first, second = (torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4))
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("test", form_of(model, insertion="sequential", position="before", sites=("block.1.ffn",)))  # type: ignore[arg-type]

    def breaks(module: Any, args: Any) -> None:
        raise KeyboardInterrupt

    with torch.no_grad():
        expected = mlp(second)
        handle = mlp.act.register_forward_pre_hook(breaks)
        with pytest.raises(KeyboardInterrupt):
            mlp(first)
        handle.remove()
        assert torch.equal(mlp(second), expected)
    attachments.remove_all()


@pytest.mark.parametrize(("insertion", "position", "residual"), list(GRID), ids=lambda value: str(value))
def test_every_place_can_be_saved_and_loaded(insertion: str, position: str, residual: bool, tmp_path: Path) -> None:
    model = tiny_model(AST, "features")
    form = form_of(model, insertion=insertion, position=position, residual=residual)
    artifact = Artifact("bottleneck", model.base_id, "ast", "features", tuple(form.lower()))  # type: ignore[operator]
    artifact.save(tmp_path / "a")
    answers = []
    for one in (artifact, Artifact.load(tmp_path / "a")):
        attachments = one.attach(model)
        with torch.no_grad():
            answers.append(model.module(**example_of(model))["features"])
        attachments.remove_all()
    assert torch.equal(*answers)


@pytest.mark.parametrize(("insertion", "position"), list(itertools.product(("parallel", "sequential"), ("before", "after"))))
def test_effects_at_a_place_have_an_amount(insertion: str, position: str) -> None:
    """Half of an adapter without activation is half of its effect on what it stands beside, `skip` included."""
    model = tiny_model(VIT, "features")
    [edit] = form_of(model, insertion=insertion, position=position, residual=insertion == "parallel", sites=("block.0.ffn",), activation="none").lower()  # type: ignore[operator]
    kind = KINDS["bottleneck"]
    half = Edit(edit.site, edit.kind, kind.scaled(edit.tensors, edit.variant, 0.5), edit.variant)
    mlp = model.backbone.blocks[0].mlp  # type: ignore[index,union-attr]
    b = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))
    attachments = attachments_of(model.module, model.ports, model.backbone)
    given: list[torch.Tensor] = []
    handle = mlp.fc1.register_forward_hook(lambda module, args, output: given.append(args[0]))
    answers = []
    with torch.no_grad():
        for edits in ([], [half], [edit]):
            if edits:
                attachments.add("test", Lowered(edits))
            answers.append(mlp(b))
            if edits:
                attachments.remove_all()
    handle.remove()
    base, halved, whole = given if (insertion, position) == ("sequential", "before") else answers
    assert torch.allclose(halved - base, 0.5 * (whole - base), atol=1e-5)
    assert (whole - base).abs().max() > 0.1


@pytest.mark.parametrize("options", [{"insertion": "sequential", "position": "before"}, {"insertion": "sequential", "residual": False}, {"residual": True}], ids=str)
def test_other_places_conform(options: dict[str, Any], tmp_path: Path) -> None:
    """All of `check_method` with these options as defaults, but identity at the start, which they do not have."""
    from dataclasses import replace

    class Placed(BottleneckOptions):
        insertion: Any = options.get("insertion", "parallel")
        position: Any = options.get("position", "auto")
        residual: bool | None = options.get("residual")
        train_norm: bool = True

    card = replace(CARD, options=Placed, identity_at_start="stated by the plan")
    check_method(load_method(card), tiny_model(AST), tmp_path)


WHOLE = {"parallel": (1.0, 21.0), "sequential": (1.0, 21.0), "before+carry": (1.25, 41.25)}  # of dropped and of doubled values; elsewhere the skip adds a quarter


@pytest.mark.parametrize("kind", ["bottleneck", "module"])
@pytest.mark.parametrize("place", PLACES)
def test_dropout_is_of_what_the_adapter_reads_and_of_nothing_else(place: str, kind: str) -> None:
    """f(b) = b = 1, A(u) = 10 u, s = 1/4, half of u dropped and the other half doubled: f, b and s b stay whole."""
    root = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
    root[0].weight = torch.nn.Parameter(torch.eye(64))
    port = op_port("op", "0", root[0], None)
    assert port is not None
    skip = {"skip": torch.tensor([0.25])} if has_skip(place) else {}
    if kind == "bottleneck":
        tensors = {"down": torch.eye(64), "down_bias": torch.zeros(64), "up": 10 * torch.eye(64), "up_bias": torch.zeros(64), **skip}
        edit = Edit("span", kind, tensors, f"{place}-none", dropout=0.5)
    else:
        inner = torch.nn.Linear(64, 64, bias=False)
        edit = Edit("span", kind, {"weight": 10 * torch.eye(64), **skip}, module_variant("test", place), dropout=0.5, structure=inner)

    class Fixed(Form):
        def edits(self) -> list[Edit]:
            return [edit]

    attachments_of(root, Ports("toy", ops={"op": port}, spans={"span": SpanPort("span", port, port)})).add("a", Fixed())
    low, high = WHOLE.get(place, (1.25, 21.25))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        assert root.train()(torch.ones(8, 64)).unique().tolist() == [low, high]
        assert root.eval()(torch.ones(8, 64)).unique().tolist() == [(low + high) / 2]
