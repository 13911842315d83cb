"""Alphabets: the symbols that transcripts are written in, for heads that learn them, and what lies outside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from polyadapt.data.dataset import Dataset
from polyadapt.errors import UserError
from polyadapt.signature import SEPARATOR

BLANK = "<blank>"
MOST_LETTERS = 12  # that a message lists


def alphabet_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The blank of CTC, which stands first, and every letter of the texts in order; words are parted by a space."""
    return (BLANK, *sorted({letter for text in texts for letter in " ".join(text.split())}))


def letters_outside(texts: Iterable[str], alphabet: Sequence[str], separator: str = SEPARATOR) -> Counter[str]:
    """Letters of the texts that the alphabet has in neither case, with how often they occur; words may be parted by its `separator`."""
    known = {form for symbol in alphabet for form in (symbol, symbol.upper(), symbol.lower())} | ({" "} if separator in alphabet else set())
    return Counter(letter for text in texts for letter in " ".join(text.split()) if not {letter, letter.upper(), letter.lower()} & known)


def refuse_letters_outside(dataset: Dataset, alphabet: Sequence[str], what: str = "the alphabet", separator: str = SEPARATOR) -> None:
    """Look at all transcripts before anything trains, and refuse what cannot be written in one line.

    Args:
        dataset: with texts.
        alphabet: the symbols, the blank first.
        what: how the message calls it.
        separator: the symbol that stands for a space.

    Raises:
        UserError: letters outside, each with its count, and where the first stands.
    """
    if found := letters_outside([example.text or "" for example in dataset], alphabet, separator):
        first = next(example for example in dataset if letters_outside([example.text or ""], alphabet, separator))
        listed = ", ".join(f"{letter!r} ({count})" for letter, count in found.most_common(MOST_LETTERS)) + (", …" if len(found) > MOST_LETTERS else "")
        raise UserError(
            f"{dataset.name}, {first.source or first.id}: transcripts hold {len(found)} letters that are not in {what} ({''.join(alphabet[1:])[:60]}): {listed}; "
            "spell them out, remove these rows, or train on texts that have them"
        )
