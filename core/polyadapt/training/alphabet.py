"""Alphabets: the symbols that transcripts are written in, for heads that learn them, and what lies outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from polyadapt.data.dataset import Dataset
from polyadapt.errors import UserError

BLANK = "<blank>"


def alphabet_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The blank of CTC, which stands first, and every letter of the texts in order; words are parted by a space."""
    return (BLANK, *sorted({letter for text in texts for letter in " ".join(text.split())}))


def letters_outside(texts: Iterable[str], alphabet: Sequence[str]) -> Counter[str]:
    """Letters of the texts that the alphabet has in neither case, with how often they occur."""
    known = {form for symbol in alphabet for form in (symbol, symbol.upper(), symbol.lower())}
    return Counter(letter for text in texts for letter in " ".join(text.split()) if not {letter, letter.upper(), letter.lower()} & known)


def refuse_letters_outside(dataset: Dataset, alphabet: Sequence[str], what: str = "the alphabet") -> None:
    """Refuse transcripts that cannot be written, all of them in one line.

    Args:
        dataset: with texts.
        alphabet: the symbols.
        what: how the message calls it.

    Raises:
        UserError: every letter outside, with its count.
    """
    if found := letters_outside([example.text or "" for example in dataset], alphabet):
        listed = ", ".join(f"{letter!r} ({count})" for letter, count in found.most_common())
        short = f"{len(found)} letters are not in {what} ({''.join(alphabet[1:])})"
        raise UserError(f"{dataset.name}: {short}: {listed}; spell them out, remove these rows, or train on texts that have them")
