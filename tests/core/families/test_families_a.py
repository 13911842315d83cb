"""Conformance of the vision and speech families: sites, ports, shapes, heads, declared nulls."""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from polyadapt.errors import UserError
from polyadapt.families.base import Family
from polyadapt.families.shared import enliven
from polyadapt.signature import Task
from polyadapt.sites import OpPort, Ports, matches, resolve, stack

FOLDERS = ("vit", "efficientnet", "resnet", "ast", "wav2vec2", "wav2vec2_torchaudio", "whisper", "clip")

# (family, task) -> sites of each sort: ops, spans, attention, streams. A transformer block has 8 ops
# (q, k, v, o, two norms, up, down), 2 spans and 1 attention; two blocks give 2 block streams.
COUNTS = {
    # 2 blocks + embed + norm
    ("vit", "classification"): (2 * 8 + 2, 4, 2, 2),
    ("vit", "features"): (2 * 8 + 2, 4, 2, 2),
    # embed, neck and their norms; plain 1+1; separable 2+2 and 2 of squeeze-excitation; two inverted 3+3 and 2; edge 2+2
    ("efficientnet", "classification"): (4 + 2 + 6 + 2 * 8 + 4, 0, 0, 0),
    ("efficientnet", "features"): (4 + 2 + 6 + 2 * 8 + 4, 0, 0, 0),
    # embed and its norm; four blocks that change size 3+3; one that does not 2+2
    ("resnet", "classification"): (2 + 4 * 6 + 4, 0, 0, 0),
    ("resnet", "features"): (2 + 4 * 6 + 4, 0, 0, 0),
    # 2 blocks + embed + norm, and the norm of the library's class head
    ("ast", "classification"): (2 * 8 + 3, 4, 2, 2),
    ("ast", "features"): (2 * 8 + 2, 4, 2, 2),
    # 2 blocks + 3 convolutions + 1 group norm + embed, its norm, pos, norm (+ the scores of the vocabulary)
    ("wav2vec2", "ctc"): (2 * 8 + 8 + 1, 4, 2, 2),
    ("wav2vec2", "classification"): (2 * 8 + 8, 4, 2, 2),
    ("wav2vec2", "features"): (2 * 8 + 8, 4, 2, 2),
    ("wav2vec2_torchaudio", "ctc"): (2 * 8 + 8 + 1, 4, 2, 2),
    ("wav2vec2_torchaudio", "classification"): (2 * 8 + 8, 4, 2, 2),
    ("wav2vec2_torchaudio", "features"): (2 * 8 + 8, 4, 2, 2),
    # encoder: 2 blocks + 2 convolutions + pos + norm; decoder: 2 blocks of 8 + 4 cross + 1 norm, embed, norm; token scores
    ("whisper", "transcription"): (2 * 8 + 4 + 2 * 13 + 2 + 1, 2 * 2 + 2 * 3, 2 + 4, 3),
    ("whisper", "ctc"): (2 * 8 + 4, 4, 2, 2),
    ("whisper", "classification"): (2 * 8 + 4, 4, 2, 2),
    ("whisper", "features"): (2 * 8 + 4, 4, 2, 2),
    # image: 2 blocks + embed, its norm, pos, norm, head; text: 2 blocks + embed, pos, norm, head
    ("clip", "image-text"): (2 * 8 + 5 + 2 * 8 + 4, 8, 4, 4),
}
CASES = [pytest.param(*case, id="-".join(case)) for case in COUNTS]
WITH_ATTENTION = [pytest.param(*case, id="-".join(case)) for case, counts in COUNTS.items() if counts[2]]


@functools.cache
def family(folder: str) -> Family:
    card = importlib.import_module(f"polyadapt.families.{folder}.card").CARD
    module, _, name = card.implementation.partition(":")
    made: Family = getattr(importlib.import_module(module), name)(card)
    return made


