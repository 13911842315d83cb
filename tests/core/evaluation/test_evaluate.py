"""Evaluations and comparisons of predictors."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from polyadapt.data.dataset import Dataset, Example
from polyadapt.errors import PluginError, UserError
from polyadapt.evaluation.baselines import majority, mean
from polyadapt.evaluation.evaluation import compare, evaluate
from polyadapt.evaluation.prediction import Prediction, Predictor


def made(count: int = 40) -> Dataset:
    return Dataset("d", [Example(f"e{row}", f"t{row}", "ab"[row % 2]) for row in range(count)], "text")


def answering(rule: dict[int, str]) -> Predictor:
    """Right, but for the rows that `rule` names."""

    def predict(dataset: Dataset) -> Sequence[Prediction]:
        return [Prediction(example.id, example.label, rule.get(row, example.label)) for row, example in enumerate(dataset)]

    return predict


def seeded() -> np.random.Generator:
    return np.random.default_rng(0)


def test_an_evaluation_holds_everything() -> None:
    dataset = made()
    result = evaluate(answering({0: "b", 1: "a", 3: "a"}), dataset, ("accuracy", "macro-f1"), generator=seeded())
    assert (result.metric, result.value, result.n) == ("accuracy", 37 / 40, 40)
    assert result.interval.low < 37 / 40 < result.interval.high
    assert result.labels == ("a", "b")
    assert result.confusion is not None and result.confusion.tolist() == [[19, 1], [2, 18]]
    assert result.correct.sum() == 37 and not result.correct[3]
    assert list(result.others) == ["macro-f1"]
    row = json.loads(json.dumps(result.to_dict()))
    assert Prediction.from_dict(row["predictions"][3]) == result.predictions[3]
    assert "predictions" not in result.to_dict(predictions=False)
    assert "e3" not in json.dumps(result.to_dict(predictions=False))


def test_an_answer_outside_of_the_data_is_a_class_of_its_own() -> None:
    result = evaluate(answering({0: "teapot"}), made(), ("accuracy", "macro-f1"), generator=seeded())
    assert result.labels == ("a", "b", "teapot")
    assert result.confusion is not None and result.confusion[0, 2] == 1


def test_transcripts_of_labelled_recordings_have_no_confusions() -> None:
    dataset = Dataset("d", [Example("0", "x", "un", "un chat"), Example("1", "y", "une", "une vache")], "text")

    def predict(rows: Dataset) -> Sequence[Prediction]:
        return [Prediction(example.id, example.text, "un chat") for example in rows]

    result = evaluate(predict, dataset, ("wer",), generator=seeded())
    assert (result.labels, result.confusion, result.value) == ((), None, 0.5)


def test_a_predictor_has_to_answer_each_example_in_order() -> None:
    with pytest.raises(PluginError, match="answer each one in order"):
        evaluate(lambda rows: [Prediction(row.id, row.label, row.label) for row in reversed(rows)], made(), generator=seeded())


def test_comparison_says_who_is_better_in_either_direction() -> None:
    dataset = made(200)
    good = evaluate(answering({0: "b"}), dataset, generator=seeded())
    bad = evaluate(answering({row: "ab"[(row + 1) % 2] for row in range(30)}), dataset, generator=seeded())
    found = compare(good, bad, ("good", "bad"), generator=seeded())
    assert found.difference == pytest.approx(29 / 200)
    assert found.interval.low > 0 and found.is_clear and found.wins == 1.0
    same = compare(good, good, ("good", "good"), generator=seeded())
    assert (same.difference, same.interval.low, same.interval.high, same.wins, same.is_clear) == (0, 0, 0, 0.5, False)


def test_sides_that_answer_different_classes_are_compared_over_all_of_them() -> None:
    """A frozen base answers classes that the data do not have: they are columns of its statistics alone."""
    dataset = made(20)
    good = evaluate(answering({0: "b"}), dataset, ("macro-f1",), generator=seeded())
    base = evaluate(answering({row: f"other {row % 2}" for row in range(10)}), dataset, ("macro-f1",), generator=seeded())
    assert len(base.labels) == 4 and len(good.labels) == 2
    for first, second in ((good, base), (base, good)):
        found = compare(first, second, ("x", "y"), generator=seeded())
        assert found.difference == pytest.approx(first.value - second.value) and found.is_clear
        assert found.interval.low < found.difference < found.interval.high


def test_lower_errors_win() -> None:
    dataset = Dataset("d", [Example(str(row), np.zeros(1), None, None, {"target": [float(row)]}) for row in range(30)], "array")

    def off_by(error: float) -> Predictor:
        return lambda rows: [Prediction(row.id, (float(row.target[0]),), (float(row.target[0]) + error,)) for row in rows]

    near, far = (evaluate(off_by(error), dataset, ("mse",), generator=seeded()) for error in (0.5, 1.0))
    found = compare(near, far, ("near", "far"), generator=seeded())
    assert (found.difference, found.wins) == (-0.75, 1.0)
    average = evaluate(mean(dataset), dataset, ("mse",), generator=seeded())
    assert average.value == pytest.approx(np.var(np.arange(30)))


def test_different_examples_or_metrics_are_not_compared() -> None:
    first = evaluate(answering({}), made(40), generator=seeded())
    with pytest.raises(UserError, match="evaluated on different examples"):
        compare(first, evaluate(answering({}), made(42), generator=seeded()), ("x", "y"), generator=seeded())
    changed = Dataset("d", [Example(row.id, f"{row.raw} changed", row.label) for row in made(40)], "text")
    with pytest.raises(UserError, match="evaluated on different examples"):
        compare(first, evaluate(answering({}), changed, generator=seeded()), ("x", "y"), generator=seeded())
    with pytest.raises(UserError, match="measured by accuracy and 'y' by macro-f1"):
        compare(first, evaluate(answering({}), made(40), ("macro-f1",), generator=seeded()), ("x", "y"), generator=seeded())


def test_majority_takes_the_commonest_class_of_training() -> None:
    train = Dataset("t", [Example(f"{row}", "x", "b" if row < 3 else "a") for row in range(5)], "text")
    result = evaluate(majority(train), made(), generator=seeded())
    assert {row.answer for row in result.predictions} == {"b"} and result.value == 0.5
    rare = evaluate(majority(train), made(), ("log-loss",), generator=seeded())
    assert rare.value == pytest.approx(-(np.log(4 / 7) + np.log(3 / 7)) / 2)  # three b and two a, and one more of each
    with pytest.raises(UserError, match="'majority' needs labels"):
        majority(Dataset("t", [Example("0", "x")], "text"))


def test_a_mean_needs_as_many_numbers_in_every_row() -> None:
    rows = [Example("0", "x", extra={"target": [1.0, 2.0]}), Example("1", "x", extra={"target": [1.0]}, source="m.csv:3")]
    with pytest.raises(UserError, match=r"m\.csv:3: 1 target numbers, and the first row has 2"):
        mean(Dataset("t", rows, "text"))
