"""Splits keep their promises: seeded, disjoint, by class, groups on one side, and honest errors."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyadapt.data.dataset import Dataset, Example
from polyadapt.data.split import Parts, Split, split_data
from polyadapt.errors import UserError


def make(counts: dict[str, int], groups: int = 0) -> Dataset:
    rows = [(label, number) for label, count in counts.items() for number in range(count)]
    extra = [{"who": f"person {place % groups}"} if groups else {} for place in range(len(rows))]
    return Dataset("made", [Example(f"{label}{number}", f"text {label} {number}", label, None, extra[place], f"f:{place}") for place, (label, number) in enumerate(rows)], "text")


def sizes(dataset: Dataset, **options: Any) -> dict[str, dict[str, int]]:
    parts = split_data(dataset, options)
    return {name: dict(Counter(str(example.label) for example in part)) for name, part in parts.parts.items()}


def test_each_class_is_dealt_out_in_the_same_shares() -> None:
    assert sizes(make({"a": 20, "b": 40}), by="label") == {"train": {"a": 14, "b": 28}, "validation": {"a": 3, "b": 6}, "test": {"a": 3, "b": 6}}


def test_each_value_of_a_column_is_dealt_out_in_the_same_shares() -> None:
    """A language of few rows is in every part, though no class tells it apart."""
    rows = [Example(str(number), f"text {number}", None, "said", {"language": "be" if number % 10 == 0 else "fr"}) for number in range(100)]
    dataset = Dataset("spoken", rows, "text")
    parts = split_data(dataset, {"by": "within:language"}, by_class=False)
    assert {name: Counter(example.extra["language"] for example in part) for name, part in parts.parts.items()} == {
        "train": {"fr": 63, "be": 7},
        "validation": {"fr": 13, "be": 1},
        "test": {"fr": 14, "be": 2},
    }
    assert sizes_of(split_data(dataset, {"by": "within:language", "train_per_class": 4}, by_class=False)) == {"train": 8, "validation": 46, "test": 46}
    with pytest.raises(UserError, match="split: language 'be' has 2 examples, too few for train at least 1"):
        split_data(Dataset("few", rows[:15], "text"), {"by": "within:language"}, by_class=False)
    with pytest.raises(UserError, match="has no value in column 'tongue'"):
        split_data(dataset, {"by": "within:tongue"})


def sizes_of(parts: Parts) -> dict[str, int]:
    return {name: len(part) for name, part in parts.parts.items()}


def test_a_part_without_a_share_does_not_exist() -> None:
    parts = split_data(make({"a": 10, "b": 10}), {"fractions": {"train": 0.8, "test": 0.2}})
    assert sorted(parts.parts) == ["test", "train"]
    assert parts.validation is None
    assert (len(parts.train), len(parts.test)) == (16, 4)


def test_what_the_shares_leave_is_not_used() -> None:
    for by in ("label", "random", "group:who"):
        parts = split_data(make({"a": 50, "b": 50}, groups=50), {"by": by, "fractions": {"train": 0.3, "test": 0.2}})
        assert (len(parts.train), len(parts.test)) == (30, 20), by


def test_counts_per_class_are_kept_and_the_rest_is_shared() -> None:
    found = sizes(make({"a": 25, "b": 45}), train_per_class=5)
    assert found == {"train": {"a": 5, "b": 5}, "validation": {"a": 10, "b": 20}, "test": {"a": 10, "b": 20}}
    assert sizes(make({"a": 9, "b": 9}), train_per_class=2, validation_per_class=1, test_per_class=3) == {
        "train": {"a": 2, "b": 2},
        "validation": {"a": 1, "b": 1},
        "test": {"a": 3, "b": 3},
    }


def test_the_seed_alone_decides() -> None:
    dataset = make({"a": 30, "b": 30})
    first, again, other = (split_data(dataset, Split(seed=seed)) for seed in (1, 1, 2))
    assert first.to_dict() == again.to_dict()
    assert first.train.hash != other.train.hash
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    split_data(dataset, Split(seed=3))
    assert (before == np.random.get_state()[1]).all()  # type: ignore[index]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(3, 30), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
    train=st.integers(1, 8),
    validation=st.integers(0, 8),
    by=st.sampled_from(["label", "random"]),
)
def test_parts_are_disjoint_and_whole(counts: list[int], seed: int, train: int, validation: int, by: str) -> None:
    dataset = make({f"c{index}": count for index, count in enumerate(counts)})
    total = train + validation + 3
    fractions = {"train": train / total, "validation": validation / total, "test": 3 / total}
    try:
        parts = split_data(dataset, {"by": by, "seed": seed, "fractions": fractions})
    except UserError as error:
        assert by == "random" and "not in" in str(error)  # only a random split may lose a class
        return
    ids = [example.id for part in parts.parts.values() for example in part]
    assert len(ids) == len(set(ids)) == len(dataset)
    for name, part in parts.parts.items():
        assert abs(len(part) - fractions[name] * len(dataset)) <= (1 if by == "random" else len(counts))
        assert {example.label for example in part} == set(dataset.labels)


@settings(max_examples=60, deadline=None)
@given(groups=st.integers(6, 30), seed=st.integers(0, 1000))
def test_no_group_is_on_two_sides(groups: int, seed: int) -> None:
    dataset = make({"a": 60, "b": 60}, groups=groups)
    parts = split_data(dataset, {"by": "group:who", "seed": seed})
    sides = [{example.extra["who"] for example in part} for part in parts.parts.values()]
    assert sum(map(len, sides)) == len(set.union(*sides)) == groups
    assert sum(len(part) for part in parts.parts.values()) == 120


def test_groups_come_near_to_the_shares() -> None:
    parts = split_data(make({"a": 200, "b": 100}, groups=60), {"by": "group:who", "fractions": {"train": 0.6, "validation": 0.2, "test": 0.2}})
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [180, 60, 60]
    for part in parts.parts.values():
        assert abs(Counter(example.label for example in part)["a"] / len(part) - 2 / 3) < 0.07


@pytest.mark.parametrize("seed", range(5))
def test_groups_of_one_class_are_dealt_out_by_class(seed: int) -> None:
    rows = [Example(f"{label}{who}{number}", "x", label, None, {"who": f"{label}{who}"}) for label in "abcd" for who in range(5) for number in range(4)]
    parts = split_data(Dataset("d", rows, "text"), {"by": "group:who", "seed": seed, "fractions": {"train": 0.6, "validation": 0.2, "test": 0.2}})
    for name, groups in (("train", 3), ("validation", 1), ("test", 1)):
        assert Counter(example.label for example in parts[name]) == dict.fromkeys("abcd", 4 * groups)


def test_equal_files_stay_together_under_any_name() -> None:
    rows = [Example(f"{label}{number}", f"the same {number // 4}", label) for label in "ab" for number in range(40)]
    parts = split_data(Dataset("d", rows, "text"), {"by": "file"})
    sides = [{example.raw for example in part} for part in parts.parts.values()]
    assert sum(map(len, sides)) == 10


def test_a_column_may_hold_the_split() -> None:
    rows = [Example(f"{place}", "x", label, None, {"split": part}) for place, (label, part) in enumerate([("a", "train"), ("b", "train"), ("a", "test"), ("b", "test")])]
    parts = split_data(Dataset("d", rows, "text"))
    assert (parts.by, len(parts.train), len(parts.test)) == ("column:split", 2, 2)
    for options, name in (({"train_per_class": 1}, "train_per_class"), ({"fractions": {"train": 0.5, "test": 0.5}}, "fractions")):
        with pytest.raises(UserError, match=f"{name} has no place where 'column split' of 'd' says whose a row is"):
            split_data(Dataset("d", rows, "text"), options)
    assert len(split_data(Dataset("d", rows, "text"), {"by": "label", "fractions": {"train": 0.5, "test": 0.5}}).train) == 2
    rows.append(Example("x", "x", "a", None, {"split": "tets"}, "m.csv:9"))
    with pytest.raises(UserError, match=r"m\.csv:9: column 'split' is 'tets'; did you mean 'test'"):
        split_data(Dataset("d", rows, "text"))


def test_data_without_labels_is_split_at_random() -> None:
    dataset = Dataset("d", [Example(str(row), f"t{row}") for row in range(20)], "text")
    parts = split_data(dataset)
    assert (parts.by, len(parts.train), len(parts.validation or ()), len(parts.test)) == ("random", 14, 3, 3)
    with pytest.raises(UserError, match="split by label, but not every example"):
        split_data(dataset, {"by": "label"})
    with pytest.raises(UserError, match="train_per_class needs a label"):
        split_data(dataset, {"train_per_class": 2})


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ({"a": 5, "b": 1}, {}, r"class 'b' has a single example \(f:5\)"),
        ({"a": 9, "b": 2}, {}, "class 'b' has 2 examples, too few for train at least 1, validation at least 1, test at least 1"),
        ({"a": 9, "b": 5}, {"train_per_class": 5}, "class 'b' has 5 examples, too few for train 5"),
        ({"a": 60, "b": 2}, {"by": "random", "fractions": {"train": 0.9, "test": 0.1}}, "class 'b' is in train but not in test; use by = \"label\""),
        ({"a": 9, "b": 9}, {"fractions": {"train": 0.9, "test": 0.2}}, "the fractions add up to 1.1, more than 1"),
        ({"a": 9, "b": 9}, {"fractions": {"train": 1.0}}, "no share is given to 'test'"),
        ({"a": 9, "b": 9}, {"fractions": {"train": 0.5, "tets": 0.5}}, "unknown part of a split 'tets'; did you mean 'test'"),
        ({"a": 9, "b": 9}, {"fractions": {"train": -0.5, "test": 0.5}}, "the fraction of 'train' is -0.5"),
        ({"a": 9, "b": 9}, {"by": "lable"}, "by = 'lable' is unknown; did you mean 'label'"),
        ({"a": 9, "b": 9}, {"by": "group:"}, "by = 'group:' is unknown"),
        ({"a": 9, "b": 9}, {"by": "group:speaker"}, "has no value in column 'speaker'"),
        ({"a": 9, "b": 9}, {"sed": 3}, "split has no option 'sed'; did you mean 'seed'"),
    ],
)
def test_splits_that_make_no_sense(counts: dict[str, int], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_data(make(counts), options)


def test_all_may_train_where_nothing_is_measured() -> None:
    parts = split_data(make({"a": 9, "b": 1}), {"fractions": {"train": 1.0}}, needed=("train",))
    assert len(parts.train) == 10 and parts.validation is None and list(parts.parts) == ["train"]


def test_groups_that_cannot_be_dealt_out() -> None:
    with pytest.raises(UserError, match="2 groups for 3 parts"):
        split_data(make({"a": 9, "b": 9}, groups=2), {"by": "group:who"})
    rows = [Example(f"{label}{number}", f"{label}{number}", label, None, {"who": label if label == "a" else number % 5}) for label in "ab" for number in range(10)]
    with pytest.raises(UserError, match="class 'a' is in .* but not in"):
        split_data(Dataset("d", rows, "text"), {"by": "group:who"})
    with pytest.raises(UserError, match="cannot be kept with groups"):
        split_data(make({"a": 9, "b": 9}, groups=9), {"by": "group:who", "train_per_class": 1})


def test_a_class_that_lost_all_examples_is_named() -> None:
    with pytest.raises(UserError, match="class 'c' has no example"):
        split_data(Dataset("d", list(make({"a": 5, "b": 5})), "text", ["a", "b", "c"]))


def test_the_report_of_a_split() -> None:
    parts = split_data(make({"a": 10, "b": 10}), {"seed": 4})
    row = parts.to_dict()
    assert (row["by"], row["seed"]) == ("label", 4)
    assert row["parts"]["test"] == {"n": len(parts.test), "hash": parts.test.hash}
    with pytest.raises(UserError, match="unknown part 'tset'; did you mean 'test'"):
        _ = parts["tset"]


def test_labels_that_are_no_classes_do_not_decide() -> None:
    """Transcripts: nearly every caption has a first word of its own, which is no reason to refuse the data."""
    rows = [Example(str(row), f"sound {row}", f"word {row // 2}", f"word {row // 2} and more", {"caption": f"caption {row}"}) for row in range(20)]
    dataset = Dataset("captions", [*rows, Example("lonely", "sound", "alone", "alone", {"caption": "one"})], "text")
    with pytest.raises(UserError, match="class 'alone' has a single example"):
        split_data(dataset)
    for by, sizes in (("auto", (15, 6)), ("group:caption", (14, 7))):
        parts = split_data(dataset, {"by": by, "fractions": {"train": 0.7, "test": 0.3}}, by_class=False)
        assert (len(parts.train), len(parts.test)) == sizes and parts.test[0].label is not None
