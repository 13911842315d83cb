"""Master-ASR's data: languages whatever their column holds, and targets in each language's own alphabet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

import polyadapt as pa
from polyadapt.data.dataset import Dataset, Example
from polyadapt.errors import UserError
from polyadapt.methods.head import HeadForm
from polyadapt.training.batches import Examples, PlainFeed
from polyadapt_speech.master_asr.card import MasterAsrOptions
from polyadapt_speech.master_asr.forms import RowsForm, SharedForm
from polyadapt_speech.master_asr.languages import NOWHERE, LanguageFeed, alphabets_of, languages_of, places_of, rows_of, single_language_batches
from polyadapt_speech.master_asr.method import adapted_ports
from polyadapt_speech.master_asr.specialists import make_specialists


def rows(*said: tuple[Any, str]) -> Dataset:
    """A language and a text a row, with a second of silence."""
    return Dataset("rows", [Example(f"{row}", (np.zeros(16000, np.float32), 16000), text=text, extra={"language": language}) for row, (language, text) in enumerate(said)], "audio")


def feed_of(data: Dataset, alphabets: Mapping[str, Sequence[str]]) -> LanguageFeed:
    union = tuple(dict.fromkeys(symbol for alphabet in alphabets.values() for symbol in alphabet))
    model, generator, options = pa.load("polyadapt:tiny-whisper", task="ctc").with_labels(union), torch.Generator().manual_seed(0), MasterAsrOptions(specialists=1)
    ports = adapted_ports(model, options)
    form = RowsForm(ports, make_specialists(ports, options, generator), len(alphabets), options, generator)
    heads = {language: HeadForm(32, len(alphabet), "linear", generator) for language, alphabet in alphabets.items()}
    return LanguageFeed(PlainFeed(Examples(data, model, 10**8), model.module, torch.device("cpu")), SharedForm(form, heads, None, options), union, alphabets)


def written(feed: LanguageFeed, row: int, alphabet: Sequence[str]) -> list[str]:
    return [alphabet[place] for place in feed.batch([row]).targets["tokens"][0].tolist() if place >= 0]


def test_batches_are_of_one_language_and_hold_every_row_once() -> None:
    languages = [*"xxxxx", *"yyy", "z"]
    batches = single_language_batches(languages, 2)
    for epoch in range(3):
        found = batches(7, epoch)
        assert sorted(row for batch in found for row in batch) == list(range(9))
        assert all(len({languages[row] for row in batch}) == 1 for batch in found) and len(found) == 3 + 2 + 1
    assert batches(7, 0) == batches(7, 0) != batches(7, 1)


def test_languages_may_be_numbers() -> None:
    data = rows((0, "ab"), (1, "cd"), (0, "ba"))
    assert languages_of(data) == ("0", "1") and rows_of(data, "0") == [0, 2]
    assert alphabets_of(data, None, {}) == {"0": ("<blank>", "a", "b"), "1": ("<blank>", "c", "d")}
    with pytest.raises(UserError, match="no language in column 'language'"):
        languages_of(rows((0, "ab"), (None, "cd")))


def test_a_bar_in_one_language_leaves_the_spaces_of_all_others() -> None:
    """The union writes every space as the separator once one language has it; each alphabet has its own of the two."""
    data = rows(("x", "a b"), ("z", "c|d"), ("z", "c d"))
    alphabets = alphabets_of(data, None, {})
    assert alphabets == {"x": ("<blank>", " ", "a", "b"), "z": ("<blank>", " ", "c", "d", "|")}
    feed = feed_of(data, alphabets)
    assert written(feed, 0, alphabets["x"]) == ["a", " ", "b"]
    assert written(feed, 1, alphabets["z"]) == ["c", "|", "d"] == written(feed, 2, alphabets["z"])  # read back as spaces, both


def test_places_are_those_of_any_form_of_a_symbol() -> None:
    union = ("<blank>", "a", "B", "|", "\u017f", "q")
    assert places_of(("<blank>", "b", " ", "A", "s", "a"), union).tolist() == [0, 5, 1, 2, 4, NOWHERE]
    assert places_of(("<blank>", "|", "B"), ("<blank>", " ", "b")).tolist() == [0, 1, 2]


def test_a_target_that_an_alphabet_cannot_write_is_no_blank() -> None:
    feed = feed_of(rows(("x", "ab"), ("z", "ab")), {"x": ("<blank>", "a", "b"), "z": ("<blank>", "a")})
    assert written(feed, 0, ("<blank>", "a", "b")) == ["a", "b"]
    with pytest.raises(UserError, match="1: symbol 'b' of the transcript is not in the alphabet of z"):
        feed.batch([1])
