"""Tiny random models of every family: the same every time, fed with raw input like real ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyadapt.errors import MissingExtraError, UserError
from polyadapt.model import Model
from polyadapt.sources.catalog import CARDS
from polyadapt.sources.load import open_reference
from polyadapt.sources.processors import tiny_tokenizer

SIZES = {"batch": 2, "tokens": 6, "samples": 4000, "frames": 60, "source": 5, "target": 4, "texts": 2, "height": 16, "width": 16, "past": 0}
TINY = [card.reference for card in CARDS if card.reference.startswith("polyadapt:tiny-")]


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYADAPT_CACHE", str(tmp_path / "cache"))


def run(model: Model, inputs: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        outputs: dict[str, torch.Tensor] = model.module(**(inputs or model.example(SIZES, torch.Generator().manual_seed(0))))
    return outputs


@pytest.mark.parametrize("reference", TINY)
def test_tiny_models_are_the_same_every_time_and_answer(reference: str) -> None:
    state = torch.random.get_rng_state()
    first, again, other = open_reference(reference), open_reference(reference), open_reference(f"{reference}?seed=1")
    assert torch.equal(state, torch.random.get_rng_state()), "loading left the default generator where it was"
    assert first.base_id == again.base_id != other.base_id
    inputs = first.example(SIZES, torch.Generator().manual_seed(0))
    assert list(inputs) == [spec.name for spec in first.signature.inputs]
    outputs = run(first, inputs)
    assert {spec.name for spec in first.signature.outputs} <= set(outputs)
    assert all(torch.isfinite(value).all() for value in outputs.values() if value.is_floating_point())


RAW: dict[str, Any] = {"image": np.full((40, 50, 3), 90, np.uint8), "audio": (np.full(5000, 0.1, np.float32), 16000), "text": "a small text"}


@pytest.mark.parametrize("reference", ["vit", "resnet", "ast", "bert", "llama", "clip", "wav2vec2", "whisper", "vits"])
def test_raw_input_reaches_a_tiny_model(reference: str) -> None:
    model = open_reference(f"polyadapt:tiny-{reference}")
    kind = model.processor.kind
    raw = {key: RAW[key] for key in model.processor.spec["parts"]} if kind == "parts" else RAW[kind]
    batch = model.processor.collate([model.processor(raw)] * 2)
    assert set(batch) <= {spec.name for spec in model.signature.inputs}
    inputs = {name: torch.from_numpy(value) for name, value in batch.items()}
    if "decoder_input_ids" in {spec.name for spec in model.signature.inputs}:
        inputs["decoder_input_ids"] = torch.tensor([[1, 4]] * 2)
    first, second = next(iter(run(model, inputs).values()))
    torch.testing.assert_close(first, second)


def test_tiny_options() -> None:
    model = open_reference("polyadapt:tiny-vit?labels=cat,dog,cow")
    assert model.task.labels == ("cat", "dog", "cow") and run(model)["logits"].shape == (2, 3)
    assert open_reference("polyadapt:tiny-vit?num_classes=4").task.labels == ("class 0", "class 1", "class 2", "class 3")
    assert open_reference("polyadapt:tiny-wav2vec2?task=features").task.kind == "features"
    for wrong, said in [("labels=a,b&num_classes=3", "2 labels were given"), ("task=ctc", "unknown task"), ("labels=a,a", "twice"), ("image_size_px=64", "32 x 32 px only")]:
        with pytest.raises(UserError, match=said):
            open_reference(f"polyadapt:tiny-vit?{wrong}")


def test_the_tiny_tokenizer_goes_there_and_back(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(tiny_tokenizer(tmp_path / "a.json", 128)))
    assert plain.encode("Hi (you)!").ids[0] == 4 + ord("H") - 32
    assert plain.decode(plain.encode("Hi (you)!").ids) == "Hi (you)!"
    closed = Tokenizer.from_file(str(tiny_tokenizer(tmp_path / "b.json", 40, end_id=39)))
    assert closed.encode(" !z").ids == [3, 4, 1, 39], "the end closes a text; what the vocabulary has no room for is unknown"
    with pytest.raises(UserError, match="too small"):
        tiny_tokenizer(tmp_path / "c.json", 4)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"polyadapt:tiny-bert needs transformers.*pip install 'polyadapt\[transformers\]'"):
        open_reference("polyadapt:tiny-bert")
