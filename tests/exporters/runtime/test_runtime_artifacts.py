"""Artifacts from outside, learned classes, the self-test and the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file, save_file

from polyadapt_runtime import ArtifactError, Bundle, BundleError, InputError, IntegrityError, ManifestError
from polyadapt_runtime.__main__ import main
from polyadapt_runtime.seal import sealed
from polyadapt_runtime.selftest import selftest

HEAD = "head:prototypes"


@pytest.fixture
def bundle(bundle_path: Path) -> Bundle:
    return Bundle(bundle_path, device="cpu", threads=1)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(6).standard_normal((4, 6)).astype(np.float32)


def write_artifact(folder: Path, tensors: dict[str, np.ndarray], **changes: Any) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "slots.safetensors")
    head = {"file": "slots.safetensors", "method": "lora", "base_id": "b" * 64, "labels": [], "slots": list(tensors), **changes}
    (folder / "slots.json").write_text(json.dumps(head))
    return folder


def test_an_artifact_from_outside_acts_as_one_inside(bundle: Bundle, made: Any, x: np.ndarray, tmp_path: Path) -> None:
    name = bundle.load_artifact(write_artifact(tmp_path / "guest", made.artifacts["fish"], labels=["cod", "eel", "ray", "carp"]))
    assert name == "guest" and bundle.artifacts()["guest"].source == "file"
    assert np.array_equal(bundle.run({"x": x}, "guest")["logits"], bundle.run({"x": x}, "fish")["logits"])
    assert bundle(x[0], "guest") == bundle(x[0], "fish")
    with pytest.raises(ArtifactError, match="already"):
        bundle.load_artifact(tmp_path / "guest")
    assert bundle.load_artifact(tmp_path / "guest", "second") == "second"


def test_saved_artifacts_come_back_bit_for_bit(bundle: Bundle, bundle_path: Path, made: Any, tmp_path: Path) -> None:
    bundle.save_artifact("birds", tmp_path / "birds")
    assert {item.name for item in tmp_path.iterdir()} == {"birds"}
    saved = load_file(tmp_path / "birds/artifact.safetensors")
    assert all(np.array_equal(saved[name], value) for name, value in made.artifacts["birds"].items())
    other = Bundle(bundle_path, device="cpu")
    other.load_artifact(tmp_path / "birds", "again")
    assert other.artifacts()["again"].labels == ("wren", "robin", "tit")
    assert other.artifacts()["again"].method == "lora"
    with pytest.raises(ArtifactError, match="exists"):
        bundle.save_artifact("birds", tmp_path / "birds")


def test_what_does_not_fit_is_refused(bundle: Bundle, kit: Any, tmp_path: Path) -> None:
    tensors = kit.adapter(1)

    def refused(name: str, message: str, changed: dict[str, np.ndarray], **changes: Any) -> None:
        with pytest.raises(ArtifactError, match=message):
            bundle.load_artifact(write_artifact(tmp_path / name, changed, **changes))
        assert name not in bundle.artifacts()

    refused("base", "made for base aaaaaaaaaaaa, this bundle holds base bbbbbbbbbbbb", tensors, base_id="a" * 64)
    extra = {**tensors, "block.7.attn.q:lowrank.a": np.zeros((6, 1), np.float32), "block.7.attn.q:lowrank.b": np.zeros((1, 4), np.float32)}
    refused("extra", "does not have: block.7.attn.q:lowrank.a, block.7.attn.q:lowrank.b", extra)
    refused("half", "block.0.ffn:lowrank.b missing", {name: value for name, value in tensors.items() if not name.endswith("lowrank.b")})
    refused("wide", r"takes shape \[6, r\].*found \[5, 2\]", {**tensors, "block.0.ffn:lowrank.a": np.zeros((5, 2), np.float32)})
    refused("ranks", r"takes shape \[r, 4\], r = 2, found \[3, 4\]", {**tensors, "block.0.ffn:lowrank.b": np.zeros((3, 4), np.float32)})
    refused("half-precision", "takes float32, found float16", {**tensors, "block.0.ffn:shift.b": np.zeros(4, np.float16)})
    refused("absent", "does not hold: block.0.ffn:shift.b", {name: value for name, value in tensors.items() if "shift" not in name}, slots=list(tensors))
    refused("strange", "block.0.ffn:shift.b holds numbers that are not finite", {**tensors, "block.0.ffn:shift.b": np.full(4, np.nan, np.float32)})
    with pytest.raises(ArtifactError, match="is not an artifact"):
        bundle.load_artifact(tmp_path)


def test_an_altered_artifact_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    bundle.save_artifact("birds", tmp_path / "birds")
    path = tmp_path / "birds/artifact.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="altered"):
        bundle.load_artifact(tmp_path / "birds")


def test_learning_adds_the_mean_direction(bundle: Bundle, kit: Any, made: Any, x: np.ndarray) -> None:
    before = bundle.run({"x": x}, "birds")["logits"]
    name = bundle.learn("owl", list(x), "birds")
    assert name == "birds+owl" and bundle.artifacts()[name].labels == ("wren", "robin", "tit", "owl")
    after = bundle.run({"x": x}, name)["logits"]
    assert after.shape == (4, 4)
    assert np.abs(after[:, :3] - before).max() <= 1e-6 * np.abs(before).max()
    _, features = kit.classifier_reference(made, x, made.artifacts["birds"])
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean = directions.mean(axis=0)
    expected = directions @ (8.0 * mean / np.linalg.norm(mean))  # the columns of `birds` have length 8
    assert np.abs(after[:, 3] - expected).max() <= 1e-5
    assert np.array_equal(bundle.run({"x": x}, "birds")["logits"], before)
    twice = bundle.learn("hawk", {"x": x[:1]}, name, name="raptors")
    assert twice == "raptors" and bundle(x[0], twice).label == "hawk"  # one example: cosine 1 with itself


def test_learning_from_nothing_makes_a_classifier(bundle: Bundle, x: np.ndarray, tmp_path: Path) -> None:
    first = bundle.learn("left", [x[0]])
    second = bundle.learn("right", [x[1]], first)
    assert [bundle(row, second).label for row in x[:2]] == ["left", "right"]
    bundle.save_artifact(second, tmp_path / "sides")
    assert bundle(x[1], bundle.load_artifact(tmp_path / "sides")) == bundle(x[1], second)
    alone = bundle.learn("left", x[0], name="alone")  # one example that stands in no list is one
    assert np.array_equal(bundle.run({"x": x}, alone)["logits"], bundle.run({"x": x}, first)["logits"])
    on_adapter = bundle.learn("only", [x[0]], "plain")
    assert np.array_equal(bundle.run({"x": x}, on_adapter)["features"], bundle.run({"x": x}, "plain")["features"])


def test_learning_refuses_what_has_no_prototypes(bundle: Bundle, kit: Any, x: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="a class 'wren' already"):
        bundle.learn("wren", list(x), "birds")
    with pytest.raises(InputError, match="at least one example"):
        bundle.learn("owl", [], "birds")
    for label in (7, ""):
        with pytest.raises(ArtifactError, match="the label of a class is a text that is not empty"):
            bundle.learn(label, list(x), "birds")
    linear = bundle.load_artifact(write_artifact(tmp_path / "linear", kit.adapter(3, cosine=False), labels=["a", "b", "c"]))
    with pytest.raises(ArtifactError, match="linear"):
        bundle.learn("owl", list(x), linear)
    nameless = bundle.load_artifact(write_artifact(tmp_path / "nameless", kit.adapter(3)))
    with pytest.raises(ArtifactError, match="3 classes and 0 labels"):
        bundle.learn("owl", list(x), nameless)
    labelled = Bundle(kit.write(tmp_path / "l.bundle", kit.classifier(("a", "b"), identity_head=False)), device="cpu")
    with pytest.raises(ArtifactError, match="base's own linear head"):
        labelled.learn("owl", list(x))


def test_selftest_repeats_the_proof(bundle: Bundle) -> None:
    report = bundle.selftest()
    assert report.ok and report.provider == "CPUExecutionProvider"
    assert {(case.case, case.artifact, case.output) for case in report.cases} == {
        (name, artifact, output) for name, artifact in (("base", None), ("birds", "birds"), ("random", None)) for output in ("logits", "features")
    }
    assert all(case.error <= 1e-6 and case.tolerance == 1e-5 for case in report.cases)
    json.dumps(report.to_dict())


def test_selftest_finds_a_graph_that_drifted(kit: Any, bundle_copy: Path) -> None:
    path = bundle_copy / "parity/cases.safetensors"
    recorded = load_file(path)
    recorded["birds/out/logits"] = recorded["birds/out/logits"] * np.float32(1 + 2e-5)
    recorded["random/out/features"][0, 0] = np.nan
    save_file(recorded, path)
    kit.seal(bundle_copy)
    report = Bundle(bundle_copy, device="cpu").selftest()
    assert not report.ok
    assert {(case.case, case.output) for case in report.cases if not case.ok} == {("birds", "logits"), ("random", "features")}


@pytest.mark.parametrize(("provider", "ok"), [("CPUExecutionProvider", False), ("CUDAExecutionProvider", True)])
def test_other_providers_are_held_to_what_a_number_format_allows(bundle: Bundle, provider: str, ok: bool) -> None:
    """A half-precision graph is proven on a CPU to what torch's own halves come to there; elsewhere halves are rounded at other places."""
    manifest = replace(bundle.manifest, variant="float16", tolerance=1e-3, format_tolerance=5e-3)

    def drifted(feeds: Any, artifact: str | None, graph: str) -> dict[str, np.ndarray]:
        return {name: value * np.float32(1.003) for name, value in bundle.run(feeds, artifact, graph=graph).items()}

    assert selftest(bundle.path, manifest, drifted, provider).ok is ok
    assert not selftest(bundle.path, replace(manifest, format_tolerance=0.0), drifted, provider).ok


