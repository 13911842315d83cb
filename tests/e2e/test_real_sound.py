"""Real speech, real weights: a recording of many sentences is transcribed whole, with times, and in a language of choice."""

from __future__ import annotations

import itertools
import wave
from pathlib import Path

import numpy as np
import pytest

import polyadapt as pa
from polyadapt.data.dataset import open_data
from polyadapt_runtime import Bundle, InputError, text_of, transcribe
from polyadapt_runtime.sound import open_sound
from polyadapt_speech.readers import asterisk
from polyadapt_speech.readers.card import CARDS

PAUSE_S = 0.5
HAS_PROMPTS = Path("/usr/share/asterisk/sounds/en_US_f_Allison").is_dir() and Path(asterisk.TRANSCRIPTS).is_file()


def recording(path: Path, sentences: int) -> tuple[list[tuple[float, float, str]], Path]:
    """Prompts one after another with pauses: when each begins and ends, and what it says."""
    dataset = open_data("data:asterisk-prompts", {card.scheme: card for card in CARDS}, {"check_files": False})
    spoken = [example for example in dataset if example.text and 4 <= len(example.text.split()) <= 14][:sentences]
    said: list[tuple[float, float, str]] = []
    parts: list[np.ndarray] = []
    for example in spoken:
        samples = np.concatenate(list(open_sound(example.raw).mono()))
        begin = sum(map(len, parts)) / 16000
        said.append((begin, begin + len(samples) / 16000, str(example.text)))
        parts += [samples, np.zeros(round(PAUSE_S * 16000), np.float32)]
    with wave.open(str(path), "wb") as stream:
        stream.setparams((1, 2, 16000, 0, "NONE", ""))
        stream.writeframes(np.rint(32767 * np.concatenate(parts)).astype("<i2").tobytes())
    return said, path


@pytest.mark.slow
@pytest.mark.weights("polyadapt:whisper-tiny.en")
@pytest.mark.skipif(not HAS_PROMPTS, reason="not installed; run: apt install asterisk-core-sounds-en asterisk-core-sounds-en-g722")
def test_a_recording_longer_than_a_window_is_transcribed_whole_and_with_times(tmp_path: Path) -> None:
    jiwer = pytest.importorskip("jiwer")
    pytest.importorskip("av", reason="pip install 'polyadapt[codecs]'")
    said, path = recording(tmp_path / "long.wav", 20)
    assert said[-1][1] > 60
    bundle = Bundle(pa.export(pa.load("polyadapt:whisper-tiny.en"), {}, tmp_path / "ears.bundle").directory, device="cpu", threads=1)
    segments = list(transcribe(bundle, path))
    plain = [[word.strip(".,!?").lower() for word in text.replace("-", " ").split()] for text in (" ".join(text for _, _, text in said), text_of(segments))]
    assert jiwer.wer(" ".join(plain[0]), " ".join(plain[1])) < 0.10  # 0.01 here, and 0.57 with `timestamps=False`: without times this model leaves sentences out of long windows
    edges = np.array([time for begin, end, _ in said for time in (begin, end)])
    distances = [float(np.abs(edges - time).min()) for segment in segments for time in (segment.start_s, segment.end_s)]
    assert np.median(distances) < 0.3, "segments begin and end where sentences do"
    assert all(one.start_s < one.end_s and one.end_s <= two.start_s + 1e-6 for one, two in itertools.pairwise(segments))
    with pytest.raises(InputError, match="no choice of languages, asked was 'fr'"):
        bundle.generate(path, language="fr")
