"""Sound: resampling against torchaudio and closed forms, files against soundfile."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyadapt_runtime import InputError, Processor
from polyadapt_runtime.audio import KAISER_BETA, ROLLOFF, ZERO_CROSSINGS, resample


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
    monkeypatch.setattr(soundfile, "read", None)
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
    expected = processor(x)["audio"]
    assert np.array_equal(expected, x)
    for raw in ((x, 16000), x.astype(np.float64), list(map(float, x)), (np.stack([x, x]), 16000), (np.stack([x, x], axis=1), 16000)):
        assert np.array_equal(processor(raw)["audio"], expected)
    whole = np.round(x * 32767).astype(np.int16)
    assert np.array_equal(processor(whole)["audio"], whole.astype(np.float32) / 32768)
    assert np.array_equal(processor((x, 8000))["audio"], resample(x, 8000, 16000))


def test_lengths(caplog: pytest.LogCaptureFixture) -> None:
    x = noise(48000)
    fixed = Processor(spec(seconds=0.5))
    assert np.array_equal(fixed((x, 48000))["audio"], resample(x, 48000, 16000)[:8000])
    short = fixed(x[:100])["audio"]
    assert short.shape == (8000,) and np.array_equal(short[:100], x[:100]) and not short[100:].any()
    assert caplog.text == ""
    assert np.array_equal(Processor(spec(maximum_seconds=0.1))((x, 48000))["audio"], resample(x, 48000, 16000)[:1600])
    assert "was cut to maximum_seconds" in caplog.text


def test_a_batch_is_filled_up_with_silence() -> None:
    processor = Processor(spec())
    batch = processor.collate([processor(noise(100)), processor(noise(160))])["audio"]
    assert batch.shape == (2, 160) and np.array_equal(batch[0, :100], noise(100)) and not batch[0, 100:].any()
    assert not processor.pads_exactly


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.array([0.0, np.inf]), "not finite"),
        (np.zeros((2, 3, 4)), r"found \[2, 3, 4\]"),
        (np.zeros(4, np.int64), "int64"),
        ((np.zeros(4), 0), "sample rate"),
        ((np.zeros(4), 44100.5), "sample rate"),
        ((np.zeros(4), float("nan")), "sample rate"),
        (7, "found int"),
    ],
)
def test_what_is_no_sound_says_so(raw: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Processor(spec())(raw)
