"""USAT exported whole: what hears and what speaks in one bundle, learned adapters in slots, noise an input, a trained speaker beside a heard one."""

from __future__ import annotations

import json
import subprocess
import sys
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from polyadapt import builtin
from polyadapt.artifact import Artifact
from polyadapt.data.dataset import Dataset, Example
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.model import Model
from polyadapt.training import TrainingData, TrainSettings, fit
from polyadapt_onnx import export
from polyadapt_runtime import Bundle, Processor
from polyadapt_speech import entry
from polyadapt_speech.usat.card import CARD
from polyadapt_speech.usat.family.model import TINY, tiny_voice
from polyadapt_speech.usat.network.voice import extended
from polyadapt_speech.usat.voices.folder import save_voice

pytestmark = pytest.mark.wide
RATE_HZ, SPEAKER_SIZE = 4000, 6
SETTINGS = {"audio": {"sample_rate": RATE_HZ}, "espeak": {"voice": "en-us"}, "phoneme_id_map": {"_": [0], "^": [1], "$": [2], "a": [3]}}

# A program that embeds the bundle, where neither torch nor the toolkit is to be had.
PROGRAM = """
import sys
sys.modules.update({name: None for name in ("torch", "polyadapt", "onnx", "safetensors", "soundfile")})
import numpy as np
from polyadapt_runtime import Bundle
bundle = Bundle("voice.bundle", device="cpu")
heard = bundle.condition("speaker.wav", "speaker")
feeds = dict(np.load("feeds.npz"), speaker=heard["speaker"][None])
np.savez("said.npz", waveform=bundle.run(feeds, "anna")["waveform"], speaker=heard["speaker"])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A tiny voice that listens, as `usat-train` leaves one; of its parts none is silent."""
    folder = tmp_path_factory.mktemp("voice")
    (folder / "start.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        voice = extended(tiny_voice(replace(TINY, sample_rate_hz=RATE_HZ)), speaker_size=SPEAKER_SIZE, memory_slots=4, listens=True)
        for name, parameter in voice.named_parameters():
            if "speaker." in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    save_voice(voice, folder / "voice", folder / "start.json", {})
    host = Host(plugins=[("core", builtin), ("speech", entry)], discover=False, environment={})
    return host.load(f"usat:{folder / 'voice'}?noise_inputs=true")


def learned(model: Model, seed: int) -> Artifact:
    """A few steps on noise that stands for speech: every part has moved, the speaker vector too."""
    rows = []
    for number in range(4):
        draws = np.random.default_rng([seed, number])
        samples = (0.1 * draws.standard_normal(RATE_HZ + 200 * number)).astype(np.float32)
        rows.append(Example(f"{seed}-{number}", (samples, RATE_HZ), None, None, {"ids": " ".join(map(str, draws.integers(0, TINY.vocab_size, 9)))}))
    settings = TrainSettings(epochs=4, batch_size=2, learning_rate=3e-2, check_readings=False, device="cpu")
    return fit(model, load_method(CARD), CARD.options(phoneme_rank=2), TrainingData(Dataset("readings", rows, "audio")), settings)


@pytest.fixture(scope="module")
def people(model: Model) -> dict[str, Artifact]:
    return {name: learned(model, seed) for name, seed in (("anna", 1), ("ben", 2))}


@pytest.fixture(scope="module")
def folder(model: Model, people: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("usat")
    export(model, people, place / "voice.bundle", "slots", {"legacy_fallback": False})
    return place


def feeds(model: Model, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, TINY.vocab_size, (1, 11), generator=generator)
    noise, paces = torch.randn(1, TINY.latent, 400, generator=generator), 0.5 * torch.randn(1, 2, 11, generator=generator)
    speaker = torch.nn.functional.normalize(torch.randn(1, SPEAKER_SIZE, generator=generator))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "noise": noise, "duration_noise": paces, "length_scale": torch.tensor([1.1]), "speaker": speaker}


def said(model: Model, inputs: dict[str, torch.Tensor], artifact: Artifact | None) -> np.ndarray:
    attachments = None if artifact is None else artifact.attach(model)
    with torch.no_grad():
        found = model.module(**inputs)["waveform"].numpy()
    if attachments is not None:
        attachments.remove_all()
    return np.asarray(found)


def test_every_part_is_learned_and_in_the_artifact(model: Model, people: dict[str, Artifact]) -> None:
    sites = {edit.site for edit in people["anna"].edits}
    assert any(site.startswith("flow.") for site in sites) and any(site.startswith("durations.") for site in sites) and any(site.startswith("encoder.") for site in sites)
    assert "condition.speaker" in people["anna"].own
    heard = people["anna"].own["condition.speaker"]
    assert not torch.equal(heard, people["ben"].own["condition.speaker"])


def test_adapters_and_speaker_vectors_swap_as_in_torch_at_any_noise(model: Model, people: dict[str, Artifact], folder: Path) -> None:
    bundle = Bundle(folder / "voice.bundle", device="cpu")
    assert set(bundle.manifest.graphs) == {"model", "speaker"} and {"noise", "duration_noise", "speaker"} <= {port.name for port in bundle.manifest.graphs["model"].inputs}
    assert bundle.selftest().ok
    for seed in (3, 4):
        inputs, answers = feeds(model, seed), {}
        for name in (None, "anna", "ben", "anna"):
            found = bundle.run({key: value.numpy() for key, value in inputs.items()}, name)["waveform"]
            expected = said(model, inputs, None if name is None else people[name])
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max(), name
            assert name not in answers or np.array_equal(found, answers[name])
            answers[name] = found
        quiet = {key: value.numpy() * (0 if key == "noise" else 1) for key, value in inputs.items()}
        assert np.abs(bundle.run(quiet, "anna")["waveform"] - answers["anna"]).max() > 1e-3, "noise is heard"


def test_a_program_without_torch_speaks_as_whom_it_hears(model: Model, people: dict[str, Artifact], folder: Path) -> None:
    inputs = feeds(model, 5)
    np.savez(folder / "feeds.npz", **{name: value.numpy() for name, value in inputs.items() if name != "speaker"})
    pcm = np.rint(6000 * np.random.default_rng(0).standard_normal(2 * 2 * 44100).clip(-3, 3)).astype("<i2")
    with wave.open(str(folder / "speaker.wav"), "wb") as stream:  # stereo, at another rate than the voice's
        stream.setparams((2, 2, 44100, 0, "NONE", ""))
        stream.writeframes(pcm.tobytes())
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(folder / "said.npz")
    heard = Processor(model.family.conditioners(model.backbone)["speaker"].preprocess)(folder / "speaker.wav")
    with torch.no_grad():
        vector = model.backbone.speaker_vector(torch.from_numpy(heard["audio"])[None], torch.from_numpy(heard["lengths"])[None])  # type: ignore[operator]
    assert np.abs(found["speaker"] - vector[0].numpy()).max() <= 1e-5
    expected = said(model, {**inputs, "speaker": vector}, people["anna"])
    assert found["waveform"].shape == expected.shape and np.abs(found["waveform"] - expected).max() <= 1e-4 * np.abs(expected).max()
