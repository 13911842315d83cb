"""The tools behind `make fuzz`: damage that can be repeated, and a watch that sees what it should."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import onnx
import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def mutations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    import mutations

    return mutations


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file of every sort that the damage knows."""
    root = tmp_path / "sound"
    root.mkdir()
    graph = onnx.parser.parse_graph("g (float[n, 2] x) => (float[n, 2] y) { y = Relu(x) }")
    (root / "model.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (root / "slots.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    (root / "manifest.json").write_text(json.dumps({"format": 1, "files": {}, "graphs": {"model": {"file": "model.onnx"}}}))
    return root


def state(root: Path) -> dict[str, str]:
    """Every name with what is there."""
    found = {}
    for path in sorted(root.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        found[path.relative_to(root).as_posix()] = content
    return found


def test_equal_seeds_do_equal_damage_and_different_ones_do_not(mutations: ModuleType, folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_bytes(b"secret")

    def damaged(seed: int) -> tuple[str, dict[str, str]]:
        root = mutations.copy(folder, tmp_path / "case")
        done = mutations.mutate(root, random.Random(f"0:{seed}"), canary, reseals=seed % 2 == 0)
        return done, state(root)

    first = [damaged(seed) for seed in range(100)]
    assert [damaged(seed) for seed in range(100)] == first
    assert len({json.dumps(after) for _, after in first}) > 75
    untouched = [done for done, after in first if after == state(folder)]
    assert len(untouched) <= 10  # a few values are replaced by themselves


def test_digests_are_written_anew(mutations: ModuleType, folder: Path) -> None:
    mutations.reseal(folder)
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert {name: entry["sha256"] for name, entry in listed.items()} == {name: digest for name, digest in state(folder).items() if name != "manifest.json"}


def test_fields_of_protobuf_go_round(mutations: ModuleType, folder: Path) -> None:
    data = (folder / "model.onnx").read_bytes()
    fields = mutations.read_fields(data)
    assert b"".join(mutations.written(tag, value) for tag, value in fields) == data
    assert [tag >> 3 for tag, _ in fields] == [field.number for field, _ in onnx.load_from_string(data).ListFields()]
    assert mutations.read_fields(b"\x0a\x7f") is None


WATCH = """
import sys
sys.path.insert(0, sys.argv[1])
import os
from pathlib import Path
from sandbox import Canary, Doorkeeper
canary, inside = Path(sys.argv[2]), Path(sys.argv[3])
watch, door = Canary(canary), Doorkeeper()
door.root = str(inside)
(inside / "own").write_text("x")
assert not watch.was_touched() and not door.outside
os.close(os.open(inside / "link", os.O_RDONLY))  # no hook of Python hears where a link leads; the kernel does
assert watch.was_touched() and not watch.was_touched()
assert door.outside == [str(canary)], door.outside
"""


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_the_watch_sees_a_file_outside_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "canary").write_bytes(b"secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path / "canary")
    done = subprocess.run([sys.executable, "-c", WATCH, TOOLS, tmp_path / "canary", inside], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
