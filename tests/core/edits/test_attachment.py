"""Attachments: named adapters over one base that nothing moves, seen to be reached, taken off bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import polyadapt as pa
from polyadapt.artifact import Artifact, detach
from polyadapt.edits import Edit, Form, Lowered, attachments_of, kind_of
from polyadapt.errors import UserError
from polyadapt.families.bert.card import CARD as BERT
from polyadapt.families.efficientnet.card import CARD as EFFICIENTNET
from polyadapt.families.mlp_policy.card import CARD as POLICY
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.methods.base import load_method
from polyadapt.methods.bottleneck.card import CARD as BOTTLENECK
from polyadapt.methods.full.card import CARD as FULL
from polyadapt.methods.lora.card import CARD as LORA
from polyadapt.model import Model, build_model
from polyadapt.signature import Task
from polyadapt.sites import Ports, op_port
from polyadapt.testing.conformance import example_of, load_family, non_degenerate, state_of, tiny_model


def form_of(card: object, model: Model, seed: int) -> Form:
    method = load_method(card)  # type: ignore[arg-type]
    form = method.build(model, method.card.options(), torch.Generator().manual_seed(seed))
    non_degenerate(form, seed)
    return form


def outputs(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return next(iter(model.module(**example_of(model)).values()))


def test_named_adapters_and_their_combinations() -> None:
    model = tiny_model(VIT, "features")
    base = outputs(model)
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("a", form_of(LORA, model, 1))
    attachments.add("b", form_of(BOTTLENECK, model, 2), activate=False)
    assert attachments.names == ("a", "b") and attachments.active == ("a",)
    a = outputs(model)
    with attachments.using("b"):
        b = outputs(model)
        with attachments.using("a", "b"):
            both = outputs(model)
            with attachments.using():
                assert torch.equal(outputs(model), base)
        assert torch.equal(outputs(model), b)
    assert torch.equal(outputs(model), a) and attachments.active == ("a",)
    attachments.activate("b", "a")  # the order of names does not matter: kinds have their own
    assert torch.equal(outputs(model), both)
    for one, other in ((a, base), (b, base), (both, a), (both, b)):
        assert float((one - other).abs().max()) > 1e-3
    attachments.remove("b")
    assert torch.equal(outputs(model), a)
    detach(model)
    assert torch.equal(outputs(model), base) and not hasattr(model.module, "polyadapt")


def test_using_comes_back_when_the_block_fails() -> None:
    model = tiny_model(VIT, "features")
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("a", form_of(LORA, model, 1))
    with pytest.raises(RuntimeError, match="stop"), attachments.using():
        raise RuntimeError("stop")
    assert attachments.active == ("a",)


def test_switching_moves_no_tensor() -> None:
    """Every parameter and buffer, the base's and the adapters', stays at its address and keeps its version."""
    model = tiny_model(VIT, "features")
    attachments = attachments_of(model.module, model.ports, model.backbone)
    for index in range(3):
        attachments.add(f"a{index}", form_of(LORA, model, index), activate=False)
    tensors = [*model.module.parameters(), *model.module.buffers()]
    before = [(value.data_ptr(), value._version) for value in tensors]
    for index in (0, 1, 2, 0):
        attachments.activate(f"a{index}")
        outputs(model)
    assert [(value.data_ptr(), value._version) for value in tensors] == before
    assert [id(value) for value in tensors] == [id(value) for value in (*model.module.parameters(), *model.module.buffers())]


def test_names_are_checked() -> None:
    model = tiny_model(VIT, "features")
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("birds", form_of(LORA, model, 1))
    with pytest.raises(UserError, match="adapter name 'birds' is taken"):
        attachments.add("birds", form_of(LORA, model, 1))
    with pytest.raises(UserError, match=r"adapter name 'a\.b' is not usable"):
        attachments.add("a.b", form_of(LORA, model, 1))
    with pytest.raises(UserError, match="unknown adapter 'bird'; did you mean 'birds'"):
        attachments.activate("bird")


def test_a_name_given_twice_applies_once() -> None:
    """Also a patch, which is added to the weights."""
    model = tiny_model(VIT, "features")
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("shift", Lowered([Edit("block.0.attn.v", "shift", {"b": torch.ones(32)})]))
    once = outputs(model)
    attachments.activate("shift", "shift")
    assert torch.equal(outputs(model), once) and attachments.active == ("shift",)
    before = state_of(model)["backbone.cls_token"]
    attachments.add("patch", Lowered([Edit("other.cls_token", "patch", {"weight": torch.ones(1, 1, 32)})]), activate=False)
    attachments.activate("patch", "patch")
    assert torch.equal(model.backbone.cls_token, before + 1)
    attachments.remove_all()


def test_two_edits_of_one_key_are_refused_wherever_they_come_in() -> None:
    """A file could not hold both, and both would apply."""
    model = tiny_model(VIT, "features")
    shift = Edit("block.0.attn.v", "shift", {"b": torch.ones(32)})
    words = r"two edits claim block\.0\.attn\.v:shift; combine them first"

    class Twice(Form):
        def edits(self) -> list[Edit]:
            return [shift, shift]

    artifact = Artifact("bitfit", model.base_id, "vit", "features", (shift, shift))
    for attempt in (
        lambda: Lowered([shift, shift]),
        lambda: attachments_of(model.module, model.ports, model.backbone).add("a", Twice()),
        lambda: artifact.attach(model),
        lambda: artifact.merge(model),
    ):
        with pytest.raises(UserError, match=words):
            attempt()
        assert not hasattr(model.module, "polyadapt")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (Edit("block.9.attn.q", "shift", {"b": torch.zeros(32)}), "no op at site 'block.9.attn.q' in family vit; did you mean"),
        (Edit("block.0.attn.q", "shift", {"b": torch.zeros(96)}), r"block.0.attn.q:shift.b: expected shape \(32\), found \(96,\)"),
        (Edit("block.0.attn.q", "lowrank", {"a": torch.zeros(32, 2), "b": torch.zeros(3, 32)}), r"lowrank.b: expected shape \(r, 32\), found \(3, 32\)"),
        (Edit("block.0.attn.q", "lowrank", {"a": torch.zeros(32, 2)}), r"expected tensors \['a', 'b'\], found \['a'\]"),
        (Edit("block.0.ffn", "bottleneck", {}, "beside-relu"), "has no variant 'beside-relu'"),
        (Edit("block.0.attn.q", "scale", {"g": torch.ones(32)}, "input"), r"cannot scale the input of block\.0\.attn\.q alone: its fused projection serves other sites too"),
        (Edit("block.0.ffn", "blend", {}), "unknown kind of edit 'blend'"),
        (Edit("block.0.attn.q", "shift", {"b": torch.zeros(32, dtype=torch.int64)}), "shift.b: expected numbers of floating point, found int64"),
        (Edit("block.0.norm1", "lowrank", {"a": torch.zeros(32, 2), "b": torch.zeros(2, 32)}), "'lowrank' fit linear layers.*block.0.norm1 is a norm"),
    ],
    ids=["site", "rows", "rank", "tensors", "variant", "fused", "kind", "integers", "norm"],
)
def test_an_edit_that_does_not_fit_is_refused(edit: Edit, words: str) -> None:
    model = tiny_model(VIT, "features")
    with pytest.raises(UserError, match=words):
        attachments_of(model.module, model.ports, model.backbone).add("a", Lowered([edit]))
    with pytest.raises(UserError, match=words):
        Artifact("lora", model.base_id, "vit", "features", (edit,)).merge(model)
    assert not hasattr(model.module, "polyadapt")


def test_everything_comes_off_at_once_patches_too() -> None:
    model = tiny_model(POLICY)
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    attachments = attachments_of(model.module, model.ports, model.backbone)
    for name in ("one", "two"):
        attachments.add(name, Lowered([Edit("embed", "patch", {"bias": torch.ones(32)})]), activate=False)
    attachments.activate("one", "two")
    attachments.remove_all()
    assert not hasattr(model.module, "polyadapt") and all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


def train_steps(model: Model, steps: int = 2) -> None:
    """Steps as a careless trainer makes them: everything is put into training mode."""
    optimiser = torch.optim.SGD(attachments_of(model.module).trainable(), lr=0.1)
    for step in range(steps):
        model.module.train()
        optimiser.zero_grad()
        outputs_now = model.module(**example_of(model, seed=step))
        torch.stack([value.square().mean() for value in outputs_now.values()]).sum().backward()
        optimiser.step()


@pytest.mark.parametrize("card", [LORA, FULL], ids=["lora", "full"])
def test_efficientnet_keeps_its_147_buffers(card: object) -> None:
    """tf_efficientnet_lite0 has 49 batch norms of 3 buffers; one careless training forward would move them all."""
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=3)
    backbone.pretrained_cfg = {**backbone.pretrained_cfg, "input_size": (3, 32, 32)}
    task = Task("classification", ("a", "b", "c"))
    model = build_model(load_family(EFFICIENTNET), backbone, task, None, reference="test")  # type: ignore[arg-type]
    before = state_of(model)
    buffers = [name for name, _ in model.backbone.named_buffers()]
    assert len(buffers) == 147
    attachments = attachments_of(model.module, model.ports, model.backbone)
    form = form_of(card, model, 1)
    attachments.add("a", form)
    train_steps(model)
    after = state_of(model)
    assert all(torch.equal(after[f"backbone.{name}"], before[f"backbone.{name}"]) for name in buffers)
    moved = [name for name in before if not torch.equal(after[name], before[name])]
    assert bool(moved) == (card is FULL)
    attachments.remove_all()
    restored = state_of(model)
    assert set(restored) == set(before) and all(torch.equal(restored[name], value) for name, value in before.items())


def test_the_base_would_move_without_care() -> None:
    """The trap is there: the same forward on the bare model changes its buffers."""
    model = tiny_model(EFFICIENTNET)
    before = state_of(model)
    model.module.train()(**example_of(model))
    assert any(not torch.equal(value, before[name]) for name, value in state_of(model).items())


def test_the_frozen_base_stays_in_evaluation_mode() -> None:
    """BERT has dropout of 0.1: in training mode two forwards would differ. The adapter's own dropout works."""
    model = tiny_model(BERT)
    inputs = example_of(model)
    model.module.train()
    assert not torch.equal(model.module(**inputs)["features"], model.module(**inputs)["features"])
    model.module.eval()
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("quiet", form_of(LORA, model, 1))
    model.module.train()
    assert torch.equal(model.module(**inputs)["features"], model.module(**inputs)["features"])
    assert not any(module.training for module in model.backbone.modules()) and attachments.training
    method = load_method(LORA)
    noisy = method.build(model, method.card.options(dropout=0.5), torch.Generator().manual_seed(0))
    non_degenerate(noisy)
    attachments.add("noisy", noisy)
    attachments.activate("noisy")
    model.module.train()
    assert not torch.equal(model.module(**inputs)["features"], model.module(**inputs)["features"])
    model.module.eval()
    assert torch.equal(model.module(**inputs)["features"], model.module(**inputs)["features"])
    attachments.remove_all()


