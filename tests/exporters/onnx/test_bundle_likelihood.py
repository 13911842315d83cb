"""Perplexity of a bundle: the graphs score texts as torch does, for every kind of model that writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import polyadapt as pa
from polyadapt.data.dataset import Dataset, Example
from polyadapt.data.split import Parts, Split
from polyadapt.evaluation.evaluation import evaluate
from polyadapt.job.likelihood import scoring
from polyadapt.job.variants import bundle_evaluator
from polyadapt_onnx.exporter import export
from polyadapt_runtime import Bundle

TEXTS = (("red and ", "blue"), ("one two", " three four"), ("a", " longer text than the others"))


def texts() -> Dataset:
    return Dataset("texts", [Example(f"{number}", prompt, None, target, {}, f"row {number}") for number, (prompt, target) in enumerate(TEXTS)], "text")


LLAMA, T5 = "polyadapt:tiny-llama?task=causal-lm", "polyadapt:tiny-t5?task=seq2seq-lm"
FORMS = ("slots", "bank", "merged")
CELLS = [pytest.param(reference, form, marks=[] if (reference, form) == (LLAMA, "slots") else [pytest.mark.wide]) for reference in (LLAMA, T5) for form in FORMS]


@pytest.mark.parametrize(("reference", "form"), CELLS)
def test_perplexity_is_that_of_torch_with_and_without_an_artifact(reference: str, form: str, tmp_path: Path) -> None:
    model = pa.load(reference)
    artifact = pa.adapt(model, "lora", Parts(Split(), "", {"train": texts(), "test": texts()}), train={"max_steps": 2, "batch_size": 3, "learning_rate": 0.05})
    bundle = export(model, {"a": artifact}, tmp_path / "text.bundle", form).directory
    measured = bundle_evaluator(model, ("perplexity",), ("a",), form, texts())
    assert measured is not None
    expected = pa.evaluate(model, texts(), artifact, metrics=("perplexity",))
    assert measured(bundle, "float32")["a"] == {"metric": "perplexity", "value": pytest.approx(expected.value, rel=1e-5), "n": 3}
    if form != "merged":
        plain = evaluate(scoring(Bundle(bundle, device="cpu"), model, None), texts(), ("perplexity",), generator=np.random.default_rng(0))
        assert plain.value == pytest.approx(pa.evaluate(model, texts(), metrics=("perplexity",)).value, rel=1e-5)
        assert abs(plain.value - expected.value) > 1e-3 * expected.value  # the artifact does something
