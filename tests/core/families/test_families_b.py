"""Families of text, synthesis, diffusion and control: every one keeps what its card says."""

from __future__ import annotations

import importlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from polyadapt.errors import UserError
from polyadapt.families.base import Family
from polyadapt.families.card import FamilyCard
from polyadapt.signature import Task
from polyadapt.sites import Ports, resolve
from polyadapt.tensors import base_id

FOLDERS = ("bert", "gpt2", "llama", "t5", "vits", "unet", "mlp_policy")
DTYPES = {"float32": torch.float32, "int64": torch.int64}

# (op, span, attention, stream) ports of the tiny backbones, counted by hand:
#   a BERT or GPT-2 block has q k v o, up down and 2 norms = 8 ops; a Llama block has a gate as well = 9
#   bert      2*8 + embed pos types embed.norm; with a class head also pool
#   gpt2      2*8 + embed pos norm, and head for causal-lm; llama 2*9 + embed norm, and head
#   t5        encoder 2*8, decoder 2*(8 + cross qkvo + norm3 = 13), embed pos norm a tower, head = 16 + 26 + 6 + 1
#             spans: attn ffn an encoder block, attn cross ffn a decoder block = 2*2 + 2*3; attention 2*1 + 2*2
#   vits      encoder 2*8 + embed out; flow 2 blocks of in, out and 2 layers of 2 convs = 2*6;
#             decoder 2 rates x 2 kernels = 4 blocks of 2 layers of 2 convs = 16, in, out = 18 + 12 + 18
#   unet      transformer 1 norm, 2 proj, 8 qkvo, 3 norms, 3 ffn = 17 in down.0.0, mid.0, up.1.0, up.1.1 = 68;
#             residual 2 norms, 2 convs, time = 5 in down.0.0 down.1.0 mid.0 mid.1 up.0.0 up.0.1 up.1.0 up.1.1 = 40,
#             with a shortcut where widths change: down.1.0 and the 4 of the way up = 5;
#             embed head norm time.up time.down down.0.resize up.0.resize = 7; 3 spans and 2 attentions a transformer
#   policy    2*(up down norm1) + embed norm head
COUNTS = {
    ("bert", "features"): (20, 4, 2, 1),
    ("bert", "classification"): (21, 4, 2, 1),
    ("gpt2", "causal-lm"): (20, 4, 2, 1),
    ("gpt2", "classification"): (19, 4, 2, 1),
    ("llama", "causal-lm"): (21, 4, 2, 1),
    ("llama", "classification"): (20, 4, 2, 1),
    ("t5", "seq2seq-lm"): (49, 10, 6, 2),
    ("vits", "synthesis"): (48, 2, 0, 0),
    ("unet", "denoising"): (120, 12, 8, 0),
    ("mlp-policy", "control"): (9, 2, 0, 0),
}
TIED = {
    ("gpt2", "causal-lm"): {"embed", "head"},
    ("llama", "causal-lm"): {"embed", "head"},
    ("t5", "seq2seq-lm"): {"encoder.embed", "decoder.embed", "head"},
}


