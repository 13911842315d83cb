"""Training on a GPU: it learns what a processor learns, resumes, and leaves the model where and as it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyadapt.artifact import Artifact, detach
from polyadapt.data.dataset import Dataset, Example
from polyadapt.evaluation.predict import predict
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.model import Model
from polyadapt.sources.processors import array_spec, make_processor, text_spec
from polyadapt.testing.conformance import LABELS, state_of, tiny_model
from polyadapt.training import TrainingData, TrainSettings, fit
from polyadapt.training.events import Emit, ignore
from polyadapt.training.interrupt import TrainingInterrupted
from polyadapt.training.processes import moved

REGISTRY = Host().registry
# The paths of the loop: a plain step, features computed once, a cached prefix of blocks, a normalisation that trains, convolutions.
CASES = [("vit", "lora", "off"), ("vit", "linear-probe", "auto"), ("vit", "lora", "cache"), ("bert", "bitfit", "off"), ("efficientnet", "full", "off")]


def model_of(family: str) -> Model:
    """A tiny classifier that takes arrays."""
    model = tiny_model(REGISTRY.families.get(family).card, "classification")
    if family == "bert":
        model.processor = make_processor(text_spec(pad_id=0, maximum_tokens=24))
        return model
    spec = array_spec(model.signature)
    spec["shape"] = [size if isinstance(size, int) else 32 for size in spec["shape"]]
    model.processor = make_processor(spec)
    return model


def rows(model: Model, size: int, seed: int) -> Dataset:
    """Three classes that differ in their mean, or in the tokens they hold."""
    generator = np.random.default_rng(seed)
    made = []
    for row in range(size):
        target = row % 3
        if model.processor.spec["kind"] == "text":
            raw: Any = generator.integers(4 + 30 * target, 34 + 30 * target, size=generator.integers(4, 15))
        else:
            raw = (generator.normal(size=model.processor.spec["shape"]) + target).astype(np.float32)
        made.append(Example(f"{seed}-{row}", raw, LABELS[target]))
    return Dataset("classes", made, "array", LABELS)


def trained(family: str, method: str, directory: Path | None = None, resume: bool = False, listener: Emit = ignore, **settings: Any) -> tuple[Artifact, Model]:
    """An artifact of a few epochs, and the model it was made on."""
    model, chosen = model_of(family), load_method(REGISTRY.methods.get(method).card)
    options = chosen.card.options(**({"sites": ("block.1.*",)} if settings.get("frozen_prefix") == "cache" else {}))
    data = TrainingData(rows(model, 24, 1), rows(model, 12, 2))
    train = TrainSettings(epochs=3, batch_size=8, learning_rate=1e-2, **settings)
    return fit(model, chosen, options, data, train, listener, directory=directory, resume=resume), model


def validation_loss(artifact: Artifact) -> float:
    return float(artifact.provenance["metrics"]["validation"]["loss"])


@pytest.mark.parametrize(("family", "method", "prefix"), CASES)
def test_a_gpu_learns_what_a_processor_learns(family: str, method: str, prefix: str) -> None:
    """Losses, not weights: Adam divides by gradients that are almost 0, so single weights may part where the loss does not."""
    there, model = trained(family, method, device="cuda", frozen_prefix=prefix)
    here, _ = trained(family, method, device="cpu", frozen_prefix=prefix)
    assert validation_loss(there) == pytest.approx(validation_loss(here), rel=2e-3)
    assert all(value.device.type == "cpu" for value in there.slots.values())
    assert model.device.type == "cpu" and all(torch.equal(value, state_of(model_of(family))[name]) for name, value in state_of(model).items())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_nearly_the_same(precision: str) -> None:
    full, _ = trained("vit", "lora", device="cuda")
    half, _ = trained("vit", "lora", device="cuda", precision=precision)
    assert validation_loss(half) == pytest.approx(validation_loss(full), abs=0.05) and validation_loss(half) != validation_loss(full)
    assert all(value.dtype == torch.float32 for value in half.slots.values())


def test_a_stopped_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Its random state is that of the GPU, too."""

    def stop(event: Mapping[str, Any]) -> None:
        if event["kind"] == "epoch" and event["epoch"] == 1:
            raise KeyboardInterrupt

    whole, _ = trained("vit", "lora", tmp_path / "whole", device="cuda")
    with pytest.raises(TrainingInterrupted):
        trained("vit", "lora", tmp_path / "parts", listener=stop, device="cuda")
    resumed, _ = trained("vit", "lora", tmp_path / "parts", resume=True, device="cuda")
    assert all(torch.equal(value, resumed.slots[name]) for name, value in whole.slots.items())


def test_an_artifact_is_attached_and_detached_where_the_model_is() -> None:
    artifact, model = trained("vit", "lora", device="cuda")
    data = rows(model, 12, 3)
    with moved(model.module, torch.device("cuda")):
        before = state_of(model)
        artifact.attach(model, "there")
        found = predict(model, data)
        detach(model, "there")
        assert all(torch.equal(value, before[name]) for name, value in state_of(model).items())
    artifact.attach(model, "here")
    expected = predict(model, data)
    assert [row.answer for row in found] == [row.answer for row in expected]
    assert all(one.scores == pytest.approx(other.scores, abs=1e-5) for one, other in zip(found, expected, strict=True))
