"""Readers of KLettres and Asterisk: on small folders made here, and on the real packages where they are installed."""

from __future__ import annotations

import gzip
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest

from polyadapt.data.dataset import Dataset, open_data
from polyadapt.data.split import split_data
from polyadapt.errors import UserError
from polyadapt_speech.readers import asterisk, klettres
from polyadapt_speech.readers.card import CARDS

READERS = {card.scheme: card for card in CARDS}


def read(uri: str, **options: object) -> Dataset:
    return open_data(uri, READERS, options)


def tone(path: Path, seconds: float = 0.2) -> None:
    """WAV, whatever the name says: the content decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as stream:
        stream.setparams((1, 2, 8000, 0, "NONE", ""))
        stream.writeframes((8000 * np.sin(np.arange(round(8000 * seconds)) / 5)).astype("<i2").tobytes())


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """Two languages; the English list names a file that was never recorded, and one outside of the folder."""
    for language, names in (("en", ("A", "B", "C")), ("fr", ("A", "B", "É"))):
        sounds = "".join(f'<sound name="{name}" file="{language}/alpha/{place}.ogg"/>' for place, name in enumerate(names))
        for place in range(3):
            tone(tmp_path / language / "alpha" / f"{place}.ogg")
        tone(tmp_path / language / "syllab" / "ba.ogg")
        extra = '<sound name="Z" file="en/alpha/z.ogg"/><sound name="Y" file="../outside.ogg"/>' if language == "en" else ""
        alphabet, syllables = f"<alphabet>{sounds}{extra}</alphabet>", f'<syllables><sound name="BA" file="{language}/syllab/ba.ogg"/></syllables>'
        (tmp_path / language / "sounds.xml").write_text(f'<klettres><language code="{language}">{alphabet}{syllables}</language></klettres>', encoding="utf-8")
    tone(tmp_path.parent / "outside.ogg")
    return tmp_path


def test_letters_of_all_languages(letters: Path) -> None:
    dataset = read("data:klettres", directory=str(letters), minimum=1)
    assert [(example.id, example.label, example.text, example.extra["language"]) for example in dataset][2:4] == [
        ("en/alpha/2.ogg", "C", "C", "en"),
        ("fr/alpha/0.ogg", "A", "A", "fr"),
    ]
    assert dataset.labels == ("A", "B", "C", "É") and len(dataset) == 6 and dataset.licence == "GPL-2.0-or-later"
    assert read("data:klettres", directory=str(letters), minimum=2).labels == ("A", "B")
    both = read("data:klettres", directory=str(letters), minimum=1, part="all", language="en")
    assert [example.extra["part"] for example in both] == ["alphabet"] * 3 + ["syllables"]


def test_letters_are_split_by_language(letters: Path) -> None:
    parts = split_data(read("data:klettres", directory=str(letters), minimum=2), {"by": "group:language", "fractions": {"train": 0.5, "test": 0.5}})
    sides = [{example.extra["language"] for example in part} for part in parts.parts.values()]
    assert not sides[0] & sides[1]


def test_letters_that_are_not_there(letters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="unknown language of data:klettres 'de'; .*en, fr"):
        read("data:klettres", directory=str(letters), language="en,de")
    with pytest.raises(UserError, match="no letter has 9 recordings"):
        read("data:klettres", directory=str(letters), minimum=9)
    (letters / "fr" / "sounds.xml").write_text("<klettres><alphabet>")
    with pytest.raises(UserError, match="is not well-formed"):
        read("data:klettres", directory=str(letters), language="fr")
    monkeypatch.setattr(klettres, "DIRECTORIES", (f"{tmp_path}/none",))
    with pytest.raises(UserError, match="run: apt install klettres-data"):
        read("data:klettres")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    for folder, names in (("en_US_f_Allison", ("hello", "beep", "digits/1", "silence/5")), ("fr_CA_f_June", ("hello", "digits/1"))):
        for name in names:
            tone(tmp_path / folder / f"{name}.g722")
    (tmp_path / "en_US").symlink_to(tmp_path / "en_US_f_Allison")  # as Debian's alternatives do
    (tmp_path / "core-sounds-en.txt.gz").write_bytes(gzip.compress(b"; prompts\n\nhello: Hello: how are you?\nbeep: [a tone]\ndigits/1: one\n"))
    return tmp_path


def test_prompts_of_two_languages(prompts: Path) -> None:
    options = {"directory": str(prompts), "transcripts": str(prompts / "core-sounds-en.txt.gz")}
    dataset = read("data:asterisk-prompts", language="en,fr", **options)
    assert [(example.id, example.label, example.text) for example in dataset] == [
        ("en_US_f_Allison/digits/1.g722", "en", "one"),
        ("en_US_f_Allison/hello.g722", "en", "Hello: how are you?"),
        ("fr_CA_f_June/digits/1.g722", "fr", None),
        ("fr_CA_f_June/hello.g722", "fr", None),
    ]
    assert dataset[0].extra == {"language": "en", "speaker": "Allison", "prompt": "digits/1"}
    assert dataset.licence == "CC-BY-SA-3.0"
    assert [example.label for example in read("data:asterisk-prompts", language="fr", label="speaker", **options)] == ["June", "June"]
    assert len(read("data:asterisk-prompts", language="", label="none", **options)) == 4


def test_prompts_that_are_not_there(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="unknown language of data:asterisk-prompts 'ru'.*run: apt install asterisk-core-sounds-ru-g722"):
        read("data:asterisk-prompts", directory=str(prompts), language="ru")
    with pytest.raises(UserError, match="no file .*correct the option transcripts"):
        read("data:asterisk-prompts", directory=str(prompts), transcripts=f"{tmp_path}/none.txt")
    (tmp_path / "broken.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(UserError, match=r"broken\.gz cannot be read"):
        read("data:asterisk-prompts", directory=str(prompts), transcripts=f"{tmp_path}/broken.gz")
    monkeypatch.setattr(asterisk, "DIRECTORIES", (f"{tmp_path}/none",))
    with pytest.raises(UserError, match="run: apt install asterisk-core-sounds-en-g722"):
        read("data:asterisk-prompts")


def test_cards_import_nothing_heavy() -> None:
    code = "import sys, polyadapt_speech.entry; print(sorted({'torch', 'numpy', 'soundfile', 'av', 'transformers', 'torchaudio'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.skipif(not Path("/usr/share/klettres").is_dir(), reason="not installed; run: apt install klettres-data")
def test_the_real_letters() -> None:
    dataset = read("data:klettres", check_files=False)
    assert {"A", "E", "O"} <= set(dataset.labels) and len({example.extra["language"] for example in dataset}) >= 15
    english = read("data:klettres", language="en", minimum=1)  # every file is decoded
    assert len(english) == 26 and english.labels[0] == "A"


@pytest.mark.skipif(not Path("/usr/share/asterisk/sounds/en_US_f_Allison").is_dir(), reason="not installed; run: apt install asterisk-core-sounds-en-g722")
def test_the_real_prompts() -> None:
    dataset = read("data:asterisk-prompts", check_files=False)
    spoken = [example for example in dataset if example.text]
    assert len(dataset) > 540
    if Path(asterisk.TRANSCRIPTS).is_file():
        assert len(spoken) > 530
        assert next(example.text for example in dataset if example.extra["prompt"] == "digits/7") == "seven"
