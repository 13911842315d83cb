"""A full disk and a read-only place: one clear line, exit code 1, and nothing half-written is left."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from polyadapt.artifact import Artifact
from polyadapt.cli import main
from polyadapt.edits import Edit
from polyadapt.errors import UserError
from polyadapt.families.mlp_policy.card import CARD
from polyadapt.files import write_json
from polyadapt.testing.conformance import tiny_model
from polyadapt_onnx import export
from polyadapt_runtime.tensors import write_safetensors

KILOBYTES = 64


@pytest.fixture(params=[KILOBYTES])
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of 64 kB, or of as many as a test asks for."""
    place = tmp_path / "disk"
    place.mkdir()
    _mount(place, f"size={request.param}k")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A file system that takes no writing, from the administrator either."""
    place = tmp_path / "disk"
    place.mkdir()
    _mount(place, "ro")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def _mount(place: Path, options: str) -> None:
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `mount` here")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")


def large_artifact() -> Artifact:
    """More kilobytes than the disk holds of low-rank factors for the tiny policy."""
    model = tiny_model(CARD)
    port = model.ports.get("op", "block.0.ffn.up")
    rank = 2 * KILOBYTES * 1024 // (4 * port.in_features)
    edit = Edit("block.0.ffn.up", "lowrank", {"a": torch.randn(port.in_features, rank), "b": torch.randn(rank, port.out_features)})
    return Artifact("lora", model.base_id, "mlp-policy", "control", (edit,))


def left(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


def test_an_artifact_that_does_not_fit_the_disk(small_disk: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*big.*: No space left on device; nothing was left there"):
        large_artifact().save(small_disk / "big")
    assert left(small_disk) == []


def test_an_older_artifact_outlives_a_full_disk(small_disk: Path) -> None:
    model = tiny_model(CARD)
    old = Artifact("bitfit", model.base_id, "mlp-policy", "control", (Edit("embed", "shift", {"b": torch.ones(32)}),))
    old.save(small_disk / "kept")
    with pytest.raises(UserError, match="No space left"):
        large_artifact().save(small_disk / "kept")
    assert torch.equal(Artifact.load(small_disk / "kept").slots["embed:shift.b"], torch.ones(32))
    assert left(small_disk) == ["kept", "kept/artifact.json", "kept/artifact.safetensors"]


@pytest.mark.parametrize("small_disk", [4, KILOBYTES], indirect=True)
def test_a_bundle_that_does_not_fit_the_disk(small_disk: Path) -> None:
    """Neither its graph, nor what comes after the graph."""
    with pytest.raises(UserError, match=rf"cannot write {small_disk}/big.bundle: No space left on device"):
        export(tiny_model(CARD), {"big": large_artifact()}, small_disk / "big.bundle")
    assert left(small_disk) == []


def test_a_table_that_does_not_fit_the_disk(small_disk: Path) -> None:
    with pytest.raises(UserError, match="No space left on device"):
        write_json(small_disk / "big.json", ["x" * 1024] * (2 * KILOBYTES))
    assert left(small_disk) == []


def test_the_runtime_on_a_full_disk(small_disk: Path) -> None:
    import numpy as np

    from polyadapt_runtime import TensorFileError

    with pytest.raises(TensorFileError, match="No space left on device; nothing was left there"):
        write_safetensors(small_disk / "big.safetensors", {"a": np.zeros(KILOBYTES * 1024, np.float32)})
    assert left(small_disk) == []


@pytest.mark.parametrize("command", ["adapt", "export", "run"])
def test_commands_into_a_read_only_place(command: str, read_only: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"{word} {number},{word}\n" for number in range(8) for word in ("ham", "spam")))
    recipe = tmp_path / "job.toml"
    tables = [
        'format = 1\nname = "x"',
        '[model]\nreference = "polyadapt:tiny-bert"\ntask = "classification"',
        f'[data]\nuri = "csv:{rows}"',
        "[train]\nepochs = 1",
        '[[arm]]\nname = "a"\nmethod = "bitfit"',
    ]
    recipe.write_text("\n".join(tables))
    arguments = {
        "adapt": ["adapt", "polyadapt:tiny-bert", "bitfit", f"csv:{rows}", "--out", str(read_only / "a"), "-m", "task=classification"],
        "export": ["export", "polyadapt:tiny-bert", "--out", str(read_only / "a.bundle")],
        "run": ["run", str(recipe), "--out", str(read_only / "run")],
    }[command]
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "Read-only file system" in said and said.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in said and left(read_only) == []
