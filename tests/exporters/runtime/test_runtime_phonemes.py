"""Pre-processing of kind `phonemes`: espeak-ng as a program, the table of symbols, ids as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyadapt_runtime import phonemes
from polyadapt_runtime.errors import InputError, ManifestError
from polyadapt_runtime.preprocess import Processor

TABLE = {symbol: [number] for number, symbol in enumerate("_^$ abdefhijklmnopstuvwxyz,.?ˈˌːəɪɛæɑɔʊʌθðŋʃʒɹɡɚɜɐ\u0327")}
SPEC: dict[str, Any] = {"kind": "phonemes", "symbols": "phonemes", "language": "en-us", "pad_id": 0, "inputs": {"ids": "input_ids", "mask": "attention_mask"}}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "voice.json"
    path.write_text(json.dumps({"phoneme_id_map": TABLE}), encoding="utf-8")
    return path


def made(table: Path | None, **changes: Any) -> Processor:
    return Processor({**SPEC, **changes}, {} if table is None else {"phonemes": table})


class Said:
    """In the place of the program: what it was asked, and an answer that names the words."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clauses: list[str] = []
        monkeypatch.setattr(phonemes.PhonemeReader, "_speak", self._answer)

    def _answer(self, clause: str) -> str:
        if clause.strip():
            self.clauses.append(clause.strip())
        return clause.strip().lower()


def test_a_text_becomes_symbols_with_pads_between(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said(monkeypatch)
    found = made(table)("No, it is.")
    assert said.clauses == ["No", "it is"]
    signs = "no, it is."
    assert found["input_ids"].tolist() == [1, 0, *(number for sign in signs for number in (TABLE[sign][0], 0)), 2]
    assert found["input_ids"].dtype == np.int64 and found["attention_mask"].tolist() == [1] * (2 * len(signs) + 3)


def test_marks_inside_a_number_do_not_end_a_clause(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said(monkeypatch)
    with pytest.raises(InputError):
        made(table)("Pi is 3.14, or 1,000 of it?")
    assert said.clauses == ["Pi is 3.14", "or 1,000 of it"]


def test_letters_with_marks_are_taken_apart(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Said(monkeypatch)
    for written in ("\u0229", "e\u0327"):  # composed or not, a letter and its mark are two symbols
        assert made(table)(written)["input_ids"].tolist()[2:-1:2] == [TABLE["e"][0], TABLE["\u0327"][0]]


def test_phonemes_that_a_voice_does_not_know_are_named_with_counts(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Said(monkeypatch)
    with pytest.raises(InputError, match=r"does not know the phonemes 'ß' \(2 times\), 'ü' .*en-us|'ß' \(2 times\), 'c' \(1 times\)"):
        made(table)("ßcß")


def test_ids_go_in_as_they_are() -> None:
    """Without a table and without the program."""
    processor = made(None, language="")
    batch = processor.collate([processor(np.array([1, 5, 0, 2])), processor(np.array([1, 2]))])
    assert batch["input_ids"].tolist() == [[1, 5, 0, 2], [1, 2, 0, 0]] and batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert processor.pads_exactly


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (3.5, "string or an int array of phoneme ids, found float"),
        (np.array([0.5]), "found ndarray"),
        ("   ", "nothing in '   ' can be spoken"),
        ("?!...", "can be spoken"),
    ],
)
def test_what_cannot_be_spoken_is_refused(table: Path, raw: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        made(table)(raw)


def test_a_text_without_program_language_or_table_says_what_is_missing(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="which this bundle does not name; or give phoneme ids"):
        made(table, language="")("word")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"the program espeak-ng, which is not installed \(Debian: apt-get install espeak-ng\); or give phoneme ids"):
        made(table)("word")
    Said(monkeypatch)
    with pytest.raises(InputError, match="no table of phonemes among its assets"):
        made(None)("word")
    for content in ("[]", "{", '{"phoneme_id_map": {"a": "b"}}', '{"phoneme_id_map": {"a": [1]}}'):
        table.write_text(content, encoding="utf-8")
        reader = made(table)
        for _ in range(2):  # what was refused once is not kept for the next call
            with pytest.raises(InputError, match=r"voice\.json(: the table of phonemes lacks '\^'| is no table of phonemes)"):
                reader("word")


def test_a_program_that_hangs_is_left(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "espeak-ng"
    program.write_text("#!/bin/sh\nexec /bin/sleep 30\n", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(phonemes, "WAIT_S", 0.2)
    with pytest.raises(InputError, match="did not answer within"):
        made(table)("word")


@pytest.mark.parametrize("language", ["-f/etc/passwd", "../../x", "en us", "en;ls"])
def test_a_language_is_a_name_and_nothing_else(table: Path, language: str) -> None:
    with pytest.raises(ManifestError, match="is no language of espeak-ng"):
        made(table, language=language)


def test_long_texts_are_refused_and_not_cut(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Said(monkeypatch)
    with pytest.raises(InputError, match="has 13 ids, at most 12 are taken"):
        made(table, maximum_tokens=12)("abdef")
    assert len(made(table, maximum_tokens=13)("abdef")["input_ids"]) == 13


@pytest.mark.program("espeak-ng")
def test_espeak_speaks_clause_by_clause(table: Path) -> None:
    reader = phonemes.PhonemeReader(SPEC, table)
    assert reader.phonemes("The dog, a fox. Is it so?") == "ðə dˈɑːɡ, ɐ fˈɑːks. ɪz ɪt sˈoʊ?"
    assert reader.phonemes("-v de") == reader.phonemes("v de")  # what begins like a switch is text
    with pytest.raises(InputError, match="espeak-ng cannot speak 'nosuch'"):
        phonemes.PhonemeReader({**SPEC, "language": "nosuch"}, table).phonemes("word")
