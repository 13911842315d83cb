"""Voices that listen: the spectrogram, speaker vectors of recordings, and the folder that such a voice is kept in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from polyadapt import builtin
from polyadapt.errors import UserError
from polyadapt.host import Host
from polyadapt.model import Model
from polyadapt_speech import entry
from polyadapt_speech.usat.family.model import TINY, tiny_voice
from polyadapt_speech.usat.network.config import VoiceConfig
from polyadapt_speech.usat.network.voice import Voice, extended
from polyadapt_speech.usat.spectrogram import Spectrogram
from polyadapt_speech.usat.voices.folder import read_voice, save_voice

SETTINGS = {"audio": {"sample_rate": 22050}, "espeak": {"voice": "en-us"}, "phoneme_id_map": {"_": [0], "^": [1], "$": [2], "a": [3], "b": [4]}}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def voice() -> Voice:
    torch.manual_seed(0)
    return extended(tiny_voice(), speaker_size=6, memory_slots=4, listens=True)


@pytest.fixture
def folder(voice: Voice, tmp_path: Path) -> Path:
    settings = tmp_path / "start.json"
    settings.write_text(json.dumps(SETTINGS), encoding="utf-8")
    save_voice(voice, tmp_path / "kept", settings, {"licences": {"tiny": "none"}, "seed": 3})
    return tmp_path / "kept"


def loaded(folder: Path, options: str = "") -> Model:
    host = Host(plugins=[("core", builtin), ("speech", entry)], discover=False, environment={})
    return host.load(f"usat:{folder}{options}")


@pytest.mark.parametrize("samples", [400, 1024, 5003])
def test_the_spectrogram_is_that_of_torch(samples: int) -> None:
    """FFT 1024, hop 256, reflect pad 384: VITS' own numbers."""
    sound = torch.randn(2, samples, generator=generator())
    padded = torch.nn.functional.pad(sound[:, None], (384, 384), mode="reflect")[:, 0]
    spectrum = torch.stft(padded, 1024, 256, window=torch.hann_window(1024), center=False, return_complex=True)
    expected = (spectrum.real.square() + spectrum.imag.square() + 1e-6).sqrt()
    found = Spectrogram(256)(sound)
    assert found.shape == expected.shape == (2, Spectrogram.bins(256), samples // 256)
    assert torch.allclose(found, expected, atol=2e-4, rtol=1e-4)  # sums of 1024 products in float32


def test_a_speaker_vector_does_not_hear_what_is_behind_a_recording(voice: Voice) -> None:
    sound = torch.randn(2, 900, generator=generator())
    with torch.no_grad():
        both = voice.speaker_vector(sound, torch.tensor([900, 403]))
        alone = voice.speaker_vector(sound[1:, :403], torch.tensor([403]))
        other = voice.speaker_vector(sound[1:], torch.tensor([900]))
    assert both.shape == (2, 6) and torch.allclose(both.norm(dim=1), torch.ones(2))
    assert torch.allclose(both[1:], alone, atol=1e-5) and not torch.allclose(both[1:], other, atol=1e-3)


def test_a_voice_that_comes_to_listen_speaks_as_before() -> None:
    torch.manual_seed(0)
    plain = tiny_voice()
    more = extended(plain, speaker_size=6, memory_slots=4, listens=True)
    ids = torch.randint(0, TINY.vocab_size, (1, 6), generator=generator())
    with torch.no_grad():
        assert torch.equal(more(ids, torch.ones_like(ids))[0], plain(ids, torch.ones_like(ids))[0])
    assert plain.posterior is None and plain.speaker_encoder is None and plain.duration_posterior is None
    assert set(plain.state_dict()) < set(more.state_dict())


def test_a_voice_that_listens_has_speakers() -> None:
    with pytest.raises(ValueError, match="speaker_size"):
        replace(TINY, listens=True)


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_a_folder_keeps_a_voice(voice: Voice, folder: Path, half: bool, tmp_path: Path) -> None:
    if half:
        save_voice(voice, folder, tmp_path / "start.json", {"licences": {"tiny": "none"}, "seed": 3}, half=True)
    read, provenance = read_voice(folder)
    assert read.config == voice.config and provenance["seed"] == 3 and not read.training
    for name, value in voice.state_dict().items():
        assert torch.equal(read.state_dict()[name], value.half().float() if half else value), name
    sound = torch.randn(1, 400, generator=generator())
    if not half:
        assert torch.equal(read.speaker_vector(sound, torch.tensor([400])), voice.speaker_vector(sound, torch.tensor([400])))


def test_the_reference_gives_a_model_with_a_speaker(folder: Path) -> None:
    model = loaded(folder, "?noise_inputs=true")
    assert (model.family.card.id, model.task.kind, model.reference) == ("voice", "synthesis", "usat:kept")
    speaker = next(spec for spec in model.signature.inputs if spec.name == "speaker")
    assert speaker.shape == ("batch", 6) and model.licences == {"tiny": "none"} and model.task.details["noise_scale"] == 0.667
    assert model.base_id == loaded(folder).base_id


def test_a_voice_without_ears_keeps_its_identity() -> None:
    """`listens` shows in the weights and not in the sizes: artifacts of earlier voices fit on."""
    host = Host(plugins=[("core", builtin), ("speech", entry)], discover=False, environment={})
    model = host.load("polyadapt:tiny-voice")
    assert isinstance(model.backbone, Voice) and "listens" not in model.family.config(model.backbone)


def edited(folder: Path, change: Any) -> None:
    head = json.loads((folder / "config.json").read_text())
    change(head)
    (folder / "config.json").write_text(json.dumps(head))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda head: head.update(format=2), "format 2, this version reads format 1"),
        (lambda head: head.update(colour="red"), "'colour'"),
        (lambda head: head["voice"].update(colour="red"), "'colour'"),
        (lambda head: head["voice"]["decoder"].update(colour="red"), "'colour'"),
        (lambda head: head["voice"].pop("width"), "lacks 'width'"),
        (lambda head: head["voice"].update(width="wide"), "voice.width"),
        (lambda head: head["voice"].update(width=48), "expected is"),
        (lambda head: head.update(sha256="0" * 64), "not the file that config.json describes"),
        (lambda head: head.update(voice=[1]), "expected a table, found list"),
    ],
)
def test_a_damaged_folder_is_one_line(folder: Path, change: Any, words: str) -> None:
    edited(folder, change)
    with pytest.raises(UserError, match=words) as caught:
        loaded(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "phonemes.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        loaded(folder)


def test_nothing_is_written_where_the_start_voice_has_no_json(voice: Voice, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        save_voice(voice, tmp_path / "new", tmp_path / "none.json", {})
    assert not (tmp_path / "new").exists()


def test_sizes_of_a_real_voice_are_those_of_the_paper() -> None:
    """Posterior encoder: 513 bins, 16 layers of 192 channels with kernel 5."""
    with torch.device("meta"):
        voice = Voice(VoiceConfig(vocab_size=256, speaker_size=256, memory_slots=256, listens=True))
    assert voice.posterior is not None and voice.posterior.before.weight.shape == (192, 513, 1) and len(voice.posterior.wavenet.dilated) == 16
