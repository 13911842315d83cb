"""Windows over long sounds and streams: times, coverage, and the same answers as for single clips."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyadapt_runtime import Bundle, InputError, classify_windows, mean_prediction
from polyadapt_runtime.sound import Sound
from polyadapt_runtime.windows import cut

RATE = 8000
# Loudness and the mean, so that a window's answer depends on every sample of it.
GRAPH = """
agraph (float[batch, samples] audio) => (float[batch, 3] logits)
{
    squares = Mul(audio, audio)
    power = ReduceMean <keepdims = 1> (squares, last)
    mean = ReduceMean <keepdims = 1> (audio, last)
    both = Concat <axis = 1> (power, mean)
    scores = MatMul(both, W)
    logits = Add(scores, b)
}
"""


def made(kit: Any, **limits: float) -> Any:
    made = kit.classifier()
    weights = {"W": np.array([[30, -20, 5], [4, 9, -7]], np.float32), "b": np.array([0, 1, 0.5], np.float32), "last": np.array([-1], np.int64)}
    made.model, made.slots = kit.graph(GRAPH, weights, {}, {}), {}
    made.manifest.update(
        task={"kind": "classification", "labels": ["loud", "soft", "odd"], "metric": "accuracy", "details": {}},
        inputs=[{"name": "audio", "dtype": "float32", "shape": ["batch", "samples"], "meaning": "sound", "unit": ""}],
        outputs=[{"name": "logits", "dtype": "float32", "shape": ["batch", 3], "meaning": "scores", "unit": ""}],
        preprocess={"kind": "audio", "input": "audio", "sample_rate_hz": RATE, "seconds": None, **limits},
    )
    return made


@pytest.fixture(scope="module")
def bundle(kit: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(kit.write(tmp_path_factory.mktemp("windows") / "ears.bundle", made(kit, maximum_seconds=4.0)))


def speech(seconds: float, rate: int = RATE) -> np.ndarray:
    generator = np.random.default_rng(3)
    envelope = np.repeat(generator.uniform(0.05, 0.9, round(seconds * 10) + 1), rate // 10)
    samples: np.ndarray = (envelope * generator.uniform(-1, 1, len(envelope)))[: round(seconds * rate)].astype(np.float32)
    return samples


@pytest.mark.parametrize("length", [1, 9, 10, 11, 14, 15, 16, 40, 41, 43])
@pytest.mark.parametrize(("size", "hop"), [(10, 10), (10, 4), (10, 1), (3, 3)])
@pytest.mark.parametrize("block", [1, 7, 100])
def test_windows_cover_everything_whatever_the_blocks(length: int, size: int, hop: int, block: int) -> None:
    samples = np.arange(length, dtype=np.float32)
    found = list(cut((samples[start : start + block] for start in range(0, length, block)), size, hop))
    for first, window in found:
        assert np.array_equal(window, samples[first : first + size])
        assert len(window) == min(size, length)
    starts = [first for first, _ in found]
    assert starts[0] == 0 and starts == sorted(set(starts))
    assert {int(value) for _, window in found for value in window} == set(range(length))
    assert all(first == place * hop for place, first in enumerate(starts[:-1]))


def test_no_sound_gives_no_window() -> None:
    assert list(cut([], 10, 5)) == []


@pytest.mark.parametrize("rate", [RATE, 11025])
def test_a_window_is_answered_as_a_clip_of_its_own(bundle: Bundle, rate: int) -> None:
    samples = speech(5.3, rate)
    windows = list(classify_windows(bundle, (samples, rate), 2.0, 0.5))
    assert [window.start_s for window in windows[:-1]] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0], abs=1e-3)
    assert windows[-1].end_s == pytest.approx(5.3, abs=1e-4) and windows[-1].start_s == pytest.approx(3.3, abs=1e-4)
    for window in windows:
        start, stop = round(window.start_s * rate), round(window.end_s * rate)
        alone = bundle((samples[start:stop], rate))
        assert (window.label, window.score) == (alone.label, pytest.approx(alone.score, abs=1e-6))
    assert len({round(window.score, 4) for window in windows}) > 3, "the windows differ"


@pytest.mark.parametrize("setting", ["seconds", "maximum_seconds"])
def test_windows_as_long_as_the_model_hears_are_not_cut(kit: Any, tmp_path: Path, setting: str, caplog: pytest.LogCaptureFixture) -> None:
    """1.31 s are 14442.75 samples at 11025 Hz: a window of them is rounded up, and so is the limit."""
    ears = Bundle(kit.write(tmp_path / "ears.bundle", made(kit, **{setting: 1.31})))
    for rate in (11025, 22050, RATE):
        windows = list(classify_windows(ears, (speech(5.0, rate), rate), 1.31))
        assert len(windows) == 4 and not caplog.records
    ears((speech(5.0), RATE))
    assert f"was cut to {setting} = 1.31;" in caplog.text


def test_the_whole_is_the_mean_of_the_windows(bundle: Bundle) -> None:
    windows = list(classify_windows(bundle, (speech(4.0), RATE), 1.0))
    best = mean_prediction(windows, top=2)
    chances = np.mean([[dict(window.top)[label] for label in ("loud", "soft", "odd")] for window in windows], axis=0)
    order = np.argsort(-chances)
    assert [name for name, _ in best.top] == [("loud", "soft", "odd")[place] for place in order[:2]]
    assert best.score == pytest.approx(chances.max())
    with pytest.raises(InputError, match="empty"):
        mean_prediction([])


def test_a_stream_is_answered_as_it_arrives(bundle: Bundle) -> None:
    """The first window comes before the second half of the stream was asked for, and an hour takes no more than a few blocks."""
    asked: list[int] = []

    def blocks() -> Iterator[np.ndarray]:
        for number in range(3600):
            asked.append(number)
            yield np.full((RATE, 1), 0.1, np.float32)

    windows = classify_windows(bundle, Sound(RATE, blocks()), 2.0)
    next(windows)
    assert len(asked) == 2
    assert len(list(itertools.islice(windows, 100))) == 100 and len(asked) == 202


def test_memory_does_not_grow_with_the_length() -> None:
    """An hour at 16 kHz is 230 MB; what is held is a window and a block."""
    tracemalloc.start()
    count = sum(1 for _ in cut((np.zeros(16000, np.float32) for _ in range(3600)), 32000, 16000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 3599 and peak < 1_000_000


def test_a_short_sound_is_one_window(bundle: Bundle) -> None:
    (window,) = classify_windows(bundle, (speech(0.5), RATE), 2.0)
    assert (window.start_s, window.end_s) == (0.0, 0.5)


def test_windows_that_make_no_sense_are_refused(bundle: Bundle, bundle_path: Path) -> None:
    sound = (speech(3.0), RATE)
    refused = [(1.0, 2.0, "would leave sound out"), (1.0, 0.0, "would leave sound out"), (5.0, None, "hears 4 s at most")]
    refused += [(-1.0, None, "a window is longer than 0 s"), (0.0, None, "a window is longer than 0 s")]
    for window_s, hop_s, message in refused:
        with pytest.raises(InputError, match=message):
            next(classify_windows(bundle, sound, window_s, hop_s))
    with pytest.raises(InputError, match="the sound is empty"):
        list(classify_windows(bundle, (np.zeros(0, np.float32), RATE)))
    with pytest.raises(InputError, match="this needs a model of sound for classification; the bundle takes array"):
        next(classify_windows(Bundle(bundle_path), sound))
