"""Sound as a tensor: resampling against torchaudio and closed forms, files against soundfile, limits, and what is suspicious."""

from __future__ import annotations

import re
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyadapt_runtime import InputError, Processor, resampling
from polyadapt_runtime.resampling import KAISER_BETA, ROLLOFF, ZERO_CROSSINGS, resample
from polyadapt_runtime.sound import Sound


def spec(**changes: Any) -> dict[str, Any]:
    return {"kind": "audio", "input": "audio", "sample_rate_hz": 16000, "seconds": None, "maximum_seconds": 30, **changes}


def noise(samples: int) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal(samples) / 4).astype(np.float32)


@pytest.mark.parametrize(("rate", "target"), [(48000, 16000), (44100, 16000), (22050, 16000), (8000, 16000), (16000, 8000), (11025, 16000)])
@pytest.mark.parametrize("samples", [1, 160, 12345])
def test_resampling_equals_torchaudios_kaiser_best(rate: int, target: int, samples: int) -> None:
    torch = pytest.importorskip("torch", reason="an oracle that the runtime alone does without")
    torchaudio = pytest.importorskip("torchaudio", reason="an oracle that the runtime alone does without")
    x = noise(samples)
    settings = {"resampling_method": "sinc_interp_kaiser", "lowpass_filter_width": ZERO_CROSSINGS, "rolloff": ROLLOFF, "beta": KAISER_BETA}
    peer = torchaudio.functional.resample(torch.from_numpy(x).double(), rate, target, **settings).numpy()
    found = resample(x, rate, target)
    assert found.dtype == np.float32 and found.shape == peer.shape
    assert np.abs(found - peer).max() <= 2e-6 * np.abs(peer).max()  # ours sums up to 800 taps in float32