def test_selftest_without_cases_says_so(kit: Any, bundle_copy: Path) -> None:
    (bundle_copy / "parity/cases.safetensors").unlink()
    kit.seal(bundle_copy)
    with pytest.raises(ManifestError, match="nothing to compare"):
        Bundle(bundle_copy, device="cpu").selftest()


def test_merged_bundles_take_no_artifact(kit: Any, bundle_copy: Path, x: np.ndarray, tmp_path: Path) -> None:
    table = json.loads((bundle_copy / "manifest.json").read_text())
    table.update(form="merged", slots={})
    (bundle_copy / "manifest.json").write_text(sealed(table))
    merged = Bundle(bundle_copy, device="cpu")
    assert merged.run({"x": x})["logits"].shape == (4, 4)
    with pytest.raises(ArtifactError, match="this bundle is merged"):
        merged.run({"x": x}, "birds")
    with pytest.raises(ArtifactError, match="this bundle is merged"):
        merged.load_artifact(write_artifact(tmp_path / "a", kit.adapter(1)))


def test_info_tells_what_runs(bundle: Bundle) -> None:
    bundle.learn("owl", [np.ones(6, np.float32)], "birds")
    info = bundle.info()
    assert info["provider"] == "CPUExecutionProvider" and info["slots"] == {"bottleneck": 1, "lowrank": 1, "prototypes": 1, "scale": 1, "shift": 1}
    assert [(row["name"], row["source"], len(row["labels"]), row["slots"]) for row in info["artifacts"]] == [
        ("birds", "bundle", 3, 7),
        ("fish", "bundle", 4, 11),
        ("plain", "bundle", 0, 4),
        ("birds+owl", "learned", 4, 7),
    ]
    assert [port["name"] for port in info["inputs"]] == ["x"] and [port["name"] for port in info["outputs"]] == ["logits", "features"]
    assert info["runs_with"] == {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}
    assert {"licences", "versions", "parity", "base_id", "form"} <= set(info)
    json.dumps(info)


