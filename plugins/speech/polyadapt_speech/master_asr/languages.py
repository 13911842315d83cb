"""Data of several languages: which there are, batches of one language each, and a feed that puts it in force."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from polyadapt.data.dataset import Dataset, Example
from polyadapt.errors import UserError, unknown
from polyadapt.model import Model
from polyadapt.signature import SEPARATOR
from polyadapt.training.alphabet import BLANK, alphabet_of, refuse_letters_outside
from polyadapt.training.batches import Batch, Examples, Feed
from polyadapt.training.drawing import Batches, in_batches
from polyadapt_speech.master_asr.forms import SharedForm

COLUMN = "language"
NOWHERE = -1  # place of a symbol that an alphabet lacks


def languages_of(dataset: Dataset) -> tuple[str, ...]:
    """Languages in the column of that name, in order; none where there is no such column.

    Raises:
        UserError: some rows have a language and others have none.
    """
    named = [language_of(example) for example in dataset]
    found = tuple(sorted({language for language in named if language}))
    if found and not all(named):
        example = next(example for example, language in zip(dataset, named, strict=True) if not language)
        raise UserError(f"{example.source or example.id}: no language in column {COLUMN!r}, and other rows have one; name it, or leave the row out")
    return found


def language_of(example: Example) -> str:
    """The language of a row as a text, whatever its column holds; empty where it has none."""
    found = example.extra.get(COLUMN)
    return "" if found is None else str(found)


def rows_of(dataset: Dataset, language: str) -> list[int]:
    """Places of the rows of one language."""
    return [row for row, example in enumerate(dataset) if language_of(example) == language]


def alphabets_of(train: Dataset, validation: Dataset | None, given: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The symbols of every language: those given, else the letters of its training texts.

    Raises:
        UserError: letters outside, listed with counts; a language that is validated and not trained, or given and not in the data.
    """
    languages = languages_of(train)
    for language in given:
        if language not in languages:
            raise unknown("language", language, languages)
    for language in () if validation is None else languages_of(validation):
        if validation is not None and language not in languages:
            count = len(rows_of(validation, language))
            raise UserError(f'all {count} rows of language {language!r} are validated on and none is trained on; split by = "within:{COLUMN}", or leave the language out')
    found = {}
    for language in languages:
        part = train.subset(rows_of(train, language), f"{train.name}, {language}")
        found[language] = tuple(given.get(language) or alphabet_of(example.text or "" for example in part))
        refuse_alphabet(found[language], part, language)
        refuse_letters_outside(part, found[language], f"the alphabet of {language}")
        if validation is not None and (held := rows_of(validation, language)):
            refuse_letters_outside(validation.subset(held, f"{validation.name}, {language}"), found[language], f"the alphabet of {language}")
    return found


def refuse_alphabet(symbols: Sequence[str], texts: Dataset, language: str) -> None:
    """Refuse symbols of which CTC would take a letter for its blank, or count one twice.

    Raises:
        UserError: the first is a letter of the texts, or one stands there twice.
    """
    if twice := [symbol for symbol, count in Counter(symbols).items() if count > 1]:
        raise UserError(f"the alphabet of {language} has {twice[0]!r} twice; give every symbol once")
    if any(symbols[0] in (example.text or "") for example in texts):
        raise UserError(f"the alphabet of {language} begins with {symbols[0]!r}, a letter of its texts; CTC's blank stands first, such as {BLANK!r}")


def with_alphabet(model: Model, given: Mapping[str, Sequence[str]], language: str, texts: Dataset) -> Model:
    """A model that writes one language in the symbols given for it; as it is where none are.

    Raises:
        UserError: symbols are given for another language, or without a blank, or the model has no head for them.
    """
    if not given:
        return model
    if set(given) != {language}:
        raise UserError(f"alphabets are given for {', '.join(given)}, and the data hold {language}; give the alphabet of {language} alone")
    if model.task.kind != "ctc" or model.ports.head is None:
        raise UserError(f"an alphabet is given, and {model.reference} has no head over frames for it; load an encoder with task = 'ctc' and own_head = false")
    refuse_alphabet(given[language], texts, language)
    return model.with_labels(tuple(given[language]))


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
        self._inner, self._form, self._union = inner, form, tuple(union)
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
        """A batch of one language.

        Raises:
            UserError: its alphabet lacks a symbol of a target.
        """
        batch, language = self._inner.batch(rows), self._language(rows[0])
        tokens = batch.targets["tokens"]
        own = self._symbols[language].to(tokens.device)[tokens.clamp_min(0)]
        if bool((lacking := (own == NOWHERE) & (tokens >= 0)).any()):
            symbol, row = self._union[int(tokens[lacking][0])], self.examples.id(rows[int(lacking.nonzero()[0, 0])])
            raise UserError(f"{row}: symbol {symbol!r} of the transcript is not in the alphabet of {language}; add it to `alphabets`, or remove it")
        return replace(batch, targets={**batch.targets, "tokens": torch.where(tokens < 0, tokens, own)})

    def forward(self, batch: Batch) -> Mapping[str, torch.Tensor]:
        self._form.speak(self._language(batch.rows[0]))
        return self._inner.forward(batch)

    def _language(self, row: int) -> str:
        return language_of(self.examples.dataset[row])


def places_of(alphabet: Sequence[str], union: Sequence[str]) -> torch.Tensor:
    """For each symbol of the union its place in an alphabet, else that of another form of it; int64 [union], `NOWHERE` where there is none."""
    exact = {symbol: place for place, symbol in enumerate(alphabet)}
    either = {form: place for place, symbol in reversed(list(enumerate(alphabet))) for form in forms_of(symbol)}
    return torch.tensor([exact.get(symbol, next((either[form] for form in forms_of(symbol) if form in either), NOWHERE)) for symbol in union])


def forms_of(symbol: str) -> tuple[str, ...]:
    """What stands for the same: either case of a letter, a space and the separator of words."""
    return (" ", SEPARATOR) if symbol in (" ", SEPARATOR) else (symbol, symbol.upper(), symbol.lower())
