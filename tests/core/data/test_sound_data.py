"""Recordings as data: silence at the ends left out, several languages, speakers kept on one side, files that are not what they say."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from polyadapt.data.dataset import Dataset, Example, open_data
from polyadapt.data.readers.card import CARDS
from polyadapt.data.split import split_data
from polyadapt.data.trim import FRAME_S, MARGIN_S, loud_part
from polyadapt.errors import UserError
from polyadapt_runtime import Clip
from polyadapt_runtime.audio import read_audio

READERS = {card.scheme: card for card in CARDS}


def read(uri: str, **options: object) -> Dataset:
    return open_data(uri, READERS, options)


def write(path: Path, samples: np.ndarray, rate: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as stream:
        stream.setparams((1, 2, rate, 0, "NONE", ""))
        stream.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return path


def tone(seconds: float, rate: int = 8000, loudness: float = 0.5) -> np.ndarray:
    found: np.ndarray = loudness * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    return found


def padded(seconds: float, hum: float = 0.0) -> np.ndarray:
    """Half a second of nothing (or a faint hum), a tone, and a second of nothing."""
    quiet = tone(0.5, loudness=hum)
    return np.concatenate([quiet, tone(seconds), quiet, quiet])


@pytest.mark.parametrize(("hum", "trim_db", "is_trimmed"), [(0.0, 60.0, True), (0.001, 40.0, True), (0.001, 60.0, False)])
def test_silence_at_the_ends_is_left_out(tmp_path: Path, hum: float, trim_db: float, is_trimmed: bool) -> None:
    path = write(tmp_path / "s.wav", padded(0.3, hum))
    found = loud_part(Clip(path), trim_db)
    if is_trimmed:
        assert (found.start_s, found.end_s) == (pytest.approx(0.45, abs=0.011), pytest.approx(0.85, abs=0.011))  # with 50 ms to each side
    else:
        assert (found.start_s, found.end_s) == (0.0, pytest.approx(1.8, abs=1e-3))


@pytest.mark.parametrize("rate", [22050, 11025])
def test_long_silence_before_a_sound_moves_nothing(tmp_path: Path, rate: int) -> None:
    """A frame of 10 ms is a whole number of samples: 220 at 22.05 kHz, which are 9.977 ms."""
    path = write(tmp_path / "s.wav", np.concatenate([np.zeros(60 * rate), tone(0.5, rate), np.zeros(rate)]), rate)
    found = loud_part(Clip(path), 40.0)
    assert found.start_s == pytest.approx(60.0 - MARGIN_S, abs=FRAME_S + 1e-3) and found.start_s <= 60.0
    assert found.end_s == pytest.approx(60.5 + MARGIN_S, abs=FRAME_S + 1e-3)


def test_a_silent_recording_stays_whole_and_parts_of_parts_add_up(tmp_path: Path) -> None:
    path = write(tmp_path / "s.wav", np.zeros(4000))
    assert loud_part(Clip(path), 40.0) == Clip(path)
    path = write(tmp_path / "t.wav", padded(0.3))
    assert loud_part(Clip(path, 0.2), 40.0) == loud_part(Clip(path), 40.0)


def test_trimmed_recordings_are_shorter_and_have_digests_of_their_own(tmp_path: Path) -> None:
    for label in "ab":
        for row in range(2):
            write(tmp_path / label / f"{row}.wav", padded(0.2 + 0.1 * row))
    whole, short = (read(f"folder:{tmp_path}", trim_db=trim_db) for trim_db in (0.0, 40.0))
    assert [example.file for example in whole] == [example.file for example in short]
    assert all(isinstance(example.raw, Clip) for example in short) and whole.hash != short.hash
    lengths = [len(read_audio(example.raw, {"sample_rate_hz": 16000})) / 16000 for example in short]
    assert lengths == [pytest.approx(0.3, abs=0.02), pytest.approx(0.4, abs=0.02)] * 2
    with pytest.raises(UserError, match="trim_db"):
        read(f"folder:{tmp_path}", trim_db=-3)


def test_pictures_are_left_as_they_are(tmp_path: Path) -> None:
    from PIL import Image

    for label in "ab":
        (tmp_path / label).mkdir()
        Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / label / "x.png")
    assert all(isinstance(example.raw, Path) for example in read(f"folder:{tmp_path}", trim_db=40.0))


def test_speakers_stay_on_one_side_and_languages_are_columns(tmp_path: Path) -> None:
    rows = ["path,text,speaker,language"]
    for speaker in range(6):
        for take in range(3):
            write(tmp_path / f"{speaker}-{take}.wav", tone(0.1, loudness=0.1 + 0.01 * take + 0.1 * speaker))
            rows.append(f"{speaker}-{take}.wav,take {take},s{speaker},{'fr' if speaker % 2 else 'en'}")
    (tmp_path / "clips.csv").write_text("\n".join(rows))
    dataset = read(f"csv:{tmp_path}/clips.csv")
    assert dataset.media == "audio" and dataset[4].extra == {"speaker": "s1", "language": "fr"}
    parts = split_data(dataset, {"by": "group:speaker"})
    sides = [{example.extra["speaker"] for example in part} for part in parts.parts.values()]
    assert len(sides) == 3 and all(sides) and not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert sorted(len(part) for part in parts.parts.values()) == [3, 3, 12]


def test_what_a_file_is_its_content_says(tmp_path: Path) -> None:
    import soundfile

    for label in "ab":
        (tmp_path / "wrong" / label).mkdir(parents=True)
        soundfile.write(tmp_path / "wrong" / label / "really-flac.wav", tone(0.1), 8000, format="FLAC")
        (tmp_path / "broken" / label).mkdir(parents=True)
        (tmp_path / "broken" / label / "x.mp3").write_bytes(b"%PDF-1.7 no sound at all")
    assert len(read(f"folder:{tmp_path}/wrong")) == 2
    with pytest.raises(UserError, match=r"cannot open .*a/x\.mp3 .*not whole audio.*and 1 more like it"):
        read(f"folder:{tmp_path}/broken")


def film(path: Path) -> Path:
    """A tone as the sound of a film, without pictures."""
    av = pytest.importorskip("av", reason="pip install 'polyadapt[codecs]'")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(0.5).astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate = 8000
        for packet in (*stream.encode(frame), *stream.encode(None)):
            container.mux(packet)
    return path


def test_films_are_recordings_where_nobody_took_pictures(tmp_path: Path) -> None:
    import soundfile
    from PIL import Image

    for label in "ab":
        for ending in ("mp4", "mkv", "mov"):
            film(tmp_path / "films" / label / f"x.{ending}")
        soundfile.write(tmp_path / "films" / label / "x.caf", tone(0.1), 8000)
        film(tmp_path / "phone" / label / "IMG_1.MOV")
        Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "phone" / label / "IMG_1.png")
    film(tmp_path / "phone" / "how it was made.mp4")
    films, phone = read(f"folder:{tmp_path}/films"), read(f"folder:{tmp_path}/phone")
    assert (films.media, len(films)) == ("audio", 8) and (phone.media, len(phone)) == ("image", 2)
    assert len(read(f"folder:{tmp_path}/phone", media="audio")) == 2
    assert [round(len(read_audio(example.raw, {"sample_rate_hz": 8000})) / 8000, 1) for example in films][:2] == [0.1, 0.5]
    (tmp_path / "clips.csv").write_text("path,label\nfilms/a/x.mp4,a\nfilms/b/x.caf,b\n")
    assert read(f"csv:{tmp_path}/clips.csv").media == "audio"
    write(tmp_path / "phone" / "a" / "y.wav", tone(0.1))
    with pytest.raises(UserError, match="mixes 2 images and 3 audio files"):
        read(f"folder:{tmp_path}/phone")


def test_arrays_are_sounds_where_they_say_their_rate(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((3, 400), np.float32) * 0.1, y=np.array([0, 1, 0]))
    sounds, numbers = read(f"npz:{tmp_path}/d.npz", sample_rate_hz=8000), read(f"npz:{tmp_path}/d.npz")
    assert (sounds.media, numbers.media) == ("audio", "array") and sounds.hash != numbers.hash
    assert read_audio(sounds[0].raw, {"sample_rate_hz": 16000}).shape == (800,)


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    """Three stamps, read aloud in French; two of them in Romanian."""
    for name, english, french, romanian in (("cat", "A cat.", "Un chat.", "O pisică."), ("dog", "A dog.", "Un chien.", "Un câine."), ("egg", "An egg.", "Un œuf.", "Un ou.")):
        path = tmp_path / "things" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{english}\nfr.utf8={french}\nro.utf8={romanian}\n", encoding="utf-8")
        for language in ("fr", "ro") if name != "egg" else ("fr",):
            write(path.with_name(f"{name}_desc_{language}.ogg"), tone(0.1))
    return tmp_path


def test_captions_in_several_languages(stamps: Path) -> None:
    dataset = read("data:tux-paint-captions", directory=str(stamps), language="fr, ro", minimum=1)
    assert [(example.id, example.extra["language"], example.text) for example in dataset] == [
        ("things/cat (fr)", "fr", "Un chat."),
        ("things/dog (fr)", "fr", "Un chien."),
        ("things/egg (fr)", "fr", "Un œuf."),
        ("things/cat (ro)", "ro", "O pisică."),
        ("things/dog (ro)", "ro", "Un câine."),
    ]
    assert dataset.labels == ("o", "un")
    parts = split_data(read("data:tux-paint-captions", directory=str(stamps), language="fr,ro", minimum=2), {"by": "group:caption", "fractions": {"train": 0.5, "test": 0.5}})
    sides = [{example.extra["caption"] for example in part} for part in parts.parts.values()]
    assert not sides[0] & sides[1], "a sentence stays on one side in all languages"
    with pytest.raises(UserError, match="unknown language of recorded captions 'xx'; .*fr.*ro"):
        read("data:tux-paint-captions", directory=str(stamps), language="fr,xx")
    for wrong in ("", "fr,fr"):
        with pytest.raises(UserError, match="give one or several different codes"):
            read("data:tux-paint-captions", directory=str(stamps), language=wrong)


def test_sentences_that_are_read_alike_are_one(tmp_path: Path) -> None:
    """Three English captions are one in Spanish, but for case and a full stop: a test sentence of training would flatter."""
    for name, english, spanish in (("a", "A grave.", "Una lápida."), ("b", "A tomb.", "una lápida"), ("c", "A stone.", "Una piedra."), ("d", "A tomb.", "Una tumba.")):
        path = tmp_path / "things" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{english}\nes.utf8={spanish}\n", encoding="utf-8")
        write(path.with_name(f"{name}_desc_es.ogg"), tone(0.1))
    dataset = read("data:tux-paint-captions", directory=str(tmp_path), language="es", minimum=1)
    assert [example.extra["caption"] for example in dataset] == ["A grave.", "A grave.", "A stone.", "A grave."]


def test_spoken_digits(tmp_path: Path) -> None:
    folder = tmp_path / "symbols" / "math"
    for name in ("3.ogg", "3_de.ogg", "3_desc_fr.ogg", "4_de.ogg", "4_zh_tw.ogg", "plus_de.ogg", "13_de.ogg"):
        write(folder / name, tone(0.1))
    (folder / "3.txt").write_text("Three.\nde.utf8=Drei.\n", encoding="utf-8")
    dataset = read("data:tux-paint-digits", directory=str(tmp_path))
    assert [(example.id, example.label, example.extra["language"], example.text) for example in dataset] == [
        ("3.ogg", "3", "en", "Three."),
        ("3_de.ogg", "3", "de", "Drei."),
        ("3_desc_fr.ogg", "3", "fr", None),
        ("4_de.ogg", "4", "de", None),
        ("4_zh_tw.ogg", "4", "zh_tw", None),
    ]
    assert len(read("data:tux-paint-digits", directory=str(tmp_path), language="de,fr")) == 3
    with pytest.raises(UserError, match="unknown language of data:tux-paint-digits 'xx'; known: de, en, fr, zh_tw"):
        read("data:tux-paint-digits", directory=str(tmp_path), language="xx")
    with pytest.raises(UserError, match="run: apt install tuxpaint-stamps-default"):
        read("data:tux-paint-digits", directory=str(folder))


@pytest.mark.skipif(not Path("/usr/share/tuxpaint/stamps").is_dir(), reason="not installed; run: apt install tuxpaint-stamps-default")
def test_the_real_digits_and_captions() -> None:
    digits = read("data:tux-paint-digits")  # every file is decoded
    assert digits.labels == tuple("0123456789") and len(digits) > 200 and len({example.extra["language"] for example in digits}) > 15
    captions = read("data:tux-paint-captions", language="fr,ro", minimum=1, check_files=False)
    counts = {language: sum(example.extra["language"] == language for example in captions) for language in ("fr", "ro")}
    assert min(counts.values()) > 800


def test_raw_inputs_know_their_file() -> None:
    assert Example("a", Path("x.wav")).file == Path("x.wav") == Example("a", Clip(Path("x.wav"), 1.0)).file
    assert Example("a", "text").file is None and Example("a", (np.zeros(3), 8000)).file is None


def test_recordings_that_are_too_long_are_left_out(tmp_path: Path) -> None:
    """Measured without the silence, where that is left out."""
    for name, seconds in (("short", 0.3), ("long", 0.9)):
        for number in range(2):
            write(tmp_path / name / f"{number}.wav", padded(seconds))
    every = f"folder:{tmp_path}"
    assert len(read(every)) == len(read(every, maximum_seconds=2.4)) == 4
    assert {example.label for example in read(every, trim_db=40.0, maximum_seconds=0.5)} == {"short"}
    with pytest.raises(UserError, match=r"no recording lasts at most maximum_seconds = 0.5: the shortest takes 1.80 s"):
        read(every, maximum_seconds=0.5)
