"""The two traps of a CPU-only torch, rebuilt from the installed libraries without their compiled halves."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def copy_without_binaries(package: str, target: Path, broken: bytes | None = None) -> None:
    """The package's Python files; compiled files are left out, or replaced by bytes that cannot be loaded."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0])
    for path in source.rglob("*"):
        copy = target / package / path.relative_to(source)
        if path.suffix == ".py":
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        elif path.suffix == ".so" and broken is not None:
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(broken)


def run(code: str, first: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(first)!r})\n{code}"], capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_torchvision_without_its_compiled_half(tmp_path: Path) -> None:
    copy_without_binaries("torchvision", tmp_path)
    code = """
from polyadapt.sources.compat import import_timm
timm = import_timm()
import torch, torchvision
from torchvision.transforms import functional
assert torchvision.__file__.startswith(sys.path[0])
assert functional.resize(torch.zeros(3, 8, 8), [4, 4]).shape == (3, 4, 4)
timm.create_model("resnet10t", pretrained=False)
print("works")
"""
    done = run(code, tmp_path)
    assert done.stdout.strip() == "works", done.stderr
    assert "compiled half does not fit this torch (operator torchvision::nms does not exist)" in done.stderr, "the plain import failed, and a warning says so"


@pytest.mark.skipif(importlib.util.find_spec("torchaudio") is None, reason="torchaudio is not installed")
def test_torchaudio_without_its_extension(tmp_path: Path) -> None:
    copy_without_binaries("torchaudio", tmp_path, broken=b"not a library")
    code = """
from polyadapt.sources.compat import import_torchaudio
torchaudio = import_torchaudio()
import torch
assert torchaudio.__file__.startswith(sys.path[0])
assert torchaudio.transforms.MelSpectrogram(n_mels=16)(torch.zeros(1, 4000)).shape[1] == 16
print("works")
try:
    torchaudio.functional.forced_align(torch.zeros(1, 4, 3), torch.ones(1, 2, dtype=torch.int32))
except Exception as error:
    print(type(error).__name__)
"""
    done = run(code, tmp_path)
    assert done.stdout.split() == ["works", "UserError"], done.stderr
    assert "extension does not fit this torch" in done.stderr, "the plain import failed, and a warning says so"


def test_libraries_that_import_well_are_left_alone() -> None:
    torchvision, torchaudio = pytest.importorskip("torchvision"), pytest.importorskip("torchaudio")
    from polyadapt.sources import compat

    before = {name: module for name, module in sys.modules.items() if name.startswith(("torchvision", "torchaudio"))}
    assert compat.import_torchvision() is torchvision and compat.import_torchaudio() is torchaudio
    assert before.items() <= sys.modules.items() and compat._keep_alive == []