def test_what_required_gradients_does_so_again() -> None:
    model = tiny_model(VIT)
    names = [name for name, parameter in model.backbone.named_parameters()]
    model.backbone.get_parameter(names[0]).requires_grad_(False)
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("a", form_of(LORA, model, 1))
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    attachments.remove_all()
    assert [parameter.requires_grad for parameter in model.backbone.parameters()] == [False] + [True] * (len(names) - 1)


def transformer_layer() -> nn.TransformerEncoderLayer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()


FAST_PATH_PORTS = {"block.0.ffn.up": "linear1", "block.0.attn.o": "self_attn.out_proj", "block.0.norm1": "norm1"}


def test_a_site_that_torch_never_calls_is_refused() -> None:
    """torch's attention takes the weight of `out_proj` without calling the module."""
    layer = transformer_layer()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(UserError, match=r"1 edits are never reached in training mode: block\.0\.attn\.o:lowrank; the library skips these modules"):
        pa.attach(layer, "lora", ports=FAST_PATH_PORTS, sites=("attn.o",), example=torch.randn(2, 5, 16))
    after = layer.state_dict()
    assert set(after) == set(before) and all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_a_site_that_is_skipped_in_one_mode_is_refused(mode: str) -> None:
    class Shortcut(nn.Module):
        """A library's fast path: in one mode the weight is used without calling the module."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            skips = getattr(self, "polyadapt", self).training == (mode == "training")
            result: torch.Tensor = x @ self.inner.weight.T + self.inner.bias if skips else self.inner(x)
            return result

    with pytest.raises(UserError, match=f"never reached in {mode} mode: ffn.up:lowrank"):
        pa.attach(Shortcut(), "lora", ports={"ffn.up": "inner"}, sites=("ffn.up",), example=torch.randn(2, 4))


def test_hooks_keep_torch_off_its_fast_path() -> None:
    """In evaluation mode torch would call one fused kernel for the whole layer; with edits attached it must not."""
    layer = transformer_layer()
    x = torch.randn(2, 5, 16)
    attached = pa.attach(layer, "lora", ports=FAST_PATH_PORTS, sites=("ffn.up",), example=x)
    non_degenerate(attached.form)
    assert sum(parameter.numel() for parameter in attached.parameters()) == 8 * (16 + 32)
    with torch.no_grad():
        evaluated = layer.eval()(x)
        layer.polyadapt.activate()
        assert float((layer(x) - evaluated).abs().max()) > 1e-3


def test_counting_names_what_was_applied() -> None:
    model = tiny_model(VIT, "features")
    attachments = attachments_of(model.module, model.ports, model.backbone)
    edits = [Edit("block.0.attn.q", "shift", {"b": torch.ones(32)}), Edit("block.1.attn", "keys", {"k": torch.ones(2, 1, 16), "v": torch.ones(2, 1, 16)})]
    attachments.add("a", Lowered(edits))
    with attachments.counting() as seen:
        outputs(model)
    assert seen == {("op", "block.0.attn.q:shift"), ("attention", "block.1.attn:keys")}
    with attachments.using(), attachments.counting() as seen:
        outputs(model)
    assert seen == set()
    attachments.remove_all()


def test_a_failing_forward_leaves_nothing_entered() -> None:
    """The interception of attention ends with the module's forward, also when that raises."""
    model = tiny_model(VIT, "features")
    base = outputs(model)
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("a", Lowered([Edit("block.0.attn", "keys", {"k": torch.ones(2, 1, 16), "v": torch.ones(2, 1, 16)})]))
    adapted = outputs(model)
    with pytest.raises(AssertionError), torch.no_grad():
        model.module(image=torch.zeros(1, 3, 8, 8))
    handle = model.backbone.blocks[0].attn.proj.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        outputs(model)
    handle.remove()
    assert torch.equal(outputs(model), adapted)
    attachments.remove_all()
    assert torch.equal(outputs(model), base)