class Case:
    """One tiny backbone for one task."""

    def __init__(self, family: Family, task: Task) -> None:
        self.family, self.task = family, task
        torch.manual_seed(0)
        self.backbone = family.tiny(task).eval()
        self.ports: Ports = resolve(family.card, self.backbone)
        self.recipe = family.card.export[task.kind]

    def example(self, sizes: Mapping[str, int], seed: int = 0) -> dict[str, torch.Tensor]:
        return self.family.example(self.backbone, self.task, sizes, torch.Generator().manual_seed(seed))

    def run(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return self.family.forward(self.backbone, self.task, inputs)


def family_of(folder: str) -> Family:
    card: FamilyCard = importlib.import_module(f"polyadapt.families.{folder}.card").CARD
    module, _, name = card.implementation.partition(":")
    made: Family = getattr(importlib.import_module(module), name)(card)
    return made


FAMILIES = {family.card.id: family for family in map(family_of, FOLDERS)}


@pytest.fixture(scope="module")
def build() -> Callable[[str, str], Case]:
    made: dict[tuple[str, str], Case] = {}

    def get(identity: str, kind: str) -> Case:
        if (identity, kind) not in made:
            made[identity, kind] = Case(FAMILIES[identity], Task(kind, labels=("a", "b", "c") if kind == "classification" else ()))
        return made[identity, kind]

    return get


@pytest.fixture(params=sorted(COUNTS), ids="-".join)
def case(request: pytest.FixtureRequest, build: Callable[[str, str], Case]) -> Case:
    return build(*request.param)


def test_every_task_of_every_card_is_tested() -> None:
    assert {(family.card.id, kind) for family in FAMILIES.values() for kind in family.card.tasks} == set(COUNTS)
    assert all(set(family.card.export) == set(family.card.tasks) for family in FAMILIES.values())


def test_tiny_backbone_is_small_seeded_and_alive(case: Case) -> None:
    assert 0 < sum(parameter.numel() for parameter in case.backbone.parameters()) < 1_000_000
    torch.manual_seed(0)
    again = case.family.tiny(case.task)
    excluded = case.family.head_parameters(case.backbone)
    identity = base_id(case.family.card.id, case.family.config(case.backbone), case.backbone, excluded)
    assert base_id(case.family.card.id, case.family.config(again), again, excluded) == identity
    torch.manual_seed(1)
    other = case.family.tiny(case.task)
    assert base_id(case.family.card.id, case.family.config(other), other, excluded) != identity


def test_outputs_have_the_declared_shapes_and_dtypes(case: Case) -> None:
    signature = case.family.signature(case.backbone, case.task)
    for sizes in (case.recipe.trace, *case.recipe.check):
        inputs = case.example(sizes)
        assert [(spec.name, spec.dtype) for spec in signature.inputs] == [(name, str(tensor.dtype).removeprefix("torch.")) for name, tensor in inputs.items()]
        outputs = case.run(inputs)
        for specs, tensors in ((signature.inputs, inputs), (signature.outputs, outputs)):
            assert [spec.name for spec in specs] == list(tensors)
            for spec in specs:
                expected = [sizes.get(size) if isinstance(size, str) else size for size in spec.shape]  # None: follows from the data
                found = tensors[spec.name].shape
                assert len(found) == len(expected) and all(want in (None, size) for want, size in zip(expected, found, strict=True)), (spec, found)
                assert tensors[spec.name].dtype == DTYPES[spec.dtype]
        assert all(torch.isfinite(value).all() for value in outputs.values())


def test_the_example_is_seeded_and_the_recipe_checks_other_sizes(case: Case) -> None:
    sizes = case.recipe.trace
    first, again, other = case.example(sizes), case.example(sizes), case.example(sizes, seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert all(size >= 2 for size in sizes.values())
    assert all(check.keys() == sizes.keys() and all(check[name] != sizes[name] for name in sizes) for check in case.recipe.check)
    assert case.recipe.tolerance <= 1e-5 or case.recipe.cause


def test_number_of_ports(case: Case) -> None:
    ports = case.ports
    assert (len(ports.ops) - len(unreached(case)), len(ports.spans), len(ports.attention), len(ports.streams)) == COUNTS[case.family.card.id, case.task.kind]


def unreached(case: Case) -> set[str]:
    reached = resolve(case.family.card, case.backbone, case.task.kind).ops
    return set(case.ports.ops) - set(reached)


def test_no_op_holds_two_of_query_key_and_value(case: Case) -> None:
    owned: dict[str, list[tuple[int, int]]] = {}
    for port in case.ports.ops.values():
        owned.setdefault(port.path, []).append(port.rows or (0, port.out_features))
    for path, sections in owned.items():
        module = case.backbone.get_submodule(path)
        weight: Any = module.weight
        transposed = type(module).__name__ == "Conv1D"
        total = weight.shape[1] if transposed or isinstance(module, nn.Embedding) else weight.shape[0]
        bounds = sorted(sections)
        assert bounds[0][0] == 0 and bounds[-1][1] == total, path
        assert all(left[1] == right[0] for left, right in itertools.pairwise(bounds)), path
    for site in case.ports.ops:
        if re.search(r"\.(attn|cross)\.[qkv]$", site):
            assert {f"{site[:-1]}{part}" for part in "qkvo"} <= set(case.ports.ops)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_every_op_runs(case: Case, training: bool) -> None:
    calls: Counter[str] = Counter()
    ports = resolve(case.family.card, case.backbone, case.task.kind)
    handles = [port.module.register_forward_hook(lambda *_, site=site: calls.update([site])) for site, port in ports.ops.items()]
    try:
        case.backbone.train(training)
        torch.manual_seed(0)
        case.run(case.example(case.recipe.trace))
    finally:
        case.backbone.eval()
        for handle in handles:
            handle.remove()
    assert set(calls) == set(ports.ops)


class Watch(TorchFunctionMode):
    """Notes the shapes of key and value at every scaled-dot-product call."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[tuple[int, ...]] = []

    def __torch_function__(self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is F.scaled_dot_product_attention:
            key = args[1] if len(args) > 1 else (kwargs or {})["key"]
            self.keys.append(tuple(key.shape))
        return func(*args, **(kwargs or {}))


def test_attention_is_called_once_with_the_declared_heads(case: Case) -> None:
    watch = Watch()
    seen: dict[str, tuple[int, ...]] = {}
    started: dict[str, int] = {}
    handles = []
    for site, port in case.ports.attention.items():
        handles.append(port.module.register_forward_pre_hook(lambda *_, site=site: started.update({site: len(watch.keys)})))

        def after(*_: Any, site: str = site) -> None:
            (seen[site],) = watch.keys[started[site] :]

        handles.append(port.module.register_forward_hook(after))
    with watch:
        case.run(case.example(case.recipe.trace))
    for handle in handles:
        handle.remove()
    assert set(seen) == set(case.ports.attention) and len(watch.keys) == len(seen)
    for site, port in case.ports.attention.items():
        _, heads, _, size = seen[site]
        assert size == port.head_size
        query = case.ports.ops[f"{site}.q"].out_features // port.head_size
        assert heads in (port.heads, query) and query % port.heads == 0
        assert case.ports.ops[f"{site}.k"].out_features == port.heads * port.head_size
        assert port.cross == site.endswith(".cross")


def test_config_is_plain_data_without_names_of_libraries(case: Case) -> None:
    text = json.dumps(case.family.config(case.backbone)).lower()
    assert not re.search(r"torch|transformers|diffusers|timm|hugging|model_type|class|version", text)


def test_tied_weights_are_flagged(case: Case) -> None:
    tied = {site for site, port in case.ports.ops.items() if port.tied}
    assert tied == TIED.get((case.family.card.id, case.task.kind), set())


def test_declared_null_effects_are_null_and_others_are_not(case: Case) -> None:
    """Adds a vector to the output of each key, query and relative position."""
    inputs = case.example(case.recipe.trace)
    base = case.run(inputs)
    globs = [re.compile(re.escape(glob).replace(r"\*", ".*")) for glob in case.family.card.no_effect]
    for site, port in case.ports.ops.items():
        if site in unreached(case) or not re.search(r"\.(k|q|pos)$|^pos$", site):
            continue
        changed = shifted(case, port, inputs)
        error = max(float((changed[name] - base[name]).abs().max() / base[name].abs().max()) for name in base if base[name].is_floating_point())
        if any(glob.fullmatch(f"{site}:shift") for glob in globs):
            assert error < 2e-5, site
        else:
            assert error > 1e-3, site


def shifted(case: Case, port: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    low, high = port.rows or (0, port.out_features)
    vector = torch.randn(high - low, generator=torch.Generator().manual_seed(3))

    def add(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[..., low:high] += vector
        return output

    handle = port.module.register_forward_hook(add)
    try:
        return case.run(inputs)
    finally:
        handle.remove()


@pytest.mark.parametrize("kind", ["bert-features", "gpt2-causal-lm", "llama-causal-lm", "mlp-policy-control"])
def test_blocks_hand_on_one_tensor(kind: str, build: Callable[[str, str], Case]) -> None:
    """The output of block i is the first input of block i+1, so a frozen part can be replaced by its output."""
    identity = next(name for name in FAMILIES if kind.startswith(f"{name}-"))
    case = build(identity, kind.removeprefix(f"{identity}-"))
    patterns = [re.compile(re.escape(template).replace(r"\{n\}", r"\d+")) for template in case.family.card.blocks]
    blocks = [module for name, module in case.backbone.named_modules() if any(pattern.fullmatch(name) for pattern in patterns)]
    trace: list[torch.Tensor] = []
    handles = [block.register_forward_hook(lambda _, args, output: trace.extend([args[0], output])) for block in blocks]
    case.run(case.example(case.recipe.trace))
    for handle in handles:
        handle.remove()
    assert len(blocks) == 2 and len(trace) == 4 and torch.equal(trace[1], trace[2])


def test_heads_of_the_library_are_found(build: Callable[[str, str], Case]) -> None:
    case = build("bert", "classification")
    head = case.family.default_head(case.backbone)
    assert head is not None
    inputs = case.example(case.recipe.trace)
    own = case.backbone(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    assert torch.allclose(case.run(inputs)["features"] @ head[0] + head[1], own, atol=1e-6)
    assert set(case.family.head_parameters(case.backbone)) <= set(dict(case.backbone.named_parameters()))


def test_unet_with_further_conditions_is_refused() -> None:
    from diffusers import UNet2DConditionModel

    family = FAMILIES["unet"]
    common = {"block_out_channels": (16,), "layers_per_block": 1, "cross_attention_dim": 8, "attention_head_dim": 2, "norm_num_groups": 4}
    stages = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    deep = UNet2DConditionModel(**common, **stages, transformer_layers_per_block=2)
    with pytest.raises(UserError, match="several transformer blocks"):
        family.signature(deep, Task("denoising"))


def test_vits_gives_its_own_noise_back(build: Callable[[str, str], Case]) -> None:
    case = build("vits", "synthesis")
    backbone: Any = case.backbone
    backbone.noise_scale, backbone.noise_scale_duration = 0.5, 0.25
    try:
        inputs = case.example(case.recipe.trace)
        first, second = case.run(inputs), case.run(inputs)
        assert torch.equal(first["waveform"], second["waveform"])
        assert (backbone.noise_scale, backbone.noise_scale_duration) == (0.5, 0.25)
    finally:
        backbone.noise_scale = backbone.noise_scale_duration = 0.0


def test_policy_normalises_inside() -> None:
    from polyadapt.families.mlp_policy.network import MlpPolicy

    torch.manual_seed(0)
    policy = MlpPolicy(3, 2, width=8, blocks=1)
    observations, actions = torch.randn(50, 3) * 4 + 7, torch.randn(50, 2) * 2 - 3
    observations[:, 1] = 5.0  # a constant entry must not divide by zero
    raw = policy((observations - torch.tensor([7.0, 0.0, 7.0])) / 4)
    assert raw.abs().mean() < 2
    policy.fit_statistics(observations, actions)
    plain = MlpPolicy(3, 2, width=8, blocks=1)
    plain.load_state_dict({name: value for name, value in policy.state_dict().items() if "mean" not in name and "deviation" not in name}, strict=False)
    deviation = torch.tensor([float(observations[:, 0].std(unbiased=False)), 1.0, float(observations[:, 2].std(unbiased=False))])
    expected = plain((observations - observations.mean(0)) / deviation) * actions.std(0, unbiased=False) + actions.mean(0)
    assert torch.allclose(policy(observations), expected, atol=1e-5)
