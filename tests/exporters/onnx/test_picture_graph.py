"""The graph in front of models of pictures: what Pillow gives, to 2 of 255 steps, for pictures of any shape."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import polyadapt as pa
from polyadapt.errors import ExportError
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.testing.exporting import adapted_artifact
from polyadapt_onnx import picture
from polyadapt_onnx.gate import GateReport
from polyadapt_onnx.picture import BRIGHTEST, DARKEST, FILTERS, TOLERANCE, described_spec, picture_graph, why_not, write_picture_graph
from polyadapt_runtime import Bundle
from polyadapt_runtime.image import read_image


def spec(**changes: Any) -> dict[str, Any]:
    return {"kind": "image", "input": "image", "size_px": [64, 64], "resize": "crop", "crop_fraction": 0.875, "interpolation": "bicubic", "channels": 3, **changes}


def session(described: dict[str, Any]) -> Any:
    return onnxruntime.InferenceSession(picture_graph(described).SerializeToString(), providers=["CPUExecutionProvider"])


def answer(opened: Any, pixels: np.ndarray) -> np.ndarray:
    found: np.ndarray = opened.run(["image"], {"picture": pixels})[0]
    return found


def errors(described: dict[str, Any], count: int, darkest: int = DARKEST, brightest: int = BRIGHTEST) -> np.ndarray:
    """Largest and mean error in steps of 255, by picture of random shape."""
    opened, generator = session(described), np.random.default_rng(0)
    found = []
    for height, width in generator.integers(8, 400, (count, 2)):
        pixels = generator.integers(darkest, brightest + 1, (height, width, 3), dtype=np.uint8)
        difference = np.abs(answer(opened, pixels)[0] - read_image(pixels, described)) * 255
        found.append((difference.max(), difference.mean()))
    return np.array(found)


@pytest.mark.parametrize("size_px", [[64, 64], [48, 96], [224, 224]])
@pytest.mark.parametrize("crop_fraction", [1.0, 0.875])
@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("interpolation", FILTERS)
def test_equals_the_runtimes_own_way(interpolation: str, resize: str, crop_fraction: float, size_px: list[int]) -> None:
    found = errors(spec(interpolation=interpolation, resize=resize, crop_fraction=crop_fraction, size_px=size_px), 12)
    assert found[:, 0].max() <= TOLERANCE * 255
    assert found[:, 1].mean() < 0.15  # nine pixels in ten are equal


@pytest.mark.slow
def test_the_tolerance_is_what_many_pictures_need() -> None:
    """Not one step too wide: the worst of 1200 is 2, and nothing is above."""
    combinations = itertools.product(FILTERS, ("crop", "squash"))
    worst = max(errors(spec(interpolation=interpolation, resize=resize, crop_fraction=1.0), 300)[:, 0].max() for interpolation, resize in combinations)
    assert 1.5 < worst <= TOLERANCE * 255


def test_hard_edges_differ_in_single_pixels_only() -> None:
    """Black and white noise overshoots, and Pillow cuts off between two passes whose order it chooses: a few pixels are off, the picture is not."""
    assert errors(spec(crop_fraction=1.0), 40, 0, 255)[:, 1].max() < 1.0


@pytest.mark.parametrize(("height", "width"), [(90, 133), (133, 90), (64, 64), (1, 1), (3, 700), (700, 3), (73, 74), (75, 200)])
@pytest.mark.parametrize("size_px", [[64, 64], [48, 96]])
def test_every_shape_is_cut_where_pillow_cuts(height: int, width: int, size_px: list[int]) -> None:
    """On a ramp a cut that is off by one pixel shows in every pixel."""
    rows, columns = np.linspace(40, 120, height)[:, None], np.linspace(20, 100, width)[None]
    ramp = np.repeat((rows + columns)[..., None], 3, axis=2).astype(np.uint8)
    described = spec(size_px=size_px)
    found = answer(session(described), ramp)
    assert found.shape == (1, 3, *size_px) and found.dtype == np.float32
    assert np.abs(found[0] - read_image(ramp, described)).max() <= TOLERANCE


def test_channels_keep_their_order() -> None:
    pixels = np.zeros((80, 80, 3), np.uint8) + np.array([200, 100, 50], np.uint8)
    assert np.array_equal(answer(session(spec()), pixels)[0, :, 5, 5], np.array([200, 100, 50], np.float32) / np.float32(255))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"interpolation": "lanczos"}, "Pillow's lanczos; bilinear and bicubic have one"),
        ({"interpolation": "box"}, "Pillow's box"),
        ({"interpolation": "hamming"}, "Pillow's hamming"),
        ({"interpolation": "nearest"}, "Pillow's nearest"),
        ({"channels": 1}, "1 channel"),
        ({"crop_fraction": 1.2}, "framed in black"),
    ],
)
def test_what_has_no_graph_says_why(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    described, report = spec(**changes), GateReport(1e-5)
    write_picture_graph(tmp_path, described, report, 0)
    assert not any(tmp_path.iterdir()) and not report.effects
    assert words in described_spec(described)["without_graph"] and "without_graph" not in described_spec(spec())


def test_other_pre_processing_is_left_alone(tmp_path: Path) -> None:
    report = GateReport(1e-5)
    for described in (None, {"kind": "audio", "input": "audio", "sample_rate_hz": 16000}):
        write_picture_graph(tmp_path, described, report, 0)
        assert why_not(described)
    assert not any(tmp_path.iterdir()) and not report.effects
    assert described_spec({"kind": "audio"}) == {"kind": "audio"}


def test_a_bundle_holds_it_with_its_parity(tmp_path: Path) -> None:
    """In the folder, in the manifest, in the report; from decoded pixels to the answer without Pillow."""
    model = pa.load("polyadapt:tiny-vit", task="classification")
    artifact = adapted_artifact(load_method(Host().registry.methods.get("bitfit").card), model)
    folder = tmp_path / "pictures.bundle"
    pa.export(model, {"a": artifact}, folder)
    bundle = Bundle(folder, device="cpu")
    graph = bundle.manifest.graphs["preprocess"]
    assert (graph.file, graph.data, graph.inputs[0].dtype, graph.outputs[0].shape) == ("onnx/preprocess.onnx", (), "uint8", (1, 3, 32, 32))
    rows = [row for row in json.loads((folder / "parity" / "report.json").read_text())["effects"] if row["check"] == "preprocess"]
    assert len(rows) == 5 and all(row["ok"] and row["error"] <= row["tolerance"] == TOLERANCE and row["cause"] for row in rows)
    pixels = np.random.default_rng(1).integers(DARKEST, BRIGHTEST, (50, 41, 3), dtype=np.uint8)
    front = onnxruntime.InferenceSession(folder / graph.file, providers=["CPUExecutionProvider"])
    found = bundle(dict(zip(["image"], front.run(["image"], {"picture": pixels}), strict=True)), artifact="a")[0]
    assert found.top[0][1] == pytest.approx(bundle(pixels, artifact="a").score, abs=0.02)


def test_a_graph_beyond_the_tolerance_blocks_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one attribute onnxruntime counts what lies beyond the picture's border."""
    honest = picture_graph

    def careless(described: dict[str, Any]) -> onnx.ModelProto:
        model = honest(described)
        for node in model.graph.node:
            kept = [attribute for attribute in node.attribute if attribute.name != "exclude_outside"]
            del node.attribute[:]
            node.attribute.extend(kept)
        return model

    monkeypatch.setattr(picture, "picture_graph", careless)
    report = GateReport(1e-5)
    write_picture_graph(tmp_path, spec(crop_fraction=1.0), report, 0)
    with pytest.raises(ExportError, match=r"preprocess\.onnx, picture of 129 x 192: error .* of 255 steps, tolerance 2"):
        report.require()