def test_trainable_tensors_are_the_roots_parameters() -> None:
    """Any optimiser or data-parallel wrapper finds them there, and a deep state dict holds them."""
    model = tiny_model(VIT, "features")
    attachments = attachments_of(model.module, model.ports, model.backbone)
    attachments.add("a", form_of(LORA, model, 1))
    trained = {name for name, parameter in model.module.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("polyadapt.forms.a.") for name in trained)
    assert trained <= set(model.module.state_dict())
    attachments.remove_all()


def test_dropout_is_drawn_for_each_edit() -> None:
    """A low-rank edit's input is dropped while its base sees the whole input."""
    root = nn.Sequential(nn.Linear(64, 4, bias=False))
    nn.init.zeros_(root[0].weight)
    port = op_port("op", "0", root[0], None)
    assert port is not None
    edit = Edit("op", "lowrank", {"a": torch.eye(64)[:, :4], "b": torch.eye(4)}, dropout=0.5)

    class Fixed(Form):
        def edits(self) -> list[Edit]:
            return [edit]

    attachments_of(root, Ports("toy", ops={"op": port})).add("a", Fixed())
    x = torch.ones(200, 64)
    root.eval()
    assert torch.equal(root(x), torch.ones(200, 4))
    root.train()
    values = root(x).unique().tolist()
    assert values == [0.0, 2.0]  # dropped, or kept and doubled
    assert kind_of("lowrank").order == 0
