"""Metrics against other libraries and closed forms, and intervals against what they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from polyadapt.errors import UserError
from polyadapt.evaluation.interval import bootstrap, paired_bootstrap
from polyadapt.evaluation.metrics import METRICS, confusion, default_metric, metric
from polyadapt.evaluation.prediction import Prediction
from polyadapt.signature import DEFAULT_METRICS, TASK_KINDS

LABELS = ("a", "b", "c")


def value(name: str, predictions: list[Prediction], labels: tuple[str, ...] = LABELS) -> float:
    measure = metric(name)
    return float(measure.value(measure.statistics(predictions, labels).sum(0)))


def classified(seed: int, count: int = 200) -> list[Prediction]:
    generator = np.random.default_rng(seed)
    truth, answer = generator.integers(0, 3, count), generator.integers(0, 3, count)
    return [Prediction(str(row), LABELS[truth[row]], LABELS[truth[row] if generator.random() < 0.5 else answer[row]]) for row in range(count)]


def test_classification_equals_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rows = classified(0)
    truth, answer = [row.truth for row in rows], [row.answer for row in rows]
    assert value("accuracy", rows) == pytest.approx(sklearn.accuracy_score(truth, answer), abs=1e-12)
    assert value("macro-f1", rows) == pytest.approx(sklearn.f1_score(truth, answer, average="macro"), abs=1e-12)
    np.testing.assert_array_equal(confusion(rows, LABELS), sklearn.confusion_matrix(truth, answer, labels=LABELS))


def test_macro_f1_leaves_out_classes_that_are_never_met() -> None:
    rows = [Prediction("0", "a", "a"), Prediction("1", "a", "b")]
    # F1 of a = 2*1/(2*1+0+1) = 2/3, of b = 0; c is met by nobody.
    assert value("macro-f1", rows) == pytest.approx(1 / 3)


def test_squared_error_is_the_mean_over_all_numbers() -> None:
    rows = [Prediction("0", (1.0, 2.0), (1.0, 4.0)), Prediction("1", (0.0, 0.0), (1.0, 1.0))]
    assert value("mse", rows) == pytest.approx((0 + 4 + 1 + 1) / 4)
    with pytest.raises(UserError, match="needs as many numbers as the target"):
        value("mse", [Prediction("0", (1.0,), (1.0, 2.0))])


def test_error_rates_are_ratios_of_sums() -> None:
    rows = [Prediction("0", "one two three four", "one two tree four"), Prediction("1", "five", "five six")]
    assert value("wer", rows) == pytest.approx((1 + 1) / (4 + 1))
    # By characters: "h" is missing from "three" (1 of 18); " six" is too much (4 of 4).
    assert value("cer", rows) == pytest.approx((1 + 4) / (18 + 4))
    with pytest.raises(UserError, match="compares two texts"):
        value("wer", [Prediction("0", "one", None)])


def test_perplexity_weighs_tokens_alike() -> None:
    rows = [Prediction("0", "x", None, {}, {"nll": 2.0, "tokens": 1.0}), Prediction("1", "y", None, {}, {"nll": 3.0, "tokens": 4.0})]
    assert value("perplexity", rows) == pytest.approx(math.exp(5 / 5))
    assert value("log-loss", rows) == pytest.approx(2.5)
    with pytest.raises(UserError, match="comes without 'tokens'"):
        value("perplexity", [Prediction("0", "x", None, {}, {"nll": 1.0})])


def test_confusion_names_a_strange_answer() -> None:
    with pytest.raises(UserError, match="example '0': 'd' is not one of the labels a, b, c"):
        confusion([Prediction("0", "a", "d")], LABELS)


def test_names_and_defaults() -> None:
    with pytest.raises(UserError, match=r"unknown metric 'acuracy'; did you mean 'accuracy'"):
        metric("acuracy")
    with pytest.raises(UserError, match="task 'features' has no metric of its own"):
        default_metric("features")
    assert set(DEFAULT_METRICS.values()) <= set(METRICS)
    assert set(DEFAULT_METRICS) <= set(TASK_KINDS)


def test_interval_of_a_mean_is_that_of_theory() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(3.0, 2.0, 400)
    statistics = np.stack([values, np.ones(400)], axis=1)
    interval = bootstrap(statistics, metric("mse").value, np.random.default_rng(1), draws=4000)
    half = 1.96 * values.std() / math.sqrt(400)
    # The ends of 4000 resamplings have a standard error of about 0.03 half widths.
    assert interval.low == pytest.approx(values.mean() - half, abs=0.12 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.12 * half)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    hits = 0
    for _ in range(300):
        right = (generator.random(80) < 0.7).astype(float)
        interval = bootstrap(np.stack([right, np.ones(80)], axis=1), metric("accuracy").value, generator, draws=400, level=0.9)
        hits += interval.low <= 0.7 <= interval.high
    # Binomial: 270 expected, standard deviation 5.2; the percentile interval is known to be a little short.
    assert 250 <= hits <= 290


def test_interval_is_seeded_and_independent_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from polyadapt.evaluation import interval as module

    measure = metric("macro-f1")
    statistics = measure.statistics(classified(3), LABELS)
    first = bootstrap(statistics, measure.value, np.random.default_rng(2), draws=100)
    monkeypatch.setattr(module, "_CHUNK_VALUES", 200 * 7)
    assert bootstrap(statistics, measure.value, np.random.default_rng(2), draws=100) == first
    assert bootstrap(statistics, measure.value, np.random.default_rng(3), draws=100) != first


def test_a_pair_is_told_apart_where_single_intervals_overlap() -> None:
    generator = np.random.default_rng(0)
    first = (generator.random(300) < 0.6).astype(float)
    second = first.copy()
    second[:15] = 0  # wrong wherever the first is wrong, and a little oftener
    one, two = (np.stack([side, np.ones(300)], axis=1) for side in (first, second))
    accuracy = metric("accuracy").value
    singles = [bootstrap(side, accuracy, np.random.default_rng(1)) for side in (one, two)]
    assert singles[1].high > singles[0].low
    interval, differences = paired_bootstrap(one, two, accuracy, np.random.default_rng(1))
    assert 0 < interval.low < first.mean() - second.mean() < interval.high
    assert len(differences) == 2000
    swapped, _ = paired_bootstrap(two, one, accuracy, np.random.default_rng(1))
    assert (swapped.low, swapped.high) == pytest.approx((-interval.high, -interval.low))


def test_senseless_intervals_are_refused() -> None:
    statistics = np.ones((3, 2))
    accuracy = metric("accuracy").value
    with pytest.raises(UserError, match="no examples to resample"):
        bootstrap(np.ones((0, 2)), accuracy, np.random.default_rng(0))
    with pytest.raises(UserError, match="level of an interval is 95"):
        bootstrap(statistics, accuracy, np.random.default_rng(0), level=95)
    with pytest.raises(UserError, match="draws is 0"):
        bootstrap(statistics, accuracy, np.random.default_rng(0), draws=0)
    with pytest.raises(UserError, match="the same examples on both sides, found 3 and 2"):
        paired_bootstrap(statistics, statistics[:2], accuracy, np.random.default_rng(0))