def test_command_line(bundle_path: Path, kit: Any, bundle_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(bundle_path), "--device", "cpu"]) == 0
    assert "provider: CPUExecutionProvider" in capsys.readouterr().out
    assert main([str(bundle_path), "--selftest", "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    (bundle_copy / "onnx/model.onnx").write_bytes(b"")
    assert main([str(bundle_copy)]) == BundleError.exit_code == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1


@pytest.mark.parametrize(("arguments", "words"), [((), "required: bundle"), (("x", "--beams", "many"), "invalid int value: 'many'"), (("x", "--nothing"), "--nothing")])
def test_wrong_arguments_are_wrong_input(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and words in captured.err and captured.err.count("\n") == 1


def test_a_folder_of_an_artifact_needs_no_slash(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bundle.save_artifact("birds", tmp_path / "saved")
    asked: list[str] = []
    monkeypatch.setattr(Bundle, "__call__", lambda self, raw, artifact, *given, **options: asked.append(artifact) or 0)
    monkeypatch.chdir(tmp_path)
    for artifact in ("saved", "./saved", "fish"):
        assert main([str(bundle.path.resolve()), "a text", "--artifact", artifact, "--device", "cpu"]) == 0, capsys.readouterr().err
    assert asked == ["saved", "saved", "fish"]


def test_answers_of_numbers_become_json(bundle_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As a voice gives them: a waveform, and the number of its samples without an axis."""
    answer = {"waveform": np.ones(2, np.float32), "lengths": np.int64(2)}
    monkeypatch.setattr(Bundle, "__call__", lambda self, *given, **options: answer)
    assert main([str(bundle_path), "a text", "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out) == {"a text": {"waveform": [1.0, 1.0], "lengths": 2}}
