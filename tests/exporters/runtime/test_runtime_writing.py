"""Tokens become text as they come: stop texts, half characters, and the same text however it is cut into tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from polyadapt_runtime.text import TextReader
from polyadapt_runtime.writing import with_text


class Pieces(TextReader):
    """Ids stand for pieces of bytes; a space before the first word is dropped, as some tokenizers do."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        super().__init__({"inputs": {}}, Path("any"))
        self._pieces = pieces
        self.decoded = 0

    def decode(self, ids: Sequence[int]) -> str:
        self.decoded += len(ids)
        return b"".join(self._pieces[index] for index in ids).decode(errors="replace").removeprefix(" ")


def texts(pieces: Sequence[bytes], stop: Sequence[str] = ()) -> list[str]:
    return [token.text for token in with_text(iter(range(len(pieces))), Pieces(pieces), stop)]


@pytest.mark.parametrize(
    ("pieces", "stop", "expected"),
    [
        ([b"one", b" two", b" three"], [], ["one", " two", " three"]),
        ([b"one", b" END", b" three"], ["END"], ["one", " "]),
        ([b"one", b" E", b"N", b"D", b"!"], ["END"], ["one", "", "", " "]),
        ([b"one", b" E", b"N", b"s", b"!"], ["END"], ["one", "", "", " ENs", "!"]),  # it only looked like a stop text
        ([b"one", b" E", b"N"], ["END"], ["one", "", " EN"]),  # the text ends before that is known
        ([b"aab", b"aaab"], ["aaab"], ["aab", ""]),
        ([b"a", b"a", b"a", b"b"], ["aab"], ["", "", "", "a"]),
        ([b"x", b"STOP two END"], ["END", "STOP"], ["x", ""]),  # the first of several
        ([b"x", "é".encode()[:1], "é".encode()[1:], b"y"], ["é"], ["x", "", ""]),
        ([b"x", "é".encode()[:1]], [], ["x", "\ufffd"]),  # cut in half by the number of tokens
    ],
)
def test_nothing_at_or_behind_a_stop_text_is_given(pieces: list[bytes], stop: list[str], expected: list[str]) -> None:
    assert texts(pieces, stop) == expected


def test_no_token_is_lost() -> None:
    pieces = [b"a", b"EN", b"s", b"EN"]
    assert [token.id for token in with_text(iter(range(4)), Pieces(pieces), ["END"])] == [0, 1, 2, 3]


def test_a_token_is_given_as_soon_as_its_text_is_known() -> None:
    taken: list[int] = []

    def ids() -> list[int]:
        for token in range(4):
            taken.append(token)
            yield token

    stream = with_text(ids(), Pieces([b"one", b" E", b"s", b" two"]), ["END"])
    assert next(stream).text == "one" and taken == [0]
    assert next(stream).text == "" and taken == [0, 1, 2]  # " E" waits for what follows


def test_the_cost_of_a_token_does_not_grow_with_the_text() -> None:
    reader = Pieces([b" word"] * 400)
    assert "".join(token.text for token in with_text(iter(range(400)), reader)) == " word".join([""] * 401).removeprefix(" ")
    assert reader.decoded <= 5 * 400