@functools.cache
def built(folder: str, task: str) -> tuple[Family, Task, Any, Ports]:
    made, asked = family(folder), Task(task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = made.tiny(asked)
    return made, asked, backbone, resolve(made.card, backbone, task)


def seeded(number: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def run(made: Family, task: Task, backbone: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return made.forward(backbone, task, inputs)


def example(made: Family, task: Task, backbone: nn.Module, number: int = 1) -> dict[str, torch.Tensor]:
    return made.example(backbone, task, made.card.export[task.kind].trace, seeded(number))


def with_shift(made: Family, task: Task, backbone: nn.Module, port: OpPort, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs with a constant vector of deviation 0.5 added to h."""
    shift = torch.randn(port.out_features, generator=seeded(7))

    def hook(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        start, stop = port.rows or (0, port.out_features)
        dim = port.channel_dim % output.dim()
        vector = torch.zeros(output.shape[dim]).index_copy(0, torch.arange(start, stop), shift * 0.5)
        return output + vector.reshape(-1, *([1] * (output.dim() - 1 - dim)))

    handle = port.hooked.register_forward_hook(hook)
    try:
        return run(made, task, backbone, inputs)
    finally:
        handle.remove()


def distance(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> float:
    """Largest difference of any output relative to its largest value."""
    return max(float((left[name] - right[name]).abs().max() / right[name].abs().max()) for name in right)


def test_cards_import_nothing_heavy() -> None:
    code = "import sys\n" + "".join(f"import polyadapt.families.{folder}.card\n" for folder in FOLDERS)
    code += "print(sorted({'torch', 'numpy', 'timm', 'transformers', 'torchaudio'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("folder", FOLDERS)
def test_card_and_counts_name_the_same_tasks(folder: str) -> None:
    card = family(folder).card
    assert set(card.tasks) == {task for name, task in COUNTS if name == folder} == set(card.export)
    for recipe in card.export.values():
        assert min(recipe.trace.values()) >= 2
        assert recipe.check and all(sizes[symbol] != recipe.trace[symbol] for sizes in recipe.check for symbol in recipe.trace)
        assert recipe.tolerance <= 1e-5 or recipe.cause


@pytest.mark.parametrize(("folder", "task"), CASES)
def test_shapes_and_types_are_the_declared_ones(folder: str, task: str) -> None:
    made, asked, backbone, _ = built(folder, task)
    assert sum(parameter.numel() for parameter in backbone.parameters()) < 1_000_000
    signature, recipe = made.signature(backbone, asked), made.card.export[task]
    for sizes in (recipe.trace, recipe.check[0]):
        assert set(signature.symbols) == set(sizes) - {"past"}  # which is the decoder graph's
        inputs = made.example(backbone, asked, sizes, seeded())
        outputs = run(made, asked, backbone, inputs)
        named = dict(sizes)
        for tensors, specs in ((inputs, signature.inputs), (outputs, signature.outputs)):
            assert list(tensors) == [spec.name for spec in specs]
            for spec in specs:
                found = tensors[spec.name]
                assert str(found.dtype) == f"torch.{spec.dtype}"
                assert tuple(found.shape) == tuple(named.setdefault(size, got) if isinstance(size, str) else size for size, got in zip(spec.shape, found.shape, strict=True))
                assert not found.is_floating_point() or (found.isfinite().all() and found.std() > 0.05)
        if "features" in outputs:
            assert outputs["features"].shape[-1] == made.feature_size(backbone)


@pytest.mark.parametrize(("folder", "task"), CASES)
def test_number_of_sites(folder: str, task: str) -> None:
    ports = built(folder, task)[3]
    assert (len(ports.ops), len(ports.spans), len(ports.attention), len(ports.streams)) == COUNTS[folder, task]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("folder", "task"), CASES)
def test_every_op_runs_once(folder: str, task: str, training: bool) -> None:
    made, asked, backbone, ports = built(folder, task)
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    calls = dict.fromkeys(ports.ops, 0)

    def counter(site: str) -> Any:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            calls[site] += 1
            features = output.shape[ports.ops[site].channel_dim]
            start, stop = ports.ops[site].rows or (0, ports.ops[site].out_features)
            assert start < stop <= features
            assert ports.ops[site].rows is not None or stop == features

        return hook

    handles = [port.hooked.register_forward_hook(counter(site)) for site, port in ports.ops.items()]
    backbone.train(training)
    try:
        run(made, asked, backbone, example(made, asked, backbone))
    finally:
        backbone.eval()
        backbone.load_state_dict(state)
        for handle in handles:
            handle.remove()
    assert {site for site, number in calls.items() if number != 1} == set()


@pytest.mark.parametrize(("folder", "task"), CASES)
def test_evaluation_repeats_itself(folder: str, task: str) -> None:
    made, asked, backbone, _ = built(folder, task)
    inputs = example(made, asked, backbone)
    first, second = run(made, asked, backbone, inputs), run(made, asked, backbone, inputs)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("folder", "task"), CASES)
def test_every_shift_is_felt_or_declared_null(folder: str, task: str) -> None:
    made, asked, backbone, ports = built(folder, task)
    inputs = example(made, asked, backbone)
    reference = run(made, asked, backbone, inputs)
    nulls = made.no_effect(backbone)
    wrong = {}
    for site, port in ports.ops.items():
        effect = distance(with_shift(made, asked, backbone, port, inputs), reference)
        is_null = any(matches(f"{site}:shift", pattern) for pattern in nulls)
        if (effect > 1e-5) if is_null else (effect < 1e-3):
            wrong[site] = (effect, is_null)
    assert wrong == {}


@pytest.mark.parametrize("folder", FOLDERS)
def test_declared_nulls_name_sites_that_exist(folder: str) -> None:
    task = next(task for name, task in COUNTS if name == folder)
    ports = built(folder, task)[3]
    for pattern in family(folder).card.no_effect:
        assert any(matches(f"{site}:shift", pattern) for site in ports.ops), pattern


def test_fused_projections_are_covered_by_their_slices() -> None:
    ports = built("vit", "features")[3]
    for block in (0, 1):
        slices = [ports.ops[f"block.{block}.attn.{letter}"] for letter in "qkv"]
        assert [port.rows for port in slices] == [(0, 32), (32, 64), (64, 96)]
        assert len({id(port.module) for port in slices}) == 1
        fused: Any = slices[0].module
        assert fused.weight.shape[0] == 96
    for folder, task in COUNTS:
        modules: dict[int, list[OpPort]] = {}
        for port in built(folder, task)[3].ops.values():
            modules.setdefault(id(port.module), []).append(port)
        assert all(len(ports) == 1 or all(port.rows for port in ports) for ports in modules.values()), "one module, several sites"


class Recorder(TorchFunctionMode):
    """Attention calls with the site whose module is running."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[str] = []
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            self.calls.append((self.running[-1] if self.running else "outside", given))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("folder", "task"), WITH_ATTENTION)
def test_attention_is_called_once_in_each_module(folder: str, task: str) -> None:
    made, asked, backbone, ports = built(folder, task)
    recorder, handles = Recorder(), []
    for site, port in ports.attention.items():
        handles.append(port.module.register_forward_pre_hook(lambda module, args, site=site: recorder.running.append(site)))
        handles.append(port.module.register_forward_hook(lambda module, args, output: recorder.running.pop() and None))
    try:
        with recorder:
            run(made, asked, backbone, example(made, asked, backbone))
    finally:
        for handle in handles:
            handle.remove()
    assert sorted(site for site, _ in recorder.calls) == sorted(ports.attention)
    for site, call in recorder.calls:
        port = ports.attention[site]
        assert call["key"].shape[1] == call["value"].shape[1] == port.heads
        assert call["query"].shape[3] == call["key"].shape[3] == call["value"].shape[3] == port.head_size
        assert (call["query"].shape[2] != call["key"].shape[2]) == port.cross
        mask = call.get("attn_mask")
        assert port.causal == (bool(call.get("is_causal")) or (mask is not None and not bool(mask[0, 0, 0, -1])))


def first_inputs(modules: tuple[nn.Module, ...], call: Any) -> list[torch.Tensor]:
    """The first input of each module during a call."""
    seen: dict[int, torch.Tensor] = {}

    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen[id(module)] = args[0] if args else kwargs["hidden_states"]

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return [seen[id(module)] for module in modules]


@pytest.mark.parametrize(("folder", "task"), WITH_ATTENTION)
def test_streams_enter_blocks_behind_their_prefix(folder: str, task: str) -> None:
    made, asked, backbone, ports = built(folder, task)
    one, other = example(made, asked, backbone, 1), example(made, asked, backbone, 2)
    for port in ports.streams.values():
        if port.mode == "embeds":
            continue
        left = first_inputs(port.blocks, lambda: run(made, asked, backbone, one))
        right = first_inputs(port.blocks, lambda: run(made, asked, backbone, other))
        assert all(hidden.shape[2] == port.width for hidden in left)
        # Prefix tokens do not depend on the input, the first real token does: the offset is exactly their number.
        assert torch.equal(left[0][:, : port.offset], right[0][:, : port.offset])
        assert not torch.equal(left[0][:, port.offset], right[0][:, port.offset])


def test_decoder_stream_of_whisper_takes_embeddings() -> None:
    made, asked, backbone, ports = built("whisper", "transcription")
    port = ports.streams["decoder.tokens"]
    embed: Any = port.embed
    assert port.mode == "embeds" and port.width == embed.weight.shape[1]
    inputs = example(made, asked, backbone)
    with torch.no_grad():
        hidden = torch.randn(2, 5, 32, generator=seeded())
        by_ids = port.tower(input_ids=inputs["decoder_input_ids"], encoder_hidden_states=hidden).last_hidden_state
        by_embeds = port.tower(inputs_embeds=embed(inputs["decoder_input_ids"]), encoder_hidden_states=hidden).last_hidden_state
    assert torch.equal(by_ids, by_embeds)


@pytest.mark.parametrize(("folder", "task"), CASES)
def test_blocks_follow_each_other(folder: str, task: str) -> None:
    made, asked, backbone, _ = built(folder, task)
    modules = dict(backbone.named_modules())
    paths, stem = stack(made.blocks(backbone), backbone), stack(made.stem(backbone), backbone)
    assert len(paths) >= 2 and stem
    order: list[str] = []
    outputs: dict[str, torch.Tensor] = {}

    def hook(path: str) -> Any:
        def after(module: nn.Module, args: Any, output: Any) -> None:
            order.append(path)
            outputs[path] = output[0] if isinstance(output, tuple) else output

        return after

    handles = [modules[path].register_forward_hook(hook(path)) for path in (*stem, *paths)]
    try:
        inputs = first_inputs(tuple(modules[path] for path in paths), lambda: run(made, asked, backbone, example(made, asked, backbone)))
    finally:
        for handle in handles:
            handle.remove()
    assert order[: len(order) - len(paths)] and set(order[: -len(paths)]) == set(stem)
    assert order[-len(paths) :] == list(paths)
    assert all(outputs[before] is after for before, after in zip(paths[:-1], inputs[1:], strict=True))


@pytest.mark.parametrize(("folder", "task"), CASES)
def test_config_is_plain_and_names_no_library(folder: str, task: str) -> None:
    made, _, backbone, _ = built(folder, task)
    text = json.dumps(made.config(backbone)).lower()
    assert not [name for name in ("timm", "torch", "transformers", "huggingface") if name in text]
    assert json.loads(text)


def library_scores(folder: str, backbone: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found = backbone(next(iter(inputs.values())))
    scores: torch.Tensor = found.logits if folder == "ast" else found
    return scores


@pytest.mark.parametrize("folder", ["vit", "efficientnet", "resnet", "ast"])
def test_default_head_gives_the_librarys_scores(folder: str) -> None:
    made, asked, backbone, _ = built(folder, "classification")
    check_head(made, asked, backbone, folder)
    assert made.default_head(built(folder, "features")[2]) is None
    assert made.head_parameters(built(folder, "features")[2]) == ()


def check_head(made: Family, asked: Task, backbone: Any, folder: str, heads: int = 1) -> None:
    inputs = example(made, asked, backbone)
    head = made.default_head(backbone)
    assert head is not None
    weight, bias = head
    assert weight.shape == (made.feature_size(backbone), 5) and bias.shape == (5,)
    scores = run(made, asked, backbone, inputs)["features"] @ weight + bias
    torch.testing.assert_close(scores, library_scores(folder, backbone, inputs), rtol=1e-5, atol=1e-5)
    names = dict(backbone.named_parameters())
    assert sum(names[name].numel() for name in made.head_parameters(backbone)) == weight.numel() + heads * bias.numel()


def test_labels_of_the_task_size_the_tiny_head() -> None:
    for folder in ("vit", "efficientnet", "resnet", "ast"):
        backbone = family(folder).tiny(Task("classification", ("a", "b", "c")))
        head = family(folder).default_head(backbone)
        assert head is not None and head[0].shape[1] == 3


def test_distilled_vit_has_two_prefix_tokens_and_two_heads() -> None:
    from timm.models.deit import VisionTransformerDistilled

    made, asked = family("vit"), Task("classification")
    backbone = enliven(VisionTransformerDistilled(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5))
    assert resolve(made.card, backbone).streams["tokens"].offset == 2
    assert resolve(made.card, built("vit", "features")[2]).streams["tokens"].offset == 1
    assert made.feature_size(backbone) == 64
    assert made.config(backbone)["is_distilled"]
    check_head(made, asked, backbone, "vit", heads=2)


def test_vit_with_normed_keys_feels_a_shift_of_keys() -> None:
    from timm.models.vision_transformer import VisionTransformer

    made, asked = family("vit"), Task("features")
    backbone = enliven(VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, qk_norm=True, norm_layer=nn.LayerNorm))
    assert made.no_effect(backbone) == {}
    inputs = example(made, asked, backbone)
    shifted = with_shift(made, asked, backbone, resolve(made.card, backbone).ops["block.0.attn.k"], inputs)
    assert distance(shifted, run(made, asked, backbone, inputs)) > 1e-3


def test_norms_of_efficientnet_are_edited_before_their_activation() -> None:
    made, asked, backbone, ports = built("efficientnet", "features")
    port = ports.ops["stage.1.block.0.norm1"]
    assert port.hooked is not port.module and port.is_channels_first
    inputs = example(made, asked, backbone)
    by_hook = with_shift(made, asked, backbone, port, inputs)
    norm: Any = port.module
    before = norm.bias.detach().clone()
    with torch.no_grad():
        norm.bias += torch.randn(port.out_features, generator=seeded(7)) * 0.5
    by_bias = run(made, asked, backbone, inputs)
    with torch.no_grad():
        norm.bias.copy_(before)
    assert distance(by_hook, by_bias) < 1e-6


def test_resnet_with_bottlenecks_and_a_deep_stem() -> None:
    from timm.models.resnet import Bottleneck, ResNet

    made, asked = family("resnet"), Task("features")
    backbone: Any = ResNet(Bottleneck, (1, 1, 1, 1), channels=(4, 4, 4, 4), num_classes=0, stem_type="deep", stem_width=4)
    backbone.pretrained_cfg = {"input_size": (3, 64, 64)}
    ports = resolve(made.card, enliven(backbone))
    # embed and the norm behind the stem; each block 3+3, and 1+1 beside it where the size changes (all but none: 8 -> 16, then strides)
    assert len(ports.ops) == 2 + 4 * 8
    assert ports.ops["embed"].path == "conv1.0"
    assert run(made, asked, backbone, example(made, asked, backbone))["features"].shape == (2, 16)


def test_ast_of_transformers_4_is_found() -> None:
    def linear() -> nn.Module:
        return nn.Linear(4, 4)

    layer: Any = nn.Module()
    layer.attention = nn.Module()
    layer.attention.attention = nn.Module()
    layer.attention.attention.query, layer.attention.attention.key, layer.attention.attention.value = linear(), linear(), linear()
    layer.attention.attention.num_attention_heads, layer.attention.attention.attention_head_size = 2, 2
    layer.attention.output, layer.intermediate, layer.output = nn.Module(), nn.Module(), nn.Module()
    layer.attention.output.dense, layer.intermediate.dense, layer.output.dense = linear(), linear(), linear()
    layer.layernorm_before, layer.layernorm_after = nn.LayerNorm(4), nn.LayerNorm(4)
    model: Any = nn.Module()
    model.encoder, model.config = nn.Module(), type("Config", (), {"hidden_size": 4})
    model.encoder.layer = nn.ModuleList([layer])
    ports = resolve(family("ast").card, model)
    assert len(ports.ops) == 8 and len(ports.spans) == 2
    assert ports.attention["block.0.attn"].head_size == 2
    assert ports.streams["tokens"].offset == 2


def test_whisper_encoder_equals_the_librarys_at_full_length() -> None:
    from polyadapt.families.whisper.model import encode

    backbone = built("whisper", "features")[2]
    mel = torch.randn(2, 16, 128, generator=seeded())
    with torch.no_grad():
        assert torch.equal(encode(backbone, mel), backbone(mel).last_hidden_state)
        assert encode(backbone, mel[:, :, :31]).shape == (2, 16, 32)
    with pytest.raises(UserError, match="at most 128 spectrogram frames, got 129"):
        encode(backbone, torch.zeros(1, 16, 129))


def test_whisper_transcription_equals_the_librarys() -> None:
    made, asked, backbone, ports = built("whisper", "transcription")
    inputs = made.example(backbone, asked, {"batch": 2, "frames": 128, "tokens": 5}, seeded())
    with torch.no_grad():
        expected = backbone(input_features=inputs["mel"], decoder_input_ids=inputs["decoder_input_ids"]).logits
    torch.testing.assert_close(run(made, asked, backbone, inputs)["logits"], expected, rtol=1e-5, atol=1e-5)
    assert ports.ops["head"].tied and ports.ops["decoder.embed"].tied
    with pytest.raises(UserError, match="load WhisperForConditionalGeneration"):
        run(made, asked, backbone.model, inputs)


def test_tasks_leave_out_what_they_never_run() -> None:
    whisper = built("whisper", "transcription")[2]
    ports = resolve(family("whisper").card, whisper, "features")
    assert len(ports.ops) == COUNTS["whisper", "features"][0]
    assert all(site.startswith("encoder.") for site in (*ports.ops, *ports.spans, *ports.attention, *ports.streams))
    speech = built("wav2vec2", "ctc")[2]
    assert "head" in resolve(family("wav2vec2").card, speech).ops
    assert "head" not in resolve(family("wav2vec2").card, speech, "features").ops


@pytest.mark.parametrize("folder", ["wav2vec2", "wav2vec2_torchaudio"])
def test_without_a_vocabulary_ctc_gives_the_frames(folder: str) -> None:
    """Frames whose mean is what the other tasks get, as many as `output_lengths` says."""
    made, asked, backbone, _ = built(folder, "features")
    inputs = example(made, asked, backbone)
    frames = run(made, Task("ctc"), backbone, inputs)["features"]
    lengths = made.output_lengths(backbone, torch.tensor([inputs["audio"].shape[1]]))
    assert made.signature(backbone, Task("ctc")).outputs[0].name == "features" and frames.shape[1] == int(lengths[0])
    assert torch.allclose(frames.mean(1), run(made, Task("features"), backbone, inputs)["features"], atol=1e-6)


def stable_wav2vec2(folder: str) -> Any:
    """Norms over channels and before the layers, as in the large models."""
    if folder == "wav2vec2":
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        small = built(folder, "features")[2].config.to_dict()
        return enliven(Wav2Vec2Model(Wav2Vec2Config(**small | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True})))
    from torchaudio.models import wav2vec2_model

    shapes = [(16, 10, 5), (16, 8, 8), (16, 8, 8)]
    return enliven(wav2vec2_model("layer_norm", shapes, True, 32, 0.0, 16, 4, 2, 2, 0.0, 64, 0.0, 0.0, True, 0.0, None))


@pytest.mark.parametrize("folder", ["wav2vec2", "wav2vec2_torchaudio"])
def test_wav2vec2_with_norms_first(folder: str) -> None:
    made, asked, backbone = family(folder), Task("features"), stable_wav2vec2(folder)
    ports = resolve(made.card, backbone)
    assert len(ports.ops) == 2 * 8 + 10  # 3 convolutions now have a norm each
    assert made.config(backbone)["norms_first"] and not made.config(built(folder, "features")[2])["norms_first"]
    assert not any(path.endswith(("encoder.layer_norm", "transformer.layer_norm")) for path in made.stem(backbone))
    audio = torch.randn(2, 4000, generator=seeded())
    reference = run(made, asked, backbone, {"audio": audio})
    assert set(made.no_effect(backbone)) == {"*.attn.k:shift"}
    for site, port in ports.ops.items():
        effect = distance(with_shift(made, asked, backbone, port, {"audio": audio}), reference)
        assert (effect < 1e-5) == site.endswith("attn.k"), (site, effect)


@pytest.mark.parametrize("folder", ["wav2vec2", "wav2vec2_torchaudio"])
def test_padding_is_not_heard_when_lengths_are_given(folder: str) -> None:
    made, asked, backbone = family(folder), Task("features"), stable_wav2vec2(folder)
    audio, lengths = torch.randn(2, 4000, generator=seeded()), torch.tensor([4000, 2700])
    audio[1, 2700:] = 0.0
    padded = run(made, asked, backbone, {"audio": audio, "audio_lengths": lengths})["features"]
    alone = run(made, asked, backbone, {"audio": audio[1:, :2700]})["features"]
    torch.testing.assert_close(padded[1:], alone, rtol=1e-5, atol=1e-5)
    unmasked = run(made, asked, backbone, {"audio": audio})["features"]
    assert not torch.allclose(unmasked[1:], alone, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("folder", ["wav2vec2", "wav2vec2_torchaudio", "whisper"])
def test_output_lengths_are_the_frames_that_come_out(folder: str) -> None:
    task = "features" if folder == "whisper" else "ctc"
    made, asked, backbone, _ = built(folder, task)
    for size in (33, 34, 100) if folder == "whisper" else (400, 719, 720, 3999, 4000):
        if folder == "whisper":
            from polyadapt.families.whisper.model import encode

            with torch.no_grad():
                frames = encode(backbone, torch.zeros(1, 16, size)).shape[1]
        else:
            frames = run(made, asked, backbone, {"audio": torch.randn(1, size, generator=seeded())})["logits"].shape[1]
        assert made.output_lengths(backbone, torch.tensor([size])).tolist() == [frames]


def test_texts_of_clip_end_within_their_mask() -> None:
    made, asked, backbone, _ = built("clip", "image-text")
    inputs = made.example(backbone, asked, {"batch": 2, "texts": 3, "tokens": 4}, seeded())
    assert inputs["attention_mask"].sum(1).tolist() == [4, 3, 2]
    assert ((inputs["input_ids"] == 39).float() * inputs["attention_mask"]).sum(1).tolist() == [1.0, 1.0, 1.0]
    padded = {**inputs, "input_ids": F.pad(inputs["input_ids"], (0, 3)), "attention_mask": F.pad(inputs["attention_mask"], (0, 3))}
    assert distance(run(made, asked, backbone, padded), run(made, asked, backbone, inputs)) < 1e-5
