"""Key/value caches of the causal families, and every recipe of families B as its card states it."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from polyadapt.families.base import Family
from polyadapt.families.card import ExportRecipe, FamilyCard
from polyadapt.families.explicit_attention import ExplicitAttention, attend
from polyadapt.signature import Task

Past = list[tuple[torch.Tensor, torch.Tensor]]


def family_of(folder: str) -> Family:
    card: FamilyCard = importlib.import_module(f"polyadapt.families.{folder}.card").CARD
    module, _, name = card.implementation.partition(":")
    made: Family = getattr(importlib.import_module(module), name)(card)
    return made


def qwen2() -> nn.Module:
    """Qwen2 beside Llama: biases at q, k and v."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from polyadapt.families.shared import enliven

    config = Qwen2Config(vocab_size=128, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, attn_implementation="sdpa")
    return enliven(Qwen2ForCausalLM(config))


def causal(name: str) -> tuple[Family, nn.Module]:
    torch.manual_seed(0)
    family = family_of("llama" if name == "qwen2" else name)
    backbone = qwen2() if name == "qwen2" else family.tiny(Task("causal-lm"))
    return family, backbone.eval()


def empty_past(family: Family, backbone: nn.Module, batch: int) -> Past:
    blocks, heads, size = family.cache_shape(backbone)
    return [(torch.zeros(batch, heads, 0, size), torch.zeros(batch, heads, 0, size)) for _ in range(blocks)]


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Three texts of 8, 6 and 3 tokens, padded on the left."""
    ids = torch.randint(0, 128, (3, 8), generator=torch.Generator().manual_seed(5))
    mask = (torch.arange(8) >= torch.tensor([[0], [2], [5]])).to(torch.int64)
    return ids, mask


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2"])
def test_full_pass_equals_cached_steps_padded_and_alone(name: str) -> None:
    family, backbone = causal(name)
    ids, mask = texts()
    with torch.no_grad():
        full = family.forward(backbone, Task("causal-lm"), {"input_ids": ids, "attention_mask": mask})["logits"]
        past, steps = empty_past(family, backbone, 3), []
        for start, stop in ((0, 4), (4, 5), (5, 8)):  # prefill, one token, a chunk
            logits, past = family.cached_forward(backbone, {"input_ids": ids[:, start:stop], "attention_mask": mask[:, :stop]}, past)
            steps.append(logits)
        cached = torch.cat(steps, 1)
        for row, length in enumerate((8, 6, 3)):
            text = {"input_ids": ids[row : row + 1, 8 - length :], "attention_mask": torch.ones(1, length, dtype=torch.int64)}
            alone = family.forward(backbone, Task("causal-lm"), text)["logits"]
            scale = float(alone.abs().max())
            assert float((full[row, 8 - length :] - alone[0]).abs().max()) < 2e-6 * scale
            assert float((cached[row, 8 - length :] - alone[0]).abs().max()) < 2e-6 * scale
    assert all(key.shape[2] == value.shape[2] == 8 for key, value in past)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_features_are_those_of_the_last_real_token_on_either_side(name: str) -> None:
    family = family_of(name)
    torch.manual_seed(0)
    task = Task("classification")
    backbone = family.tiny(task).eval()
    ids, left = texts()
    with torch.no_grad():
        features = family.forward(backbone, task, {"input_ids": ids, "attention_mask": left})["features"]
        right = family.forward(backbone, task, {"input_ids": torch.stack([row.roll(int(keep.sum())) for row, keep in zip(ids, left, strict=True)]), "attention_mask": left.flip(1)})
        alone = family.forward(backbone, task, {"input_ids": ids[2:, 5:], "attention_mask": torch.ones(1, 3, dtype=torch.int64)})["features"]
    assert torch.allclose(features[2], alone[0], atol=1e-5) and torch.allclose(features, right["features"], atol=1e-5)


@pytest.mark.parametrize("masked", ["none", "causal", "bool", "float", "grouped"])
def test_explicit_attention_means_what_the_fused_call_means(masked: str) -> None:
    generator = torch.Generator().manual_seed(0)
    heads = 2 if masked == "grouped" else 4
    query = torch.randn(2, 4, 5, 8, generator=generator)
    key, value = (torch.randn(2, heads, 5 if masked == "causal" else 7, 8, generator=generator) for _ in range(2))
    options: dict[str, Any] = {"scale": 0.7}
    if masked == "causal":
        options["is_causal"] = True
    elif masked == "grouped":
        options["enable_gqa"] = True
    elif masked != "none":
        mask = torch.rand(2, 1, 5, 7, generator=generator) > 0.4
        mask[0, 0, 2] = False  # a row without any key
        options["attn_mask"] = mask if masked == "bool" else torch.where(mask, torch.randn(2, 4, 5, 7, generator=generator), -torch.inf)
    expected = F.scaled_dot_product_attention(query, key, value, **options)
    assert torch.allclose(attend(query, key, value, **options), expected, atol=1e-6)
    with ExplicitAttention():
        assert torch.equal(F.scaled_dot_product_attention(query, key, value, **options), attend(query, key, value, **options))


class Positional(nn.Module):
    """A family's forward with positional tensors in and a tuple out, as exporters want it."""

    def __init__(self, family: Family, backbone: nn.Module, task: Task) -> None:
        super().__init__()
        self.family, self.backbone, self.task = family, backbone, task
        self.names = [spec.name for spec in family.signature(backbone, task).inputs]

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.family.forward(self.backbone, self.task, dict(zip(self.names, tensors, strict=True))).values())


