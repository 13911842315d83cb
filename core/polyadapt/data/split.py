"""Splits into train, validation and test: seeded, by class, and with groups kept on one side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import Field

from polyadapt.data.dataset import Dataset
from polyadapt.errors import UserError, nearest, unknown
from polyadapt.options import Options, read_options

PARTS = ("train", "validation", "test")
UNUSED = ""
WAYS = ("auto", "label", "random", "within:<column>", "file", "group:<column>", "column:<column>")


class Split(Options):
    """How to split. A part whose fraction is 0 does not exist."""

    by: str = Field(
        "auto",
        description="label (each class in the same shares), random, within:<column> (each of its values, such as a language, in the same shares), "
        "file (equal files on one side), group:<column> (equal values on one side), "
        "column:<column> (which holds train, validation or test); auto: the data's own column `split`, else label, else random",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of the numpy generator that shuffles")
    fractions: dict[str, float] = Field(default_factory=lambda: {"train": 0.7, "validation": 0.15, "test": 0.15}, description="shares of the parts; what they leave is not used")
    train_per_class: int = Field(0, ge=0, description="exactly so many examples of every class; the other parts share the rest by their fractions")
    validation_per_class: int = Field(0, ge=0, description="as train_per_class")
    test_per_class: int = Field(0, ge=0, description="as train_per_class")

    @property
    def per_class(self) -> dict[str, int]:
        """Parts with a count per class."""
        counts = {"train": self.train_per_class, "validation": self.validation_per_class, "test": self.test_per_class}
        return {part: count for part, count in counts.items() if count}


@dataclass(frozen=True)
class Parts:
    """The parts of a split by name, each with at least one example."""

    split: Split
    by: str
    parts: Mapping[str, Dataset]

    @property
    def train(self) -> Dataset:
        return self[PARTS[0]]

    @property
    def test(self) -> Dataset:
        return self[PARTS[2]]

    @property
    def validation(self) -> Dataset | None:
        """None when no share was given to it."""
        return self.parts.get("validation")

    def __getitem__(self, part: str) -> Dataset:
        if part not in self.parts:
            raise unknown("part", part, self.parts)
        return self.parts[part]

    def to_dict(self) -> dict[str, Any]:
        """For reports: how it was split, and the size and hash of every part."""
        return {"by": self.by, "seed": self.split.seed, "parts": {name: {"n": len(part), "hash": part.hash} for name, part in self.parts.items()}}


def split_data(dataset: Dataset, split: Split | Mapping[str, Any] | None = None, by_class: bool = True, needed: Sequence[str] = ("train", "test")) -> Parts:
    """Split a data set.

    Args:
        dataset: all examples.
        split: how; a mapping is validated first.
        by_class: labels are classes, which every part has to have. False where something else is learned, such as transcripts.
        needed: parts that must be there; where nothing is measured afterwards, all may train.

    Returns:
        Disjoint parts, each in the data set's order.

    Raises:
        UserError: shares that make no sense, a class with one example, classes that differ between the parts, an empty part.
    """
    chosen = split if isinstance(split, Split) else read_options(Split, split or {}, "split")
    fractions = _fractions(chosen, needed)
    ground = dataset if by_class else _without_labels(dataset)
    by = _way(ground, chosen.by)
    if ground.is_labelled and len(fractions) > 1:
        _refuse_lonely_classes(ground)
    if by.startswith("column:"):
        _refuse_shares(chosen, ground, by)
        indices = _by_column(ground, by.removeprefix("column:"), needed)
    elif by.startswith("group:") or by == "file":
        indices = _by_group(ground, _groups(ground, by), fractions, chosen)
    elif by.startswith("within:"):
        column = by.removeprefix("within:")
        valued = Dataset(ground.name, [replace(example, label=str(example.extra[column])) for example in ground], ground.media)
        indices = _by_class(valued, fractions, chosen, stratified=True, unit=column)
    else:
        indices = _by_class(ground, fractions, chosen, stratified=by == "label")
    parts = {}
    for part, rows in indices.items():
        if not rows:
            raise UserError(f"split by {by}: the part {part!r} is empty ({len(dataset)} examples in all); give it a larger share or more data")
        parts[part] = dataset.subset(sorted(rows), f"{dataset.name} [{part}]")
    if ground.is_labelled:
        _refuse_different_labels(ground, parts, by)
    return Parts(chosen, by, parts)


def _refuse_shares(split: Split, dataset: Dataset, by: str) -> None:
    """Refuse shares and counts where a column says whose each row is.

    Raises:
        UserError: naming the option.
    """
    given = [f"{part}_per_class" for part in split.per_class] or (["fractions"] if "fractions" in split.model_fields_set else [])
    if given:
        raise UserError(
            f'split: {given[0]} has no place where {by.replace(":", " ")!r} of {dataset.name!r} says whose a row is; leave it out, or set by to "label", "random" or a group'
        )


def _without_labels(dataset: Dataset) -> Dataset:
    return Dataset(dataset.name, [replace(example, label=None) for example in dataset], dataset.media, (), dataset.licence)


def _fractions(split: Split, needed: Sequence[str]) -> dict[str, float]:
    """Shares of the parts that exist, checked; parts with a count per class are left to that count."""
    for part, share in split.fractions.items():
        if part not in PARTS:
            raise unknown("part of a split", part, PARTS)
        if not 0 <= share <= 1:
            raise UserError(f"split: the fraction of {part!r} is {share}, expected a number from 0 to 1")
    shares = {part: float(split.fractions.get(part, 0)) for part in PARTS}
    if sum(shares.values()) > 1 + 1e-9:
        raise UserError(f"split: the fractions add up to {sum(shares.values()):g}, more than 1; lower one of {', '.join(split.fractions)}")
    for part in needed:
        if not shares[part] and part not in split.per_class:
            raise UserError(f"split: no share is given to {part!r}; set fractions.{part} or {part}_per_class")
    return {part: share for part, share in shares.items() if share or part in split.per_class}


def _way(dataset: Dataset, by: str) -> str:
    if by == "auto":
        if all("split" in example.extra for example in dataset):
            return "column:split"
        return "label" if dataset.is_labelled else "random"
    name, _, column = by.partition(":")
    if name not in {way.partition(":")[0] for way in WAYS} or (column != "") != (name in ("within", "group", "column")):
        raise UserError(f"split: by = {by!r} is unknown{nearest(by, WAYS)}; known: {', '.join(WAYS)}")
    if by == "label" and not dataset.is_labelled:
        raise UserError(f'split by label, but not every example of {dataset.name!r} has one; use by = "random" or a group')
    if column:
        lacking = next((example for example in dataset if example.extra.get(column) in (None, "")), None)
        if lacking is not None:
            raise UserError(f"split: {lacking.source or lacking.id} has no value in column {column!r}{nearest(column, lacking.extra)}")
    return by


def _refuse_lonely_classes(dataset: Dataset) -> None:
    counts = Counter(example.label for example in dataset)
    empty = [label for label in dataset.labels if not counts[label]]
    if empty:
        raise UserError(f"class {empty[0]!r} has no example in {dataset.name!r}; add some, or take it off the labels")
    lonely = [example for example in dataset if counts[example.label] == 1]
    if lonely:
        more = f" (and {len(lonely) - 1} more classes)" if len(lonely) > 1 else ""
        raise UserError(f"class {lonely[0].label!r} has a single example ({lonely[0].source or lonely[0].id}){more}: it cannot be in train and test; add examples or remove it")


def _by_class(dataset: Dataset, fractions: Mapping[str, float], split: Split, stratified: bool, unit: str = "class") -> dict[str, list[int]]:
    """Shuffle each class (or the whole) and deal it out; `unit` is what a class is called."""
    generator = np.random.default_rng(split.seed)
    if split.per_class and not dataset.is_labelled:
        raise UserError(f"split: {next(iter(split.per_class))}_per_class needs a label on every example of {dataset.name!r}")
    targets = dataset.targets() if stratified or split.per_class else np.zeros(len(dataset), dtype=np.int64)
    indices: dict[str, list[int]] = {part: [] for part in fractions}
    for target in np.unique(targets):
        rows = generator.permutation(np.flatnonzero(targets == target))
        name = f"{unit} {dataset.labels[target]!r}" if dataset.is_labelled and (stratified or split.per_class) else "the data"
        start = 0
        for part, count in _counts(len(rows), fractions, split.per_class, name).items():
            indices[part].extend(int(row) for row in rows[start : start + count])
            start += count
    return indices


def _counts(total: int, fractions: Mapping[str, float], per_class: Mapping[str, int], who: str) -> dict[str, int]:
    """How many of `total` go to each part: fixed counts first, then largest remainders, at least one each."""
    free = [part for part in fractions if part not in per_class]
    rest = total - sum(per_class.values())
    if total < len(fractions) or rest < len(free):
        asked = ", ".join(f"{part} {per_class.get(part, 'at least 1')}" for part in fractions)
        raise UserError(f"split: {who} has {total} examples, too few for {asked}; add examples, lower the counts, or set a fraction to 0")
    shares = np.array([fractions[part] for part in free])
    if per_class and free:
        shares = shares / shares.sum()
    exact = shares * rest
    counts = np.floor(exact + 1e-9).astype(int)
    spare = round(float(exact.sum())) - int(counts.sum())
    remainders = np.round(exact - counts, 9)
    for position in sorted(range(len(free)), key=lambda index: (-remainders[index], -index))[:spare]:  # a tie goes to the later part: to test
        counts[position] += 1
    while counts.size and counts.min() == 0:
        if counts.max() > 1:
            counts[counts.argmax()] -= 1
        counts[counts.argmin()] += 1
    given = dict(zip(free, counts.tolist(), strict=True))
    return {part: per_class.get(part) or given[part] for part in fractions}


def _groups(dataset: Dataset, by: str) -> list[str]:
    """A key per example; examples with one key stay on one side. `file` looks at contents, so a copy under another name is the same file."""
    key: Callable[[Any], str]
    if by == "file":
        key = dataset.raw_digest
    else:
        column = by.removeprefix("group:")

        def key(example: Any) -> str:
            return str(example.extra[column])

    return [key(example) for example in dataset]


def _by_group(dataset: Dataset, groups: Sequence[str], fractions: Mapping[str, float], split: Split) -> dict[str, list[int]]:
    """Deal out whole groups, largest first, each to the part that lacks its classes most."""
    if split.per_class:
        raise UserError(f'split: {next(iter(split.per_class))}_per_class cannot be kept with groups; use fractions, or by = "label"')
    targets = dataset.targets() if dataset.is_labelled else np.zeros(len(dataset), dtype=np.int64)
    names = list(dict.fromkeys(groups))
    if len(names) < len(fractions):
        raise UserError(f"split: {len(names)} groups for {len(fractions)} parts; use more groups, fewer parts or another column")
    position = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), int(targets.max()) + 1))  # (groups, classes)
    for group, target in zip(groups, targets, strict=True):
        counts[position[group], target] += 1
    unused = 1 - sum(fractions.values())
    parts = [*fractions, UNUSED] if unused > 1e-9 else list(fractions)
    shares = np.array([fractions.get(part, unused) for part in parts])
    wanted = shares[:, None] * counts.sum(0)[None]  # (parts, classes)
    given = np.zeros_like(wanted)
    order = np.random.default_rng(split.seed).permutation(len(names))
    order = order[np.argsort(-counts[order].sum(1), kind="stable")]
    side: dict[str, str] = {}
    for group in order:
        lack = (wanted - given) / np.maximum(wanted, 1e-9)  # (parts, classes), 1 while a part has none of a class
        chosen = int(np.argmax(lack @ counts[group]))
        given[chosen] += counts[group]
        side[names[group]] = parts[chosen]
    indices: dict[str, list[int]] = {part: [] for part in parts}
    for row, group in enumerate(groups):
        indices[side[group]].append(row)
    indices.pop(UNUSED, None)
    return indices


def _by_column(dataset: Dataset, column: str, needed: Sequence[str]) -> dict[str, list[int]]:
    indices: dict[str, list[int]] = {}
    for row, example in enumerate(dataset):
        part = str(example.extra[column])
        if part not in PARTS:
            raise UserError(f"{example.source or example.id}: column {column!r} is {part!r}{nearest(part, PARTS)}; expected train, validation or test")
        indices.setdefault(part, []).append(row)
    for part in needed:
        if part not in indices:
            raise UserError(f"split: column {column!r} of {dataset.name!r} never says {part!r}; found: {', '.join(sorted(indices))}")
    return {part: indices[part] for part in PARTS if part in indices}


def _refuse_different_labels(dataset: Dataset, parts: Mapping[str, Dataset], by: str) -> None:
    held = {part: {example.label for example in rows} for part, rows in parts.items()}
    for label in dataset.labels:
        lacking = [part for part in parts if label not in held[part]]
        if lacking:
            having = [part for part in parts if part not in lacking]
            found = f"class {label!r} is in {' and '.join(having)} but not in {' and '.join(lacking)}"
            raise UserError(f'split by {by}: {found}; use by = "label", another seed, larger parts, or remove the class')
