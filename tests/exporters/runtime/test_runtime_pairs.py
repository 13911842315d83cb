"""Models that compare each picture with each text: an answer does not depend on how many are asked together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyadapt_runtime import Bundle, GraphError
from polyadapt_runtime.manifest import Graph, Port
from polyadapt_runtime.runner import rows_of

PAIRS = """
agraph (float[batch, 3] image, float[texts, 3] text) => (float[batch, texts] logits, float[batch, 3] image_features, float[texts, 3] text_features)
{
    turned = Transpose(text)
    logits = MatMul(image, turned)
    image_features = Identity(image)
    text_features = Identity(text)
}
"""


def port(name: str, *shape: int | str) -> dict[str, Any]:
    return {"name": name, "dtype": "float32", "shape": list(shape)}


@pytest.fixture
def bundle(kit: Any, tmp_path: Path) -> Bundle:
    made = kit.classifier()
    made.model, made.slots = kit.graph(PAIRS, {}, {}, {}), {}
    parts = {name: {"kind": "array", "input": name, "shape": [3]} for name in ("image", "text")}
    made.manifest.update(
        task={"kind": "image-text", "labels": [], "metric": "", "details": {}},
        inputs=[port("image", "batch", 3), port("text", "texts", 3)],
        outputs=[port("logits", "batch", "texts"), port("image_features", "batch", 3), port("text_features", "texts", 3)],
        preprocess={"kind": "parts", "parts": parts},
        postprocess={"kind": "image-text"},
    )
    return Bundle(kit.write(tmp_path / "pairs.bundle", made), device="cpu", threads=1)


def pair(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(3).astype(np.float32) for name in ("image", "text")}


def test_a_pair_is_answered_alike_alone_and_among_others(bundle: Bundle) -> None:
    pairs = [pair(seed) for seed in range(3)]
    together = bundle(pairs)
    for given, found in zip(pairs, together, strict=True):
        alone = bundle(given)
        assert alone["logits"].shape == (1,) and np.allclose(alone["logits"], given["image"] @ given["text"], atol=1e-6)
        assert all(np.array_equal(found[name], alone[name]) for name in alone)


def test_a_table_of_tensors_is_split_by_the_manifest_and_not_by_sizes(bundle: Bundle) -> None:
    """As many texts as pictures: each picture has a row of scores, and the texts are everybody's."""
    feeds = {name: np.stack([pair(seed)[name] for seed in range(2)]) for name in ("image", "text")}
    rows = rows_of(bundle.run(feeds), bundle.manifest.graphs["model"])
    assert [row["logits"].shape for row in rows] == [(2,), (2,)]
    assert all(np.array_equal(row["text_features"], feeds["text"]) and row["image_features"].shape == (3,) for row in rows)


def test_outputs_without_an_axis_of_examples_are_said() -> None:
    graph = Graph("a.onnx", (), (), (Port("y", "float32", ()),))
    with pytest.raises(GraphError, match=r"no output of a\.onnx has an axis of examples; it gives: y"):
        rows_of({"y": np.zeros(())}, graph)
