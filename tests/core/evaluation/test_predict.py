"""Running models: closed forms of tiny models, padding, modes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import polyadapt as pa
from polyadapt.data.dataset import Dataset, Example
from polyadapt.errors import UserError
from polyadapt.evaluation.evaluation import evaluate
from polyadapt.evaluation.predict import model_predictor, predict
from polyadapt.families.base import Family
from polyadapt.families.card import FamilyCard
from polyadapt.model import Model, build_model
from polyadapt.signature import Signature, Task, TensorSpec
from polyadapt.training.batches import Examples
from polyadapt.training.noising import Noising
from polyadapt_runtime.preprocess import Processor

CARD = FamilyCard("toy", "toy", ("array",), "toy", {}, (), ("classification", "causal-lm", "control", "ctc", "features"), {}, "", {})


class Toy(Family):
    """A linear map, or a table of next-token scores."""

    def config(self, backbone: nn.Module) -> dict[str, Any]:
        return {}

    def signature(self, backbone: nn.Module, task: Task) -> Signature:
        name = {"classification": "features", "control": "action"}.get(task.kind, "logits")
        return Signature((TensorSpec("x", ("batch", "n"), "float32", ""),), (TensorSpec(name, ("batch", "m"), "float32", ""),))

    def feature_size(self, backbone: nn.Module) -> int:
        return 3

    def forward(self, backbone: nn.Module, task: Task, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if task.kind == "causal-lm":
            return {"logits": backbone(inputs["input_ids"])}
        if task.kind == "ctc":
            return {"logits": inputs["x"].unflatten(-1, (-1, 4))}
        if task.kind == "classification":
            # The mean over all positions, filled-up ones too: wrong unless equal lengths go together.
            return {"features": backbone(inputs["x"].mean(-1, keepdim=True).expand(-1, 3))}
        return {"action": backbone(inputs["x"])}


def toy(task: Task, backbone: nn.Module, spec: dict[str, Any], assets: Mapping[str, Path] | None = None) -> Model:
    return build_model(Toy(CARD), backbone, task, Processor(spec, assets), reference="module:toy")


def linear() -> nn.Module:
    layer = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0, 0], [0, -1, 0], [0, 0, 0]]))
    return nn.Sequential(nn.Dropout(0.5), layer)


ARRAY = {"kind": "array", "input": "x", "shape": ["n"], "dtype": "float32"}
AUDIO = {"kind": "audio", "input": "x", "sample_rate_hz": 16000, "seconds": None, "maximum_seconds": None}


def numbers(values: list[list[float]], labels: str) -> Dataset:
    return Dataset("d", [Example(str(row), np.array(value, np.float32), label) for row, (value, label) in enumerate(zip(values, labels, strict=True))], "array")


def test_classes_with_probabilities() -> None:
    model = toy(Task("classification", ("up", "down", "flat")), linear(), ARRAY)
    dataset = Dataset("d", [Example("0", np.array([2, 2, 2], np.float32), "up"), Example("1", np.array([-1, -1, -1], np.float32), "flat")], "array")
    first, second = predict(model, dataset)
    scores = np.exp([2.0, -2.0, 0.0]) / np.exp([2.0, -2.0, 0.0]).sum()
    assert (first.answer, first.is_correct) == ("up", True)
    assert list(first.scores) == ["up", "flat", "down"]
    assert list(first.scores.values()) == pytest.approx([scores[0], scores[2], scores[1]], rel=1e-6)
    assert first.numbers["nll"] == pytest.approx(-np.log(scores[0]), rel=1e-6)
    assert (second.answer, second.is_correct) == ("down", False)
    assert evaluate(model_predictor(model), dataset, generator=np.random.default_rng(0)).value == 0.5


def test_batches_change_nothing_even_where_lengths_differ() -> None:
    model = toy(Task("classification", ("a", "b", "c")), linear(), AUDIO)
    generator = np.random.default_rng(0)
    rows = [Example(str(row), (generator.normal(size=int(generator.integers(400, 404))).astype(np.float32), 16000), "a") for row in range(12)]
    dataset = Dataset("d", rows, "audio")
    single, together = predict(model, dataset, 1), predict(model, dataset, 5)
    assert [row.id for row in together] == [example.id for example in rows]
    for one, other in zip(single, together, strict=True):
        assert one.answer == other.answer
        assert one.numbers["nll"] == pytest.approx(other.numbers["nll"], rel=1e-5)


def test_modes_are_put_back_and_no_gradient_is_kept() -> None:
    model = toy(Task("classification", ("a", "b", "c")), linear(), ARRAY)
    model.backbone.train()
    first, second = ([row.numbers["nll"] for row in predict(model, numbers([[1, 2, 3]] * 40, "a" * 40))] for _ in range(2))
    assert first == second  # dropout slept
    assert model.backbone.training and not model.module.training
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_unknown_classes_are_the_users_error() -> None:
    with pytest.raises(UserError, match="the data has the class 'z', which the model does not know; its classes: a, b, c"):
        predict(toy(Task("classification", ("a", "b", "c")), linear(), ARRAY), numbers([[1, 2, 3]], "z"))
    with pytest.raises(UserError, match="this model has no classes"):
        predict(toy(Task("classification"), linear(), ARRAY), numbers([[1, 2, 3]], "a"))
    with pytest.raises(UserError, match="has 2 labels and scores 3 classes"):
        predict(toy(Task("classification", ("a", "b")), linear(), ARRAY), numbers([[1, 2, 3]], "a"))
    with pytest.raises(UserError, match="task 'features' has no plain prediction"):
        predict(toy(Task("features"), linear(), ARRAY), numbers([[1, 2, 3]], "a"))
    with pytest.raises(UserError, match="batch_size is 0"):
        predict(toy(Task("classification", ("a", "b", "c")), linear(), ARRAY), numbers([[1, 2, 3]], "a"), 0)


def test_a_raw_input_that_does_not_fit_is_named() -> None:
    dataset = Dataset("d", [Example("0", np.array(["x"]), "a", source="m.csv:4")], "array")
    with pytest.raises(UserError, match=r"m\.csv:4: "):
        predict(toy(Task("classification", ("a", "b", "c")), linear(), ARRAY), dataset)


def test_actions_against_their_targets() -> None:
    model = toy(Task("control"), linear(), {"kind": "array", "input": "x", "shape": [3], "dtype": "float32"})
    dataset = Dataset("d", [Example("0", np.array([1, 2, 3], np.float32), None, None, {"target": [1.0, 0.0, 0.0]})], "array")
    assert predict(model, dataset)[0].answer == (1.0, -2.0, 0.0)
    assert evaluate(model_predictor(model), dataset, ("mse",), generator=np.random.default_rng(0)).value == pytest.approx(4 / 3)


def test_frames_become_text() -> None:
    model = toy(Task("ctc", ("_", "|", "a", "b"), details={"blank": 0}), nn.Linear(1, 1), ARRAY)
    path = [2, 2, 0, 2, 3, 3, 1, 1, 0, 3]  # a a _ a b b | | _ b
    frames = np.eye(4, dtype=np.float32)[path].reshape(-1)
    dataset = Dataset("d", [Example("0", frames, None, "aab b")], "array")
    assert predict(model, dataset)[0].answer == "aab b"
    with pytest.raises(UserError, match="scores 4 symbols, and its task names 2"):
        predict(toy(Task("ctc", ("_", "a")), nn.Linear(1, 1), ARRAY), dataset)
    with pytest.raises(UserError, match="no transcript"):
        predict(model, Dataset("d", [Example("0", frames)], "array"))


def test_a_vocabulary_of_the_checkpoint_does_as_well_as_labels() -> None:
    """Models of torchaudio bring theirs in the task's details; training reads it there, too."""
    task = Task("ctc", details={"vocabulary": ["-", "|", "A", "B"]})
    frames = np.eye(4, dtype=np.float32)[[2, 1, 3]].reshape(-1)
    (found,) = predict(toy(task, nn.Linear(1, 1), ARRAY), Dataset("d", [Example("0", frames, None, "A B")], "array"))
    assert found.answer == "A B"


