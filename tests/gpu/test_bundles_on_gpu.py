"""Bundles on a GPU: onnxruntime's CUDA provider really runs them, and they answer as on a processor."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyadapt.artifact import Artifact
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.model import Model
from polyadapt.testing.conformance import applies, example_of, tiny_model
from polyadapt.testing.exporting import adapted_artifact
from polyadapt_onnx.exporter import export
from polyadapt_runtime import Beams, Bundle

REGISTRY = Host().registry
CASES = [
    ("vit", "classification"),
    ("efficientnet", "classification"),
    ("ast", "classification"),
    ("whisper", "ctc"),
    ("wav2vec2", "features"),
    ("bert", "features"),
    ("voice", "synthesis"),
]
METHODS = ("lora", "bottleneck", "ia3", "prefix", "prompt", "bitfit")
WRITERS = [("llama", "causal-lm"), ("t5", "seq2seq-lm"), ("whisper", "transcription")]
TOLERANCE = 2e-5  # float32, other orders of summation; of the largest value

Make = Callable[[str, str, str], Path]


def offers_cuda() -> bool:
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


pytestmark = pytest.mark.skipif(not offers_cuda(), reason="this onnxruntime is built without CUDA; take the gpu extra: make test-gpu")


@cache
def model_of(family: str, task: str) -> Model:
    return tiny_model(REGISTRY.families.get(family).card, task)


@cache
def artifacts_of(family: str, task: str) -> dict[str, Artifact]:
    """One artifact of every method that fits."""
    model = model_of(family, task)
    methods = [load_method(REGISTRY.methods.get(name).card) for name in METHODS]
    return {method.card.id: adapted_artifact(method, model) for method in methods if not applies(method, model)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A bundle by family, task and form, written once."""
    folder = tmp_path_factory.mktemp("gpu")

    @cache
    def make(family: str, task: str, form: str) -> Path:
        model, artifacts = model_of(family, task), artifacts_of(family, task)
        if form == "merged":
            artifacts = {"lora": artifacts["lora"]}
        if form == "bank":
            artifacts = {name: artifacts[name] for name in ("lora", "ia3")}
        options = {"variants": ("float16",)} if (family, form) == ("vit", "slots") else {}
        return export(model, artifacts, folder / f"{family}-{task}-{form}.bundle", form, options).directory

    return make


def feeds_of(family: str, task: str, seed: int = 3) -> dict[str, np.ndarray]:
    model = model_of(family, task)
    sizes = dict(model.family.card.export[task].check[0]) | {"batch": 3}
    return {name: value.numpy() for name, value in example_of(model, seed, sizes).items()}


def assert_close(found: dict[str, Any], expected: dict[str, Any], tolerance: float = TOLERANCE) -> None:
    for name, value in expected.items():
        there = found[name]
        assert there.shape == value.shape
        assert np.abs(there.astype(np.float64) - value).max() <= tolerance * max(1.0, float(np.abs(value).max())), name


@pytest.mark.parametrize(("family", "task"), CASES)
def test_a_bundle_answers_as_on_a_processor_and_swaps_bit_for_bit(made: Make, family: str, task: str) -> None:
    folder = made(family, task, "slots")
    there, here = Bundle(folder, device="cuda"), Bundle(folder, device="cpu")
    assert there.info()["provider"] == "CUDAExecutionProvider" and there.selftest().ok
    feeds = feeds_of(family, task)
    first = {}
    for name in (None, *there.artifacts()):
        first[name] = there.run(feeds, name)
        assert_close(first[name], here.run(feeds, name))
    for name in (*there.artifacts(), None, *reversed(there.artifacts())):
        again = there.run(feeds, name)
        assert all(np.array_equal(value, first[name][key]) for key, value in again.items()), name


@pytest.mark.parametrize("form", ["merged", "bank"])
def test_other_forms_answer_as_on_a_processor(made: Make, form: str) -> None:
    folder = made("vit", "classification", form)
    there, here = Bundle(folder, device="cuda"), Bundle(folder, device="cpu")
    choice: Any = ["lora", None, "ia3"] if form == "bank" else None
    feeds = feeds_of("vit", "classification")
    assert there.selftest().ok
    assert_close(there.run(feeds, choice), here.run(feeds, choice))


def test_half_precision_keeps_its_own_measure(made: Make) -> None:
    folder = made("vit", "classification", "slots")
    half = Bundle(folder, device="cuda", variant="float16")
    assert half.info()["provider"] == "CUDAExecutionProvider" and half.selftest().ok
    feeds = feeds_of("vit", "classification")
    exact = Bundle(folder, device="cuda").run(feeds, "lora")
    found = half.run(feeds, "lora")
    assert_close(found, exact, 2e-2)
    assert any(not np.array_equal(value, exact[name]) for name, value in found.items())


@pytest.mark.parametrize(("family", "task"), WRITERS)
@pytest.mark.parametrize("beams", [1, 3])
def test_a_bundle_writes_the_same_text_with_its_caches_on_the_device(made: Make, family: str, task: str, beams: int) -> None:
    folder = made(family, task, "slots")
    generator = np.random.default_rng(5)
    prompt: Any = {
        "llama": generator.integers(6, 128, 5).tolist(),
        "t5": {"input_ids": generator.integers(6, 128, (1, 7)), "attention_mask": np.ones((1, 7), np.int64)},
        "whisper": {"mel": generator.standard_normal((1, 16, 60)).astype(np.float32)},
    }[family]
    options: dict[str, Any] = {"beams": Beams(beams)} if beams > 1 else {}
    there, here = Bundle(folder, device="cuda"), Bundle(folder, device="cpu")
    for artifact in (None, "lora", "prefix"):
        found, expected = ([token.id for token in bundle.stream(prompt, 12, artifact, **options)] for bundle in (there, here))
        assert found == expected, artifact


def test_asking_for_cuda_is_quiet_and_asking_for_a_processor_is_kept(made: Make) -> None:
    folder = made("vit", "classification", "slots")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Bundle(folder).info()["provider"] == "CUDAExecutionProvider"
        assert Bundle(folder, device="cpu").info()["provider"] == "CPUExecutionProvider"


def test_torch_and_onnxruntime_share_the_device(made: Make) -> None:
    """An application that runs both in one process."""
    folder = made("vit", "classification", "slots")
    feeds = feeds_of("vit", "classification")
    before = Bundle(folder, device="cuda").run(feeds, "lora")
    torch.ones(1000, 1000, device="cuda").square().sum().item()
    assert all(np.array_equal(value, before[name]) for name, value in Bundle(folder, device="cuda").run(feeds, "lora").items())
