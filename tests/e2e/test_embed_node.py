"""The example under examples/node: recorded cases in Node, adapters swapped there and back, and what its reader refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import polyadapt as pa
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.testing.exporting import adapted_artifact
from polyadapt_runtime import Bundle
from polyadapt_runtime.seal import sealed

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NODE = shutil.which("node")

pytestmark = [
    pytest.mark.program("node", package="nodejs"),
    pytest.mark.skipif(not (EXAMPLES / "node" / "node_modules" / "onnxruntime-node").is_dir(), reason="onnxruntime-node is not installed; run: make web"),
]


def classify(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(NODE), EXAMPLES / "node" / "classify.mjs", folder, *arguments], capture_output=True, text=True, timeout=120, check=False)


def script(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """A few lines of JavaScript after `bundle` was opened, from the example's own folder."""
    lines = [
        'import { readFile } from "node:fs/promises";',
        'import * as ort from "onnxruntime-node";',
        'import { Bundle } from "../web/polyadapt.js";',
        f"const bundle = await Bundle.open(ort, async (path) => new Uint8Array(await readFile({json.dumps(str(folder))} + '/' + path)));",
        body,
    ]
    return subprocess.run([str(NODE), "--input-type=module", "--eval", "\n".join(lines)], cwd=EXAMPLES / "node", capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def altered(pictures_bundle: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(pictures_bundle, tmp_path / "altered.bundle"))


def test_cases_and_swapping(pictures_bundle: Path, tmp_path: Path) -> None:
    """Every recorded output agrees; a picture gets Python's class and score from the base, both adapters, and the base again."""
    bundle = Bundle(pictures_bundle, device="cpu")
    pixels = np.random.default_rng(3).integers(64, 193, (70, 90, 3), dtype=np.uint8)
    (tmp_path / "picture.ppm").write_bytes(b"P6\n# noise\n90 70\n255\n" + pixels.tobytes())
    done = classify(pictures_bundle, str(tmp_path / "picture.ppm"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    cases = [line.split() for line in lines if line.startswith(("ok", "FAIL"))]
    assert [(row[0], row[1], row[2]) for row in cases] == [("ok", case.case, case.output) for case in bundle.selftest().cases]
    assert f"{len(cases)} of {len(cases)} recorded outputs agree with torch" in lines
    front = onnxruntime.InferenceSession(pictures_bundle / "onnx" / "preprocess.onnx", providers=["CPUExecutionProvider"])
    feeds = {"image": front.run(None, {"picture": pixels})[0]}
    answers = [line.split() for line in lines[-4:]]
    assert [row[0] for row in answers] == ["base", "birds", "tools", "base"] and answers[0] == answers[3]
    for name, (_, label, score) in zip((None, "birds", "tools"), answers, strict=False):
        expected = bundle(feeds, artifact=name)[0]
        assert label == expected.label and float(score) == pytest.approx(expected.score, abs=2e-6)


def test_a_bank_proves_itself_too(tmp_path: Path) -> None:
    """It holds fixed what the recorded cases of slots would feed; all its other cases run."""
    model = pa.load("polyadapt:tiny-vit", task="classification")
    artifact = adapted_artifact(load_method(Host().registry.methods.get("lora").card), model.with_labels(("owl", "robin", "wren")))
    folder = pa.export(model, {"birds": artifact}, tmp_path / "birds.bundle", form="bank").directory
    done = script(folder, "console.log(JSON.stringify((await bundle.selftest()).map(({ case: name, ok }) => [name, ok])));")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert rows and all(ok for _, ok in rows)
    assert {name for name, _ in rows} < {case.case for case in Bundle(folder, device="cpu").selftest().cases}


def test_the_snippet_of_the_docs(program_folder: Path, snippet: Callable[[str], str]) -> None:
    (program_folder / "node_modules").symlink_to(EXAMPLES / "node" / "node_modules")
    (program_folder / "program.js").write_text(snippet("js"), encoding="utf-8")
    done = subprocess.run([str(NODE), "program.js"], cwd=program_folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    verdict, *answers = done.stdout.splitlines()
    assert verdict == "16 of 16 recorded outputs agree with torch"
    pixels = np.full((72, 96, 3), 200, np.uint8)
    bundle = Bundle(program_folder / "pictures.bundle", device="cpu")
    assert [line.split()[:2] for line in answers] == [[name or "base", bundle(pixels, artifact=name).label] for name in (None, "birds", "tools", None)]
    assert answers[0] == answers[3]


def test_a_wrong_output_is_seen(altered: Path) -> None:
    """One recorded output is moved by a hundredth, and the digests are made to fit."""

    def shift(path: Path) -> None:
        data = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        begin, end = json.loads(data[8:start])["birds/0/out/logits"]["data_offsets"]
        moved = np.frombuffer(bytes(data[start + begin : start + end]), "<f4") * np.float32(1.01)
        data[start + begin : start + end] = moved.tobytes()
        path.write_bytes(data)

    reseal(altered, "parity/cases.safetensors", shift)
    done = classify(altered)
    assert done.returncode == 1 and "FAIL birds/0" in done.stdout and done.stdout.count("FAIL") == 1


def reseal(folder: Path, path: str, change: Callable[[Path], Any]) -> None:
    """Change a file and write its digest into the manifest."""
    change(folder / path)
    table = json.loads((folder / "manifest.json").read_text())
    data = (folder / path).read_bytes()
    table["files"][path] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (folder / "manifest.json").write_text(sealed(table))


@pytest.mark.parametrize("path", ["onnx/model_slots.onnx", "onnx/model.onnx.data", "onnx/model_slots.safetensors", "artifacts/birds/slots.safetensors"])
def test_an_altered_file_is_refused(altered: Path, path: str) -> None:
    data = bytearray((altered / path).read_bytes())
    data[-1] ^= 1
    (altered / path).write_bytes(data)
    done = classify(altered)
    assert done.returncode == 1 and f"{path} was altered: its sha256 is not the one in manifest.json" in done.stderr


def test_an_altered_manifest_is_refused(altered: Path) -> None:
    """Another label, which no file's digest covers."""
    text = (altered / "manifest.json").read_text(encoding="utf-8")
    assert '"owl"' in text
    (altered / "manifest.json").write_text(text.replace('"owl"', '"cat"', 1), encoding="utf-8")
    done = classify(altered)
    assert done.returncode == 1 and "manifest.json was altered: its sha256 is not the recorded one" in done.stderr


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("await bundle.run({}, 'bird');", "no artifact 'bird' in this bundle; it has: birds, tools"),
        ("await bundle.run({ picture: new ort.Tensor('float32', [1], [1]) });", "graph 'model' has no input picture; it takes image, head:prototypes.weight"),
        ("await bundle.run({ 'head:prototypes.bias': new ort.Tensor('float32', [0], [1]) });", "head:prototypes.cosine, head:prototypes.weight missing; all slots of a group"),
        ("await bundle.file('../pictures.bundle/manifest.json');", "is not a listed file of this bundle"),
        ("bundle.manifest.files['a/../README.md'] = bundle.manifest.files['README.md']; await bundle.file('a/../README.md');", "is not a listed file of this bundle"),
        ("await bundle.picture(new Uint8Array(10), 2, 2);", "10 bytes are no picture of 2 x 2 with 3 or 4 channels"),
    ],
)
def test_what_the_reader_refuses(pictures_bundle: Path, body: str, words: str) -> None:
    """onnxruntime-node itself takes an unknown feed and ignores it without a word."""
    done = script(pictures_bundle, body)
    assert done.returncode == 1 and words in done.stderr


def test_another_format_is_refused(altered: Path) -> None:
    table = json.loads((altered / "manifest.json").read_text())
    (altered / "manifest.json").write_text(sealed({**table, "format": 2}))
    done = classify(altered)
    assert done.returncode == 1 and "bundle format 2, this reader knows format 1" in done.stderr
