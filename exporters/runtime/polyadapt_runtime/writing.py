"""Tokens become text as they come: no half characters, and nothing at or behind a stop text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from polyadapt_runtime.text import TextReader

HALF = "\ufffd"  # what a decoder gives for bytes that are no whole character


@dataclass(frozen=True)
class Token:
    """One generated token and the text it adds; empty while a character is not complete."""

    id: int
    text: str


class Growing:
    """The text of ids that grow. Only the newest ids are decoded again, so a long text costs no more per token than a short one."""

    def __init__(self, reader: TextReader) -> None:
        self._reader = reader
        self._ids: list[int] = []
        self._before, self._read = 0, 0  # ids[:read] are text already; decoding begins at `before`, so that the spaces between words come out right

    def add(self, token: int) -> str:
        """The text that became complete with one more token."""
        self._ids.append(token)
        new = self.rest()
        if new.endswith(HALF):
            return ""
        self._before, self._read = self._read, len(self._ids)
        return new

    @property
    def is_whole(self) -> bool:
        """Whether all ids are text already."""
        return self._read == len(self._ids)

    def rest(self) -> str:
        """The text that is not given out yet, half characters included."""
        return self._reader.decode(self._ids[self._before :])[len(self._reader.decode(self._ids[self._before : self._read])) :]


def with_text(ids: Iterator[int], reader: TextReader | None, stop: Sequence[str] = ()) -> Iterator[Token]:
    """Tokens with the text each adds.

    Tokens whose text may still turn into the beginning of a stop text, or into half a character, are held back until that
    is known; the last of them then carries the text.

    Args:
        ids: tokens as they are chosen.
        reader: turns them into text; None leaves texts empty.
        stop: texts that end the text; what comes from the first of them on is not given out.
    """
    if reader is None:
        yield from (Token(token, "") for token in ids)
        return
    growing, held, text = Growing(reader), list[int](), ""
    for token in ids:
        held.append(token)
        text += growing.add(token)
        found = [place for word in stop if (place := text.find(word)) >= 0]
        if found:
            yield from _given(held, text[: min(found)])
            return
        if growing.is_whole and not may_begin(text, stop):
            yield from _given(held, text)
            held, text = [], ""
    yield from _given(held, text + (growing.rest() if held else ""))


def may_begin(text: str, stop: Sequence[str]) -> bool:
    """Whether the end of a text may be the beginning of a stop text."""
    return any(text.endswith(word[:size]) for word in stop for size in range(1, len(word)))


def _given(ids: Sequence[int], text: str) -> Iterator[Token]:
    """Tokens that came while nothing was given out, the last with the text of them all."""
    for place, token in enumerate(ids):
        yield Token(token, text if place == len(ids) - 1 else "")
