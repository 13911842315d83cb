"""The Python of docs/embed.md, in a process whose path holds the runtime, numpy, onnxruntime and Pillow and nothing else."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from polyadapt_runtime import Bundle

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
