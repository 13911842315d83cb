"""The policy job, and tiny models of other families with data for them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from polyadapt.data.dataset import Dataset, Example
from polyadapt.methods.base import Method, load_method
from polyadapt.model import Model
from polyadapt.sources.processors import array_spec, audio_spec, make_processor, text_spec
from polyadapt.testing.conformance import LABELS, tiny_model

JOB = Path(__file__).with_name("job_policy.py")


@pytest.fixture(scope="session")
def job() -> ModuleType:
    """The module `job_policy`, which is a script too."""
    spec = importlib.util.spec_from_file_location("job_policy", JOB)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny() -> Callable[..., Model]:
    """A tiny model of a family, with a processor that takes arrays, sounds or token ids."""

    def make(family: str, task: str = "classification") -> Model:
        model = tiny_model(import_module(f"polyadapt.families.{family}.card").CARD, task)
        names = [spec.name for spec in model.signature.inputs]
        if "input_ids" in names:
            spec = text_spec(pad_id=0, maximum_tokens=24)
        elif "audio" in names:
            spec = audio_spec()
        else:
            spec = array_spec(model.signature)
            spec["shape"] = [size if isinstance(size, int) else 32 for size in spec["shape"]]
        model.processor = make_processor(spec)
        return model

    return make


@pytest.fixture
def labelled_rows() -> Callable[..., Dataset]:
    """Seeded random examples with three classes, as a model's processor takes them; texts of 4 to 14 tokens."""

    def make(model: Model, size: int, seed: int) -> Dataset:
        generator = np.random.default_rng(seed)
        spec = model.processor.spec
        rows = []
        for row in range(size):
            if spec["kind"] == "text":
                raw = generator.integers(4, 100, size=generator.integers(4, 15))
            elif spec["kind"] == "audio":
                raw = (generator.normal(size=4000).astype(np.float32), 16000)
            else:
                raw = generator.normal(size=spec["shape"]).astype(np.float32)
            rows.append(Example(f"{seed}-{row}", raw, LABELS[row % 3]))
        return Dataset("random", rows, "array", LABELS)

    return make


@pytest.fixture
def method_of() -> Callable[[str], Method]:
    """A method of core by the name of its folder."""
    return lambda name: load_method(import_module(f"polyadapt.methods.{name}.card").CARD)
