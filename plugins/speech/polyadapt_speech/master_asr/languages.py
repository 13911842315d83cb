"""Data of several languages: which there are, batches of one language each, and a feed that puts it in force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from polyadapt.data.dataset import Dataset
from polyadapt.errors import UserError, unknown
from polyadapt.training.alphabet import alphabet_of, refuse_letters_outside
from polyadapt.training.batches import Batch, Examples, Feed
from polyadapt.training.drawing import Batches, in_batches
from polyadapt_speech.master_asr.forms import SharedForm

COLUMN = "language"


def languages_of(dataset: Dataset) -> tuple[str, ...]:
    """Languages in the column of that name, in order; none where there is no such column.

    Raises:
        UserError: some rows have a language and others have none.
    """
    named = [example.extra.get(COLUMN) for example in dataset]
    found = tuple(sorted({str(language) for language in named if language}))
    if found and not all(named):
        example = next(example for example, language in zip(dataset, named, strict=True) if not language)
        raise UserError(f"{example.source or example.id}: no language in column {COLUMN!r}, and other rows have one; name it, or leave the row out")
    return found


def rows_of(dataset: Dataset, language: str) -> list[int]:
    """Places of the rows of one language."""
    return [row for row, example in enumerate(dataset) if example.extra.get(COLUMN) == language]


def alphabets_of(train: Dataset, validation: Dataset | None, given: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The symbols of every language: those given, else the letters of its training texts.

    Raises:
        UserError: letters outside, listed with counts; a language that is validated and not trained, or given and not in the data.
    """
    languages = languages_of(train)
    for language in (*given, *(languages_of(validation) if validation is not None else ())):
        if language not in languages:
            raise unknown("language", language, languages)
    found = {}
    for language in languages:
        part = train.subset(rows_of(train, language), f"{train.name}, {language}")
        found[language] = tuple(given.get(language) or alphabet_of(example.text or "" for example in part))
        refuse_letters_outside(part, found[language], f"the alphabet of {language}")
        if validation is not None and (held := rows_of(validation, language)):
            refuse_letters_outside(validation.subset(held, f"{validation.name}, {language}"), found[language], f"the alphabet of {language}")
    return found


def single_language_batches(languages: Sequence[str], batch_size: int) -> Batches:
    """Batches of one language each, languages mixed from batch to batch.

    Args:
        languages: of every row.
        batch_size: of all batches but a language's last one.
    """
    groups = {language: [row for row, other in enumerate(languages) if other == language] for language in dict.fromkeys(languages)}

    def batches(seed: int, epoch: int) -> list[Sequence[int]]:
        generator = np.random.default_rng([seed, epoch])
        made = [piece for rows in groups.values() for piece in in_batches([int(row) for row in generator.permutation(rows)], batch_size)]
        return [made[place] for place in generator.permutation(len(made))]

    return batches


class LanguageFeed:
    """A feed whose batches are of one language: its row and head are put in force, and targets count in its own alphabet.

    Args:
        inner: what makes batches, its targets in the union of all alphabets.
        form: is told which language speaks.
        union: all symbols.
        alphabets: of each language.
    """

    def __init__(self, inner: Feed, form: SharedForm, union: Sequence[str], alphabets: Mapping[str, Sequence[str]]) -> None:
        self._inner, self._form = inner, form
        self._symbols = {language: places_of(alphabet, union) for language, alphabet in alphabets.items()}

    @property
    def examples(self) -> Examples:
        return self._inner.examples

    @property
    def epoch(self) -> int:
        return self._inner.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._inner.epoch = value

    def groups(self, rows: Sequence[int]) -> list[Sequence[int]]:
        found: dict[str, list[int]] = {}
        for row in rows:
            found.setdefault(self._language(row), []).append(row)
        return [group for members in found.values() for group in self._inner.groups(members)]

    def batch(self, rows: Sequence[int]) -> Batch:
        batch = self._inner.batch(rows)
        tokens = batch.targets["tokens"]
        own = self._symbols[self._language(rows[0])].to(tokens.device)[tokens.clamp_min(0)]
        return replace(batch, targets={**batch.targets, "tokens": torch.where(tokens < 0, tokens, own)})

    def forward(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        self._form.speak(self._language(batch.rows[0]))
        return self._inner.forward(batch)

    def _language(self, row: int) -> str:
        return str(self.examples.dataset[row].extra[COLUMN])


def places_of(alphabet: Sequence[str], union: Sequence[str]) -> torch.Tensor:
    """For each symbol of the union its place in an alphabet, in either case where it has only one; int64 [union], 0 where it has none."""
    index = {symbol: place for place, symbol in enumerate(alphabet)}
    forms = [(symbol, symbol.upper(), symbol.lower()) for symbol in union]
    return torch.tensor([next((index[form] for form in given if form in index), 0) for given in forms])