def test_the_case_of_a_transcript_counts_for_no_more_than_in_training() -> None:
    """A checkpoint of capitals that hears every letter makes no error; what it has no letter for is one."""
    task = Task("ctc", details={"vocabulary": ["-", "|", "A", "B"]})
    frames = np.eye(4, dtype=np.float32)[[2, 1, 3]].reshape(-1)

    def error(text: str) -> float:
        rows = Dataset("d", [Example("0", frames, None, text)], "array")
        return evaluate(model_predictor(toy(task, nn.Linear(1, 1), ARRAY)), rows, ("cer",), generator=np.random.default_rng(0)).value

    assert error("a  b") == 0 and error("A b") == 0
    assert error("a ß") == pytest.approx(1 / 3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token a character, but "ab" is one; every text ends with "E"."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from tokenizers.processors import TemplateProcessing

    made = Tokenizer(WordLevel({"?": 0, "a": 1, "b": 2, "c": 3, "ab": 4, "E": 5}, unk_token="?"))
    made.pre_tokenizer = Split(Regex("ab|."), "isolated")
    made.post_processor = TemplateProcessing(single="$A E", special_tokens=[("E", 5)])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def text_spec(side: str = "right", maximum: int = 16) -> dict[str, Any]:
    inputs = {"ids": "input_ids", "mask": "attention_mask", "types": None}
    return {"kind": "text", "tokenizer": "tokenizer", "maximum_tokens": maximum, "pad_id": 0, "pad_side": side, "inputs": inputs}


def test_targets_that_are_not_there(tokenizer: Path) -> None:
    model = toy(Task("causal-lm"), nn.Embedding(6, 6), text_spec(maximum=3), {"tokenizer": tokenizer})
    with pytest.raises(UserError, match=r"m\.csv:2: the prompt takes all 3 tokens"):
        predict(model, Dataset("d", [Example("0", "cccc", None, "a", source="m.csv:2")], "text"))
    with pytest.raises(UserError, match=r"m\.csv:3: 1 tokens, and the first is never foretold"):
        predict(model, Dataset("d", [Example("0", np.array([2]), source="m.csv:3")], "array"))
    with pytest.raises(UserError, match=r"m\.csv:4: a text is a string"):
        predict(model, Dataset("d", [Example("0", np.array([0.5]), source="m.csv:4")], "array"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_perplexity_of_targets_in_closed_form(tokenizer: Path, side: str) -> None:
    table = nn.Embedding(6, 6)
    nn.init.normal_(table.weight, generator=torch.Generator().manual_seed(0))
    model = toy(Task("causal-lm"), table, text_spec(side), {"tokenizer": tokenizer})
    dataset = Dataset("d", [Example("0", "ca", None, "ca"), Example("1", "c", None, "cccc"), Example("2", "ca", None, "bc")], "text")
    scores = torch.log_softmax(table.weight.detach().double(), dim=-1).numpy()

    def nll(tokens: list[int], start: int) -> float:
        return -sum(float(scores[tokens[place - 1], tokens[place]]) for place in range(start, len(tokens)))

    expected = [(nll([3, 1, 3, 1, 5], 2), 3), (nll([3, 3, 3, 3, 3, 5], 1), 5), (nll([3, 4, 3, 5], 1), 3)]
    found = predict(model, dataset, batch_size=3)
    for row, (likelihood, tokens) in zip(found, expected, strict=True):
        assert row.numbers["tokens"] == tokens
        assert row.numbers["nll"] == pytest.approx(likelihood, rel=1e-6)
    result = evaluate(model_predictor(model, 2), dataset, ("perplexity",), generator=np.random.default_rng(0))
    assert result.value == pytest.approx(np.exp(sum(row[0] for row in expected) / 11), rel=1e-6)


def test_a_text_without_a_prompt_counts_from_its_second_token() -> None:
    model = toy(Task("causal-lm"), nn.Embedding(6, 6), text_spec())
    dataset = Dataset("d", [Example("0", np.array([1, 2, 3, 4, 5]))], "array")
    assert predict(model, dataset)[0].numbers["tokens"] == 4


def test_a_target_may_follow_nothing(tokenizer: Path) -> None:
    """An empty prompt has no token of its own, and is no empty text."""
    bare = tokenizer.with_name("bare.json")
    table = json.loads(tokenizer.read_text(encoding="utf-8"))
    bare.write_text(json.dumps({**table, "post_processor": None}), encoding="utf-8")
    model = toy(Task("causal-lm"), nn.Embedding(6, 6), text_spec(), {"tokenizer": bare})
    (found,) = predict(model, Dataset("d", [Example("0", "", None, "abc")], "text"))
    assert found.numbers["tokens"] == 1  # `ab` and `c`, of which the first is never foretold


def test_the_end_of_a_text_is_foretold_as_in_training() -> None:
    model = toy(Task("causal-lm"), nn.Embedding(6, 6), text_spec())
    model.generation["eos_ids"] = [5]
    rows = [Example("0", np.array([1, 2, 3])), Example("1", np.array([1, 2, 5]))]
    assert [row.numbers["tokens"] for row in predict(model, Dataset("d", rows, "array"))] == [3, 2]


def test_pictures_are_matched_with_captions_of_the_whole_data() -> None:
    pytest.importorskip("transformers", reason="the host alone brings no CLIP")
    model = pa.load("polyadapt:tiny-clip")
    captions, colours = ["a cat", "dogs that bark", "two boats", "a cat", "the sea"], [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)]
    rows = [Example(str(number), np.full((30, 30, 3), colours[number], np.uint8), None, caption) for number, caption in enumerate(captions)]
    data = Dataset("pictures", rows, "image")
    found = pa.evaluate(model, data, batch_size=2)
    inputs = Examples(data, model, 0).batch(range(5)).inputs
    with torch.no_grad():
        scores = model.module(**inputs)["logits"]
    expected = [captions[int(row)] for row in scores.argmax(1)]
    assert len(set(expected)) > 1
    assert (found.metric, found.n) == ("accuracy", 5) and [row.answer for row in found.predictions] == expected
    assert found.value == pytest.approx(np.mean([answer == caption for answer, caption in zip(expected, captions, strict=True)]))
    assert [row.answer for row in pa.evaluate(model, data, batch_size=5).predictions] == expected
    with pytest.raises(UserError, match="has 1 caption, and pictures are matched with one of several"):
        pa.evaluate(model, data.subset([0, 3], "same"))


def test_noise_is_foretold_at_the_same_steps_whatever_is_measured() -> None:
    pytest.importorskip("diffusers", reason="the host alone brings no U-Net")
    model, draw = pa.load("polyadapt:tiny-unet"), np.random.default_rng(0)
    beside = {spec.name: [size if isinstance(size, int) else 4 for size in spec.shape[1:]] for spec in model.signature.inputs if spec.name not in ("sample", "timestep")}
    shape = [size if isinstance(size, int) else 16 for size in next(spec for spec in model.signature.inputs if spec.name == "sample").shape[1:]]
    rows = [
        Example(str(row), draw.normal(size=shape).astype(np.float32), extra={name: draw.normal(size=size).astype(np.float32) for name, size in beside.items()}) for row in range(3)
    ]
    data = Dataset("latents", rows, "array")
    found = pa.evaluate(model, data, batch_size=2)
    batch = Noising(model.task, 0)(Examples(data, model, 0).batch(range(3)), 0)
    with torch.no_grad():
        expected = torch.nn.functional.mse_loss(model.module(**batch.inputs)["noise"], batch.targets["target"])
    assert found.metric == "mse" and found.value == pytest.approx(float(expected), rel=1e-5)
    assert found.value == pytest.approx(pa.evaluate(model, data, batch_size=3).value, rel=1e-5)
