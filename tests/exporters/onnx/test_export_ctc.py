"""Texts from frames in a bundle: the same words as torch says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import polyadapt as pa
from polyadapt.model import Model
from polyadapt_onnx.exporter import export
from polyadapt_onnx.manifest import postprocess
from polyadapt_runtime import Bundle

pytest.importorskip("transformers", reason="the host alone brings no models of sound")


def reader(details: dict[str, object]) -> Model:
    """A random model whose every other symbol parts words."""
    model = pa.load("polyadapt:tiny-wav2vec2")
    size = int(model.signature.outputs[0].shape[-1])
    symbols = ["<blank>", *(chr(ord("a") + number % 26) if number % 2 else "|" for number in range(1, size))]
    return replace(model, task=replace(model.task, labels=(), details={"vocabulary": symbols, **details}))


def test_words_are_parted_as_torch_parts_them(tmp_path: Path) -> None:
    """Of a checkpoint that names its vocabulary only, as those of torchaudio do, the symbol between words is the usual one."""
    model, sound = reader({}), ((0.3 * np.random.default_rng(0).standard_normal(16000)).astype(np.float32), 16000)
    expected = pa.infer(model, sound)["text"]
    assert " " in expected and "|" not in expected
    export(model, {}, tmp_path / "x.bundle")
    assert Bundle(tmp_path / "x.bundle", device="cpu")(sound) == expected


@pytest.mark.parametrize(("details", "separator"), [({}, "|"), ({"separator": "#"}, "#"), ({"separator": ""}, ""), ({"separator": None}, "")])
def test_a_bundle_says_what_parts_its_words(details: dict[str, object], separator: str) -> None:
    assert postprocess(reader(details))["separator"] == separator
