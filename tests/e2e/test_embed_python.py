"""The Python of docs/embed.md, and bundles of sound, in a process whose path holds the runtime, numpy, onnxruntime and Pillow and nothing else."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import polyadapt as pa
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.testing.exporting import adapted_artifact
from polyadapt_runtime import Bundle, classify_windows, text_of, transcribe

# With -I and -S no other folder is on the path: whatever is not linked here cannot be imported.
LINKED = ("polyadapt_runtime", "numpy", "onnxruntime", "PIL")
BESIDE = ("numpy.libs", "pillow.libs")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder of packages."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in LINKED:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        package = Path(spec.origin).parent
        (folder / name).symlink_to(package)
        for library in BESIDE:
            if (package.parent / library).is_dir() and not (folder / library).exists():
                (folder / library).symlink_to(package.parent / library)
    return folder


def run(bare: Path, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    prepared = f"import sys\nsys.path.insert(0, {str(bare)!r})\n{code}"
    return subprocess.run([sys.executable, "-I", "-S", "-c", prepared], cwd=folder, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("name", ["torch", "onnx", "safetensors", "polyadapt", "transformers"])
def test_there_is_nothing_else_to_import(bare: Path, tmp_path: Path, name: str) -> None:
    assert importlib.util.find_spec(name) is not None, "it is not there anyhow"
    done = run(bare, f"import {name}", tmp_path)
    assert done.returncode == 1 and f"ModuleNotFoundError: No module named '{name}'" in done.stderr


def test_the_snippet(bare: Path, program_folder: Path, snippet: Callable[[str], str]) -> None:
    done = run(bare, snippet("python"), program_folder)
    assert done.returncode == 0, done.stderr
    bundle = Bundle(program_folder / "pictures.bundle", device="cpu")
    expected = []
    for name in (None, "birds", "tools", None):
        answer = bundle(program_folder / "picture.png", artifact=name)
        expected.append(f"{name or 'base'} {answer.label} {answer.score:.3f}")
    assert done.stdout.splitlines() == expected and len(set(expected)) == 3


LISTENING = """
import json
from polyadapt_runtime import Bundle, classify_windows, text_of, transcribe
ears, writer = Bundle("ears.bundle", device="cpu"), Bundle("writer.bundle", device="cpu")
heard = [[window.label, round(window.score, 5)] for window in classify_windows(ears, "clip.wav", 0.3, artifact="lora")]
answer = ears("clip.wav", artifact="lora")
print(json.dumps([heard, answer.label, writer("clip.wav"), text_of(transcribe(writer, "clip.wav"))]))
"""


@pytest.mark.wide
def test_recordings_are_heard_without_torch(bare: Path, tmp_path: Path) -> None:
    """Classes window by window and a transcript, of a stereo file at another rate than the models'."""
    ears, writer = pa.load("polyadapt:tiny-ast", task="classification").with_labels(("owl", "robin", "wren")), pa.load("polyadapt:tiny-wav2vec2")
    lora = adapted_artifact(load_method(Host().registry.methods.get("lora").card), ears)
    pa.export(ears, {"lora": lora}, tmp_path / "ears.bundle")
    pa.export(writer, {}, tmp_path / "writer.bundle")
    pcm = np.rint(8000 * np.random.default_rng(0).standard_normal(2 * 44100).clip(-3, 3)).astype("<i2")
    with wave.open(str(tmp_path / "clip.wav"), "wb") as stream:
        stream.setparams((2, 2, 44100, 0, "NONE", ""))
        stream.writeframes(pcm.tobytes())
    done = run(bare, LISTENING, tmp_path)
    assert done.returncode == 0, done.stderr
    here, said = Bundle(tmp_path / "ears.bundle", device="cpu"), Bundle(tmp_path / "writer.bundle", device="cpu")
    windows = [[window.label, round(window.score, 5)] for window in classify_windows(here, tmp_path / "clip.wav", 0.3, artifact="lora")]
    expected = [windows, here(tmp_path / "clip.wav", artifact="lora").label, said(tmp_path / "clip.wav"), text_of(transcribe(said, tmp_path / "clip.wav"))]
    assert json.loads(done.stdout) == expected and len(windows) == 4 and expected[2]
