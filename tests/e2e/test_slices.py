"""The slices of examples/, one per domain, in a short form: load, adapt, evaluate, export, and run without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from polyadapt.artifact import Artifact
from polyadapt.host import Host
from polyadapt.job.run import run_recipe
from polyadapt.recipe import Recipe, read_recipe
from polyadapt.report import RunResult

ROOT = Path(__file__).parents[2]
HOST = Host()

# In the other process `import torch` fails: whatever it does, it does without.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import numpy as np
from polyadapt_runtime import Bundle
bundle = Bundle(sys.argv[1], device="cpu")
assert bundle.selftest().ok
"""


def short(name: str, **changes: Any) -> Recipe:
    """A recipe of examples/ with some sections changed."""
    recipe = read_recipe(ROOT / "examples" / name)
    sections = {section: getattr(recipe, section).model_copy(update=value) if isinstance(value, dict) and section != "train" else value for section, value in changes.items()}
    return recipe.model_copy(update=sections)


def run(recipe: Recipe, out: Path) -> RunResult:
    result = run_recipe(recipe, out, HOST)
    assert result is not None
    assert result.bundle is not None
    return result


def without_torch(code: str, bundle: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH + code, str(bundle), *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-1500:]
    return done.stdout.strip()


def value_of(result: RunResult, name: str) -> float:
    return next(arm.evaluation.value for arm in result.arms if arm.name == name)


@pytest.mark.weights("polyadapt:efficientnet-lite0")
def test_vision_learns_a_class_after_export(tmp_path: Path) -> None:
    split = {"by": "label", "seed": 0, "train_per_class": 6, "validation_per_class": 1, "test_per_class": 3}
    recipe = short("vision-incremental.toml", data={"split": split}, evaluate={"baselines": ("majority",)})
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"options": {"image_size_px": 64}})})
    result = run(recipe, tmp_path / "run")
    assert value_of(result, "prototypes") > value_of(result, "majority")
    learned = without_torch(
        """
rng = np.random.default_rng(0)
stripes = [np.tile(np.uint8([0, 255]), (28, 14)) // (1 + n % 3) for n in range(6)]
name = bundle.learn("stripes", stripes[:3], artifact="prototypes")
before = bundle.artifacts()["prototypes"].labels
after = bundle.artifacts()[name].labels
assert tuple(after) == (*before, "stripes"), after
print([bundle(one, artifact=name).label for one in stripes[3:]])
""",
        tmp_path / "run" / "bundle",
    )
    assert learned == "['stripes', 'stripes', 'stripes']"


@pytest.mark.weights("polyadapt:whisper-tiny.en")
def test_speech_adapts_whispers_encoder_to_sounds(tmp_path: Path) -> None:
    if not Path("/usr/share").glob("**/sonic-pi") or not any(Path("/usr").glob("**/drum_heavy_kick.flac")):
        pytest.skip("the sounds are not installed; run: apt install sonic-pi-samples")
    recipe = read_recipe(ROOT / "examples" / "speech-instruments.toml")
    recipe = recipe.model_copy(
        update={"arm": recipe.arm[:1], "train": {"epochs": 2, "batch_size": 16}, "evaluate": recipe.evaluate.model_copy(update={"baselines": ("majority",)})}
    )
    result = run(recipe, tmp_path / "run")
    assert value_of(result, "bottleneck") > value_of(result, "majority")
    sound = next(Path("/usr").glob("**/drum_heavy_kick.flac"))
    assert without_torch('print(bundle(sys.argv[2], artifact="bottleneck").label in bundle.artifacts()["bottleneck"].labels)', tmp_path / "run" / "bundle", str(sound)) == "True"


def test_text_from_the_bundle_is_torchs_text(tmp_path: Path) -> None:
    recipe = read_recipe(ROOT / "examples" / "text-lora.toml")
    model = recipe.model.model_copy(update={"reference": "polyadapt:tiny-llama", "options": {}})
    rows = [f"ask {number},tide {number % 3}" for number in range(24)]  # the tiny model reads 32 tokens at the most
    (tmp_path / "rows.csv").write_text("\n".join(["prompt,target", *rows]))
    data = recipe.data.model_copy(update={"uri": f"csv:{tmp_path / 'rows.csv'}"})
    arm = recipe.arm[0].model_copy(update={"sites": ()})
    recipe = recipe.model_copy(update={"model": model, "data": data, "arm": (arm,), "train": {"epochs": 2, "batch_size": 8, "learning_rate": 1e-2}})
    run(recipe, tmp_path / "run")
    check_text(recipe, tmp_path / "run", "ask 5", 16)


@pytest.mark.slow
@pytest.mark.weights("polyadapt:smollm2-135m")
def test_real_text_from_the_bundle_is_torchs_text(tmp_path: Path) -> None:
    recipe = read_recipe(ROOT / "examples" / "text-lora.toml")
    data = recipe.data.model_copy(update={"uri": f"csv:{ROOT / 'examples' / 'data' / 'tide_clerk.csv'}"})
    recipe = recipe.model_copy(update={"data": data, "train": {**recipe.train, "epochs": 1}})
    run(recipe, tmp_path / "run")
    check_text(recipe, tmp_path / "run", "A traveller asks: What is a boat? The clerk answers:", 32)


def check_text(recipe: Recipe, out: Path, prompt: str, count: int) -> None:
    """Greedy ids of the bundle, decoded there, against torch's greedy ids without a cache."""
    model = HOST.load(recipe.model.reference, recipe.model.options)
    Artifact.load(out / "artifacts" / recipe.arm[0].name).attach(model)
    ids = torch.as_tensor(model.processor(prompt)["input_ids"])[None].long()
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(count):
            scores = model.module(input_ids=ids, attention_mask=torch.ones_like(ids))["logits"][:, -1]
            ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
            if int(ids[0, -1]) in model.generation.get("eos_ids", ()):
                break
    from tokenizers import Tokenizer

    eos = set(model.generation.get("eos_ids", ()))
    expected = Tokenizer.from_file(str(model.processor.assets["tokenizer"])).decode([int(one) for one in ids[0, start:] if int(one) not in eos])
    found = without_torch(f'print(repr(bundle.generate({prompt!r}, {count}, artifact="{recipe.arm[0].name}")))', out / "bundle")
    assert found == repr(expected)


def test_robotics_drives_from_the_bundle(tmp_path: Path) -> None:
    recipe = read_recipe(ROOT / "examples" / "robotics-shift.toml")
    data = recipe.data.model_copy(update={"uri": "table-world:carry?rotation_deg=75&episodes=12&seed=1"})
    recipe = recipe.model_copy(update={"data": data, "arm": recipe.arm[:1], "train": {"epochs": 8, "batch_size": 64, "learning_rate": 5e-3}})
    result = run(recipe, tmp_path / "run")
    assert value_of(result, "lora") < value_of(result, "frozen")
    found = without_torch(
        """
shape = bundle.info()["inputs"][0]["shape"]
x = np.random.default_rng(0).standard_normal((5, shape[1])).astype(np.float32)
base = bundle.run({"observation": x}); adapted = bundle.run({"observation": x}, artifact="lora")
print(base["action"].shape == adapted["action"].shape, bool(np.abs(base["action"] - adapted["action"]).max() > 1e-3))
""",
        tmp_path / "run" / "bundle",
    )
    assert found == "True True"