class Step(nn.Module):
    """`cached_forward` with everything flat."""

    def __init__(self, family: Family, backbone: nn.Module) -> None:
        super().__init__()
        self.family, self.backbone = family, backbone

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, past: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
        logits, present = self.family.cached_forward(self.backbone, {"input_ids": input_ids, "attention_mask": attention_mask}, past)
        return [logits, *(tensor for pair in present for tensor in pair)]


def step_example(family: Family, backbone: nn.Module, sizes: Mapping[str, int]) -> tuple[torch.Tensor, torch.Tensor, Past]:
    generator = torch.Generator().manual_seed(sum(sizes.values()))
    blocks, heads, size = family.cache_shape(backbone)
    batch, tokens, past = sizes["batch"], sizes["tokens"], sizes["past"]
    mask = torch.ones(batch, past + tokens, dtype=torch.int64)
    mask[-1, : (past + tokens) // 2] = 0 if batch > 1 else 1
    caches = [(torch.randn(batch, heads, past, size, generator=generator), torch.randn(batch, heads, past, size, generator=generator)) for _ in range(blocks)]
    return torch.randint(0, 128, (batch, tokens), generator=generator), mask, caches


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found.astype(np.float64) - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def export(module: nn.Module, args: tuple[Any, ...], shapes: Any, recipe: ExportRecipe, path: Path, names: list[str]) -> Any:
    module.eval()
    attention = ExplicitAttention() if recipe.explicit_attention else contextlib.nullcontext()
    with attention, torch.no_grad():
        if recipe.exporter == "legacy":
            axes = {name: dict(shape) for name, shape in zip(names, shapes, strict=True)}
            torch.onnx.export(module, args, str(path), dynamo=False, opset_version=recipe.opset, input_names=names, dynamic_axes=axes)
        else:
            program = torch.onnx.export(module, args, dynamo=True, opset_version=recipe.opset, dynamic_shapes=shapes, verbose=False)
            assert program is not None
            program.save(str(path))
    return session(path)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_cached_graph_decodes_padded_texts_as_torch_does(name: str, tmp_path: Path) -> None:
    family, backbone = causal(name)
    recipe = family.card.export["causal-lm"]
    batch, tokens, past = Dim("batch"), Dim("tokens"), Dim("past")
    args = step_example(family, backbone, recipe.trace)
    shapes = ({0: batch, 1: tokens}, {0: batch, 1: Dim.DYNAMIC}, [({0: batch, 2: past}, {0: batch, 2: past}) for _ in args[2]])
    running = export(Step(family, backbone), args, shapes, recipe, tmp_path / "step.onnx", [])
    inputs = [item.name for item in running.get_inputs()]
    names = [spec.name for spec in family.cached_signature(backbone, Task("causal-lm")).inputs]
    assert len(inputs) == len(names) == 2 + 2 * len(args[2])

    def step(ids: torch.Tensor, mask: torch.Tensor, caches: list[np.ndarray]) -> list[np.ndarray]:
        found: list[np.ndarray] = running.run(None, dict(zip(inputs, [ids.numpy(), mask.numpy(), *caches], strict=True)))
        return found

    for sizes in recipe.check:
        ids, mask, caches = step_example(family, backbone, sizes)
        with torch.no_grad():
            wanted = Step(family, backbone)(ids, mask, caches)
        real = mask[:, sizes["past"] :].bool().numpy()  # rows of padding hold nothing that is read
        found = step(ids, mask, [tensor.numpy() for pair in caches for tensor in pair])
        assert relative_error(found[0][real], wanted[0].numpy()[real]) <= recipe.tolerance, sizes
        assert all(np.isfinite(item).all() for item in found)
        assert all(relative_error(item, want.numpy()) <= recipe.tolerance for item, want in zip(found[1:3], wanted[1:3], strict=True)), sizes

    ids, mask = texts()
    with torch.no_grad():
        full = family.forward(backbone, Task("causal-lm"), {"input_ids": ids, "attention_mask": mask})["logits"].numpy()
    state, logits = [tensor.numpy() for pair in empty_past(family, backbone, 3) for tensor in pair], []
    for start, stop in ((0, 6), (6, 7), (7, 8)):
        made, *state = step(ids[:, start:stop], mask[:, :stop], state)
        logits.append(made)
    assert relative_error(np.concatenate(logits, 1)[mask.bool().numpy()], full[mask.bool().numpy()]) <= recipe.tolerance


# The default run holds two odd cases of the exporters; most other graphs are exported with their edits there too.
PLAIN = [
    ("vits", "synthesis"),
    ("mlp_policy", "control"),
    *(
        pytest.param(*item, marks=pytest.mark.wide)
        for item in (("t5", "seq2seq-lm"), ("bert", "features"), ("bert", "classification"), ("gpt2", "classification"), ("llama", "classification"), ("unet", "denoising"))
    ),
]


@pytest.mark.parametrize(("folder", "kind"), PLAIN)
def test_recipe_exports_and_agrees_at_other_sizes(folder: str, kind: str, tmp_path: Path) -> None:
    family, task = family_of(folder), Task(kind)
    recipe = family.card.export[kind]
    torch.manual_seed(0)
    backbone = family.tiny(task).eval()
    signature = family.signature(backbone, task)
    module = Positional(family, backbone, task).eval()
    args = tuple(family.example(backbone, task, recipe.trace, torch.Generator().manual_seed(1)).values())
    symbols = {name: Dim(name, max=recipe.maximum.get(name)) for name in signature.symbols}
    named = [{axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)} for spec in signature.inputs]
    shapes: Any = named if recipe.exporter == "legacy" else (tuple({axis: symbols[name] for axis, name in shape.items()} for shape in named),)
    running = export(module, args, shapes, recipe, tmp_path / "model.onnx", module.names)
    for number, sizes in enumerate(recipe.check):
        inputs = family.example(backbone, task, sizes, torch.Generator().manual_seed(number))
        with torch.no_grad():
            wanted = module(*inputs.values())
        found = running.run(None, {item.name: tensor.numpy() for item, tensor in zip(running.get_inputs(), inputs.values(), strict=True)})
        errors = [relative_error(item, want.numpy()) for item, want in zip(found, wanted, strict=True)]
        assert max(errors) <= recipe.tolerance, (sizes, errors)
