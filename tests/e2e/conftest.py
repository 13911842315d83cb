"""What the tests of embedding share: a bundle of a tiny classifier with two adapters, and the snippets of docs/embed.md."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import polyadapt as pa
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.testing.exporting import adapted_artifact

ROOT = Path(__file__).resolve().parents[2]
METHOD_AND_LABELS = {"birds": ("lora", ("owl", "robin", "wren")), "tools": ("bottleneck", ("axe", "file", "plane", "rasp", "saw"))}


@pytest.fixture(scope="session")
def pictures_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of different methods and classes over one tiny vision transformer. Not to be written to."""
    model = pa.load("polyadapt:tiny-vit", task="classification")
    methods = Host().registry.methods
    artifacts = {name: adapted_artifact(load_method(methods.get(method).card), model.with_labels(labels)) for name, (method, labels) in METHOD_AND_LABELS.items()}
    folder = tmp_path_factory.mktemp("embed") / "pictures.bundle"
    pa.export(model, artifacts, folder)
    return folder


@pytest.fixture
def program_folder(pictures_bundle: Path, tmp_path: Path) -> Path:
    """Where the snippets of docs/embed.md run: a bundle, a picture, and the reader for JavaScript."""
    from PIL import Image

    folder = tmp_path / "program"
    shutil.copytree(pictures_bundle, folder / "pictures.bundle")
    Image.fromarray(np.random.default_rng(4).integers(64, 193, (60, 80, 3), dtype=np.uint8)).save(folder / "picture.png")
    shutil.copy(ROOT / "examples" / "web" / "polyadapt.js", folder)
    (folder / "package.json").write_text('{"type": "module"}')
    return folder


@pytest.fixture
def snippet() -> Callable[[str], str]:
    """The one block of a language in docs/embed.md."""

    def find(language: str) -> str:
        page = (ROOT / "docs" / "embed.md").read_text(encoding="utf-8")
        [found] = re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        return str(found)

    return find