@pytest.mark.parametrize(("rate", "target"), [(48000, 16000), (8000, 16000), (16001, 16000), (16000, 22050)])
def test_tones_in_the_band_come_out_as_they_are(rate: int, target: int) -> None:
    half = min(rate, target) / 2
    for part in (0.05, 0.5, 0.88):
        found = resample(np.sin(2 * np.pi * part * half * np.arange(rate // 4) / rate).astype(np.float32), rate, target)
        expected = np.sin(2 * np.pi * part * half * np.arange(len(found)) / target)
        inner = slice(400, -400)  # beyond the reach of the edges
        assert np.abs(found - expected)[inner].max() <= 1e-5


@pytest.mark.parametrize("part", [1.02, 1.05, 1.5, 2.4])
def test_tones_above_the_band_do_not_fold_back(part: float) -> None:
    found = resample(np.sin(2 * np.pi * part * 8000 * np.arange(24000) / 48000 + 0.3).astype(np.float32), 48000, 16000)
    assert np.abs(found[400:-400]).max() <= 1e-6  # 120 dB below the tone


def test_filters_of_odd_rates_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 999983 Hz, a prime, they would take 760 MB; those of usual rates stay for the next sound."""
    assert resampling._filter_bytes(*resampling._reduced(999983, 16000)) > 10 * resampling._KEPT_BYTES
    resampling._kernel.cache_clear()
    expected = resample(noise(200), 16001, 16000)
    assert resampling._kernel.cache_info().currsize == 250  # 16000 phases, 64 at a time, 12 MB
    monkeypatch.setattr(resampling, "_KEPT_BYTES", 1 << 20)
    resampling._kernel.cache_clear()
    assert np.array_equal(resample(noise(200), 16001, 16000), expected) and resampling._kernel.cache_info().currsize == 0
    resample(noise(200), 44100, 16000)
    assert resampling._kernel.cache_info().currsize == 3


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_plain_wav_needs_no_library(tmp_path: Path, width: int, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import soundfile

    frames = np.round(noise(500 * channels).reshape(-1, channels) * (1 << (8 * width - 1))).astype(np.int64).clip(-(1 << (8 * width - 1)), (1 << (8 * width - 1)) - 1)
    data = (frames + 128).astype(np.uint8).tobytes() if width == 1 else b"".join(int(value).to_bytes(width, "little", signed=True) for value in frames.ravel())
    path = tmp_path / "s.wav"
    with wave.open(str(path), "wb") as stream:
        stream.setparams((channels, width, 16000, len(frames), "NONE", ""))
        stream.writeframes(data)
    peer, _ = soundfile.read(path, dtype="float32", always_2d=True)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    assert np.abs(Processor(spec())(path)["audio"] - peer.mean(axis=1)).max() <= 6e-8


def test_other_files_come_through_soundfile(tmp_path: Path) -> None:
    import soundfile

    x = noise(4800)
    for name, options in (("f.wav", {"subtype": "FLOAT"}), ("f.flac", {"subtype": "PCM_24"})):
        soundfile.write(tmp_path / name, x, 48000, **options)
        found = Processor(spec())(tmp_path / name)["audio"]
        assert np.abs(found - resample(x, 48000, 16000)).max() <= 2e-7
    (tmp_path / "no.wav").write_bytes(b"RIFF no sound")
    with pytest.raises(InputError, match=r"cannot read sound .*no.wav"):
        Processor(spec())(tmp_path / "no.wav")
    with pytest.raises(InputError, match=r"cannot read sound .*gone.wav"):
        Processor(spec())(tmp_path / "gone.wav")


def test_every_way_in_gives_the_same() -> None:
    processor = Processor(spec())
    x = noise(4000)
    expected = processor((x, 16000))["audio"]
    assert np.array_equal(expected, x)
    for samples in (x.astype(np.float64), list(map(float, x)), np.stack([x, x]), np.stack([x, x], axis=1)):
        assert np.array_equal(processor((samples, 16000))["audio"], expected)
    whole = np.round(x * 32767).astype(np.int16)
    assert np.array_equal(processor((whole, 16000))["audio"], whole.astype(np.float32) / 32768)
    assert np.array_equal(processor((x, 8000))["audio"], resample(x, 8000, 16000))


def test_lengths(caplog: pytest.LogCaptureFixture) -> None:
    x = noise(48000)
    fixed = Processor(spec(seconds=0.5))
    assert np.array_equal(fixed((x, 48000))["audio"], resample(x, 48000, 16000)[:8000])
    short = fixed((x[:100], 16000))["audio"]
    assert short.shape == (8000,) and np.array_equal(short[:100], x[:100]) and not short[100:].any()
    assert [record.message for record in caplog.records] == ["the sound was cut to seconds = 0.5; windows (infer --window, transcribe) hear all of a sound"]
    caplog.clear()
    assert fixed((x[:24000], 48000))["audio"].shape == (8000,) and not caplog.records, "it fits"
    for _ in range(9):
        fixed((x, 48000))
    told = [record.message.partition(" hear all of a sound")[2] for record in caplog.records]
    assert told == ["", *(f" ({count} so far; of further ones the 10th, the 100th and so on are told of)" for count in (3, 10))], "a data set has a thousand of them"
    assert np.array_equal(Processor(spec(maximum_seconds=0.1))((x, 48000))["audio"], resample(x, 48000, 16000)[:1600])
    assert "was cut to maximum_seconds = 0.1;" in caplog.text


def test_a_batch_is_filled_up_with_silence() -> None:
    processor = Processor(spec())
    batch = processor.collate([processor((noise(100), 16000)), processor((noise(160), 16000))])["audio"]
    assert batch.shape == (2, 160) and np.array_equal(batch[0, :100], noise(100)) and not batch[0, 100:].any()
    assert not processor.pads_exactly


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ((np.zeros(0, np.float32), 16000), "empty"),
        ((np.zeros((0, 2), np.float32), 16000), "empty"),
        ((np.zeros((2, 0), np.float32), 16000), "empty"),
        (([[0.0, 0.1], [0.2]], 16000), "differ in length"),
        ((np.array([0.0, np.inf]), 16000), "not finite"),
        ((np.array([0.0, np.nan]), 16000), "not finite"),
        ((np.zeros((2, 3, 4)), 16000), r"found \[2, 3, 4\]"),
        ((np.zeros(4, np.int64), 16000), "int64"),
        (np.zeros(4), r"does not say its rate; give \(array, rate in Hz\)"),
        ([0.0, 0.1], "does not say its rate"),
        ((np.zeros(4), 0), "sample rate"),
        ((np.zeros(4), 44100.5), "sample rate"),
        ((np.zeros(4), float("nan")), "sample rate"),
        ((np.zeros(4), 10**9), "1000000 at most, found 1000000000"),
        (7, "found int"),
    ],
)
def test_what_is_no_sound_says_so(raw: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Processor(spec())(raw)


def test_a_sound_too_short_to_hear_is_refused() -> None:
    short = Processor(spec(minimum_seconds=0.025))
    with pytest.raises(InputError, match=r"lasts 0\.020 s, and this model hears 0\.025 s at least"):
        short((noise(160), 8000))
    assert short((noise(200), 8000))["audio"].shape == (400,)
    assert Processor(spec(minimum_seconds=0.025, seconds=0.1))((noise(8), 8000))["audio"].shape == (1600,)  # filled up


def test_a_whole_sweep_comes_out_as_it_is() -> None:
    """From 50 Hz to 7 kHz at 44.1 kHz, brought to 16 kHz: the same sweep sampled at 16 kHz, by its formula in float64."""

    def sweep(rate: int) -> np.ndarray:
        time = np.arange(3 * rate) / rate
        rise = np.log(7000 / 50) / 3.0
        found: np.ndarray = np.sin(2 * np.pi * 50 / rise * np.expm1(rise * time))
        return found

    found, expected = resample(sweep(44100).astype(np.float32), 44100, 16000), sweep(16000)
    error = (found - expected)[400:-400]
    assert 10 * np.log10(np.mean(error**2) / np.mean(expected**2)) < -90  # the samples themselves are rounded to float32


@pytest.mark.parametrize("rate", [8000, 44100])
def test_files_of_other_rates_and_stereo_are_heard_as_the_samples_say(tmp_path: Path, rate: int) -> None:
    import soundfile

    left, right = (np.round(noise(rate) * part * 32767) / 32768 for part in (0.5, -0.25))
    soundfile.write(tmp_path / "s.wav", np.stack([left, right], axis=1), rate, subtype="PCM_16")
    expected = resample(((left + right) / 2).astype(np.float32), rate, 16000)
    found = Processor(spec())(tmp_path / "s.wav")["audio"]
    assert found.shape == (16000,) and np.abs(found - expected).max() <= 1e-6


def test_a_long_file_is_read_only_as_far_as_it_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read: list[int] = []

    def minutes() -> Any:
        for _ in range(60 * 60):
            read.append(1)
            yield np.full((16000, 1), 0.25, np.float32)

    found = Processor(spec())(Sound(16000, minutes(), "an hour"))["audio"]
    assert found.shape == (30 * 16000,) and len(read) <= 32
    assert "an hour was cut to maximum_seconds = 30" in caplog.text
    with pytest.raises(InputError, match="an hour is longer than 600 s and this model sets no limit"):
        Processor(spec(maximum_seconds=None))(Sound(16000, minutes(), "an hour"))
    assert len(read) <= 32 + 602


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(1600), "is silent"),
        (5e-5 * np.ones(1600), "is silent"),
        (np.clip(3 * np.sin(np.arange(1600) / 20), -1, 1), r"is clipped: \d+\.\d % of its samples"),
        (20000 * np.sin(np.arange(1600) / 20), "full scale is 1"),
        (np.sin(np.arange(1600) / 20), ""),
        (0.01 * np.sin(np.arange(1600) / 20), ""),
    ],
)
def test_what_is_suspicious_is_said_and_answered(samples: np.ndarray, message: str, caplog: pytest.LogCaptureFixture) -> None:
    assert Processor(spec())((samples, 16000))["audio"].shape == (1600,)
    assert bool(caplog.records) == bool(message)
    assert not message or re.search(message, caplog.text)
