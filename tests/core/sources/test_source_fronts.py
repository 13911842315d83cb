"""Front ends in the graph against the feature extractors of the libraries, at lengths that are not multiples of anything."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from polyadapt.errors import UserError
from polyadapt.signature import Signature, TensorSpec
from polyadapt.sources.fbank import KaldiFbank
from polyadapt.sources.front import ImageNormalize, WaveNormalize
from polyadapt.sources.logmel import LogMel, mel_filters

LENGTHS = (400, 4000, 16001, 41234)


def speech_like(samples: int) -> NDArray[np.float32]:
    """A gliding tone with harmonics and pauses over faint noise: loud and silent parts, as in speech."""
    generator = np.random.default_rng(0)
    time = np.arange(samples) / 16000
    pitch = 2 * np.pi * np.cumsum(120 + 60 * np.sin(3 * time)) / 16000
    tone = sum(np.sin(harmonic * pitch) / harmonic for harmonic in range(1, 12))
    return (0.2 * tone * (np.sin(7 * time) > -0.5) + 1e-3 * generator.standard_normal(samples)).astype(np.float32)


@pytest.mark.parametrize("bands", [80, 128])
def test_mel_filters_are_those_of_the_library(bands: int) -> None:
    from transformers import WhisperFeatureExtractor

    theirs = WhisperFeatureExtractor(feature_size=bands).mel_filters.T
    np.testing.assert_allclose(mel_filters(bands), theirs, rtol=0, atol=1e-8)


def whisper_difference(audio: NDArray[np.float32]) -> float:
    from transformers import WhisperFeatureExtractor

    theirs = WhisperFeatureExtractor()(audio, sampling_rate=16000, padding="longest", return_tensors="np")["input_features"]
    ours = LogMel()(torch.from_numpy(audio)[None])["mel"].numpy()
    assert ours.shape == theirs.shape == (1, 80, len(audio) // 160)
    return float(np.abs(ours - theirs).max())


@pytest.mark.parametrize("samples", LENGTHS)
def test_log_mel_equals_whispers(samples: int) -> None:
    assert whisper_difference(speech_like(samples)) < 1e-4


def test_log_mel_of_a_batch_is_that_of_its_rows() -> None:
    batch = torch.from_numpy(np.stack([speech_like(4000), 0.01 * speech_like(8000)[4000:]]))
    whole = LogMel()(batch)["mel"]
    for row, audio in enumerate(batch):
        torch.testing.assert_close(whole[row], LogMel()(audio[None])["mel"][0], rtol=0, atol=2e-5)  # a convolution sums rows of a batch in another order


@pytest.mark.parametrize("samples", [*LENGTHS, 170000])
def test_filter_banks_equal_those_of_ast(samples: int) -> None:
    from transformers import ASTFeatureExtractor

    extractor, audio = ASTFeatureExtractor(), speech_like(samples)
    theirs = extractor(audio, sampling_rate=16000, return_tensors="np")["input_values"]
    ours = KaldiFbank(128, 1024, extractor.mean, extractor.std)(torch.from_numpy(audio)[None])["input_values"].numpy()
    assert ours.shape == theirs.shape == (1, 1024, 128)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)  # Kaldi's own float32 FFT; values span about -1.3 to 1.3


@pytest.mark.parametrize("samples", LENGTHS)
def test_filter_banks_equal_those_of_torchaudio(samples: int) -> None:
    """Before normalisation, in natural logarithms. Where a band holds next to nothing, Kaldi's float32 FFT is rounding noise; the clip has a noise floor."""
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    audio = torch.from_numpy(speech_like(samples))[None]
    theirs = kaldi.fbank(audio, sample_frequency=16000, window_type="hanning", num_mel_bins=128, use_energy=False, htk_compat=True, dither=0.0, frame_shift=10)
    ours = KaldiFbank(128, theirs.shape[0], 0.0, 0.5)(audio)["input_values"][0]
    assert (ours - theirs).abs().max() < 2e-4
    assert (ours - theirs).abs().median() < 1e-5


def test_waveforms_are_normalised_as_the_library_does_with_padding() -> None:
    from transformers import Wav2Vec2FeatureExtractor

    clips = [speech_like(500) + 0.3, 3 * speech_like(800)]
    theirs = Wav2Vec2FeatureExtractor(do_normalize=True)(clips, sampling_rate=16000, padding=True, return_attention_mask=True, return_tensors="np")["input_values"]
    batch = np.zeros((2, 800), np.float32)
    for row, clip in enumerate(clips):
        batch[row, : len(clip)] = clip
    np.testing.assert_allclose(WaveNormalize()(torch.from_numpy(batch))["audio"].numpy(), theirs, rtol=0, atol=2e-6)


def test_pictures_are_normalised_and_other_inputs_pass() -> None:
    from torchvision.transforms.functional import normalize

    image, other = torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0)), torch.ones(2)
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    made = ImageNormalize(mean, deviation)(image=image, other=other)
    torch.testing.assert_close(made["image"], normalize(image, list(mean), list(deviation)))
    assert made["other"] is other
    for wrong in ((0.5,), (0.5, 0.5, 0.0)):
        with pytest.raises(UserError, match="deviations above zero"):
            ImageNormalize((0.5, 0.5, 0.5), wrong)


def test_fronts_say_what_they_take() -> None:
    tokens = TensorSpec("decoder_input_ids", ("batch", "tokens"), "int64", "tokens")
    inner = Signature((TensorSpec("mel", ("batch", 80, "frames"), "float32", "spectrogram"), tokens), ())
    assert [(spec.name, spec.shape) for spec in LogMel().signature(inner).inputs] == [("audio", ("batch", "samples")), (tokens.name, tokens.shape)]


def test_fronts_carry_no_weights() -> None:
    """Nothing of a front is saved with weights or counted as a parameter."""
    for front in (LogMel(), KaldiFbank(128, 1024, 0.0, 1.0), ImageNormalize((0.5,), (0.5,)), WaveNormalize()):
        assert not front.state_dict() and not list(front.parameters())


@pytest.mark.parametrize("reference", ["polyadapt:tiny-whisper", "polyadapt:tiny-ast"])
def test_examples_begin_before_the_front(reference: str) -> None:
    from polyadapt.sources.load import open_reference

    model = open_reference(reference)
    sizes = {"batch": 2, "samples": 3333, "tokens": 3}
    first, second = (model.example(sizes, torch.Generator().manual_seed(1)) for _ in range(2))
    assert list(first) == [spec.name for spec in model.signature.inputs] and first["audio"].shape == (2, 3333)
    assert all(torch.equal(first[name], second[name]) for name in first)
    with torch.no_grad():
        assert torch.isfinite(next(iter(model.module(**first).values()))).all()
    with pytest.raises(UserError, match="too few"):
        model.example({**sizes, "samples": 100}, torch.Generator())
