"""Variants of a bundle by hand: which graph runs, by which measure it is proven, and what an entry must be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from polyadapt_runtime import Bundle, IntegrityError, ManifestError, UnsafePathError
from polyadapt_runtime.__main__ import main
from polyadapt_runtime.seal import sealed
from polyadapt_runtime.selftest import pooled_error

FEEDS = {"x": np.ones((2, 6), np.float32)}


def change(root: Path, kit: Any, alter: Callable[[dict[str, Any]], None]) -> None:
    table = json.loads((root / "manifest.json").read_text())
    alter(table)
    (root / "manifest.json").write_text(sealed(table))
    kit.seal(root)


@pytest.fixture
def varied(bundle_copy: Path, kit: Any) -> Path:
    """The variant's weights are off by noise of one per cent."""
    model = onnx.load(str(bundle_copy / "onnx/model.onnx"))
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "W")
    values = numpy_helper.to_array(weight)
    noise = np.random.default_rng(5).standard_normal(values.shape).astype(np.float32)
    weight.CopyFrom(numpy_helper.from_array(values + 0.01 * noise, "W"))
    onnx.save(model, str(bundle_copy / "onnx/model_quantized.onnx"))
    parity = {"ok": True, "measure": "rmse-std", "tolerance": 0.05, "error": 0.01}
    entry = {"graphs": {"model": {"file": "onnx/model_quantized.onnx", "data": []}}, "parity": parity}
    change(bundle_copy, kit, lambda table: table.update(variants={"int8": entry}))
    return bundle_copy


def test_the_chosen_graph_runs_with_the_same_artifacts(varied: Path) -> None:
    plain, other = Bundle(varied, device="cpu"), Bundle(varied, device="cpu", variant="int8")
    for artifact in (None, "birds", "fish"):
        difference = np.abs(plain.run(FEEDS, artifact)["features"] - other.run(FEEDS, artifact)["features"]).max()
        assert 1e-4 < difference < 0.5, artifact
    assert plain.info()["variant"] == "float32" and plain.info()["variants"] == ["float32", "int8"]
    assert other.info()["variant"] == "int8" and other.info()["variant_parity"]["tolerance"] == 0.05


def test_each_is_proven_by_its_own_measure(varied: Path, kit: Any) -> None:
    assert Bundle(varied, device="cpu").selftest().ok
    good = Bundle(varied, device="cpu", variant="int8").selftest()
    assert good.ok and {case.case for case in good.cases} == {"all"} and all(0 < case.error <= 0.05 for case in good.cases)
    change(varied, kit, lambda table: table["variants"]["int8"]["parity"].update(tolerance=1e-3))
    assert not Bundle(varied, device="cpu", variant="int8").selftest().ok
    change(varied, kit, lambda table: table["variants"]["int8"]["parity"].update(measure="max-relative", tolerance=0.2))
    relative = Bundle(varied, device="cpu", variant="int8").selftest()
    assert relative.ok and {case.case for case in relative.cases} == {"base", "birds", "random"}


def test_the_command_line_takes_a_variant(varied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(varied), "--device", "cpu", "--variant", "int8", "--selftest", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["variant"] == "int8"
    assert main([str(varied), "--variant", "int4"]) == 1
    assert "no variant 'int4'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("alter", "error", "words"),
    [
        (lambda entry: entry["graphs"]["model"].update(file="onnx/other.onnx"), ManifestError, "'onnx/other.onnx' is used but not among"),
        (lambda entry: entry["graphs"]["model"].update(file="../model.onnx"), UnsafePathError, "not a plain path"),
        (lambda entry: entry["graphs"].clear(), ManifestError, "model must be dict"),
        (lambda entry: entry["parity"].update(measure="feeling"), ManifestError, "measure 'feeling'; this version knows max-relative, rmse-std"),
        (lambda entry: entry["parity"].pop("tolerance"), ManifestError, "tolerance must be float"),
        (lambda entry: entry.pop("parity"), ManifestError, "parity must be dict"),
    ],
)
def test_a_wrong_entry_is_refused(varied: Path, kit: Any, alter: Callable[[dict[str, Any]], Any], error: type[Exception], words: str) -> None:
    change(varied, kit, lambda table: alter(table["variants"]["int8"]))
    with pytest.raises(error, match=words):
        Bundle(varied, device="cpu", variant="int8")
    assert Bundle(varied, device="cpu").run(FEEDS)  # what is not chosen does no harm


def test_weights_from_an_unnamed_file_are_refused(varied: Path, kit: Any) -> None:
    model = onnx.load(str(varied / "onnx/model_quantized.onnx"))
    onnx.save(model, str(varied / "onnx/model_quantized.onnx"), save_as_external_data=True, location="smuggled.data", size_threshold=0)
    kit.seal(varied)
    with pytest.raises(IntegrityError, match=r"reads weights from 'onnx/smuggled\.data'"):
        Bundle(varied, device="cpu", variant="int8")


def test_a_flipped_byte_of_a_variant_is_found(varied: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(varied, tmp_path / "other.bundle"))
    data = bytearray((other / "onnx/model_quantized.onnx").read_bytes())
    data[-3] ^= 1
    (other / "onnx/model_quantized.onnx").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model_quantized\.onnx was altered"):
        Bundle(other, device="cpu", variant="int8")


def test_the_pooled_error_is_the_formula() -> None:
    expected = [np.array([1.0, 2.0]), np.array([[5.0], [8.0]])]
    found = [expected[0] + 0.3, expected[1] - 0.1]
    deviation = np.std([1.0, 2.0, 5.0, 8.0])
    assert pooled_error(list(zip(found, expected, strict=True))) == pytest.approx(np.sqrt((2 * 0.09 + 2 * 0.01) / 4) / deviation)
    assert pooled_error([(np.zeros(2), np.zeros(3))]) == float("inf")
    assert pooled_error([(np.array([np.nan, 1.0]), np.array([0.0, 1.0]))]) == float("inf")
    assert pooled_error([(np.ones(2), np.ones(2))]) == 0.0 and pooled_error([(np.zeros(0), np.zeros(0))]) == 0.0
    assert pooled_error([(np.ones(2) + 1, np.ones(2))]) == float("inf")
