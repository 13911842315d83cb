"""Fields that code computes with: a manifest in which one is no number, id or name is refused in one line, before anything is made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyadapt_runtime import ArtifactError, Bundle, ManifestError
from polyadapt_runtime.fields import check_generation, filled_inputs
from polyadapt_runtime.preprocess import Processor
from polyadapt_runtime.seal import sealed

IMAGE = {"kind": "image", "input": "x", "size_px": [8, 8]}
AUDIO = {"kind": "audio", "input": "x", "sample_rate_hz": 16000}
TEXT = {"kind": "text", "inputs": {"ids": "x"}}
ARRAY = {"kind": "array", "input": "x", "shape": [4]}
WRONG_SPECS = [
    (IMAGE, {"size_px": [60000, 60000]}),
    (IMAGE, {"size_px": [4]}),
    (IMAGE, {"size_px": ["4", "4"]}),
    (IMAGE, {"size_px": [0, 4]}),
    (IMAGE, {"channels": "abc"}),
    (IMAGE, {"channels": 2}),
    (IMAGE, {"crop_fraction": 0}),
    (IMAGE, {"crop_fraction": 1e-6}),
    (IMAGE, {"crop_fraction": "all"}),
    (AUDIO, {"sample_rate_hz": "16 kHz"}),
    (AUDIO, {"sample_rate_hz": 0}),
    (AUDIO, {"sample_rate_hz": 99}),
    (AUDIO, {"seconds": 3600, "sample_rate_hz": 1_000_000}),
    (AUDIO, {"seconds": 1e12}),
    (AUDIO, {"minimum_seconds": "short"}),
    (AUDIO, {"maximum_seconds": float("nan")}),
    (TEXT, {"maximum_tokens": "many"}),
    (TEXT, {"maximum_tokens": 0}),
    (TEXT, {"pad_id": "z"}),
    (TEXT, {"pad_side": "middle"}),
    (TEXT, {"inputs": {"ids": ["x"]}}),
    ({**TEXT, "kind": "phonemes"}, {"inputs": {"ids": ["x"]}}),
    ({**TEXT, "kind": "phonemes"}, {"pad_id": 1.5}),
    (ARRAY, {"dtype": "floot"}),
    (ARRAY, {"dtype": "O"}),
    (ARRAY, {"shape": [-1]}),
    ({"kind": "parts", "parts": {"a": ARRAY}}, {"parts": {"a": {**ARRAY, "dtype": "floot"}}}),
]


@pytest.mark.parametrize(("spec", "change"), WRONG_SPECS, ids=lambda value: str(value)[:60])
def test_a_spec_with_a_wrong_field_is_refused(spec: dict[str, Any], change: dict[str, Any]) -> None:
    Processor(spec)
    field = "dtype" if "parts" in change else next(iter(change))
    with pytest.raises(ManifestError, match=rf"pre-processing of kind '\w+': {field}[^\n]*export it again$"):
        Processor({**spec, **change})


WRONG_GENERATION: list[dict[str, Any]] = [
    {"past": {"layers": 300_000_000, "heads": 1, "head_size": 8}},
    {"past": {"layers": 1, "heads": "two", "head_size": 8}},
    {"past": {"layers": 1, "heads": 1, "head_size": 10**30}},
    {"past": [1]},
    {"eos_ids": 5},
    {"start_ids": [1.5]},
    {"suppress_ids": ["a"]},
    {"suppress_ids": [11]},
    {"eos_ids": [11]},
    {"timestamps": {"first_id": 1, "off_id": 11, "step_s": 0.02}},
    {"past": {"layers": 1, "heads": 1, "head_size": 2**31 - 1}},
    {"begin_suppress_ids": [-1]},
    {"maximum_tokens": "many"},
    {"languages": {"en": "x"}},
    {"timestamps": {"first_id": "a"}},
    {"timestamps": {"first_id": 1, "off_id": 2, "step_s": 0}},
]


@pytest.mark.parametrize("table", WRONG_GENERATION, ids=str)
def test_a_generation_with_a_wrong_field_is_refused(table: dict[str, Any]) -> None:
    check_generation({"eos_ids": [1], "suppress_ids": None, "past": {"layers": 2, "heads": 1, "head_size": 8}}, 4, 11, "generation")
    key, value = next(iter(table.items()))
    field = key if not isinstance(value, dict) or key == "languages" else f"{key}: {next((name for name in value if name != 'first_id' and value[name] in ('two', 0, 10**30)), '')}"
    with pytest.raises(ManifestError, match=rf"^generation(\.|: ){field}[^\n]*export it again$"):
        check_generation(table, 4, 11, "generation")


def changed(root: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """As somebody does who writes the digests anew."""
    table = json.loads((root / "manifest.json").read_text())
    change(table)
    (root / "manifest.json").write_text(sealed(table))
    return root


def test_a_bundle_with_such_a_field_is_not_opened(bundle_copy: Path) -> None:
    changed(bundle_copy, lambda table: table.update(generation={"past": {"layers": 30_000, "heads": 1, "head_size": 8}}))
    with pytest.raises(ManifestError, match="layers must be at most half of the 1 inputs of the graph, found 30000"):
        Bundle(bundle_copy, device="cpu")
    changed(bundle_copy, lambda table: table.update(generation={}, preprocess={**table["preprocess"], "dtype": "floot"}))
    with pytest.raises(ManifestError, match="dtype must be a dtype of numbers, found floot"):
        Bundle(bundle_copy, device="cpu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"postprocess": {"kind": "ctc", "blank_id": "x"}}, "postprocess: blank_id must be an id, or null, found x"),
        ({"postprocess": {"kind": "ctc", "separator": 5}}, "postprocess: separator must be a text, or null, found 5"),
        ({"parity": {"tolerance": 10**400}}, "is not valid JSON .a whole number of more than 64 bits"),
    ],
    ids=("blank", "separator", "a number beyond all floats"),
)
def test_a_bundle_with_a_strange_number_is_not_opened(bundle_copy: Path, change: dict[str, Any], words: str) -> None:
    changed(bundle_copy, lambda table: table.update(change))
    with pytest.raises(ManifestError, match=words):
        Bundle(bundle_copy, device="cpu")


@pytest.mark.parametrize(("name", "words"), [("x", "is made of the raw input that a call gives"), ("nothing", "is no input of this model; it takes x")])
def test_an_artifact_does_not_replace_the_raw_input(bundle_copy: Path, bundle_path: Path, tmp_path: Path, name: str, words: str) -> None:
    """`condition` is for inputs that nothing else fills; in the bundle and in a folder from outside."""
    guest = Bundle(bundle_path, device="cpu").save_artifact("birds", tmp_path / "guest")
    head = json.loads((guest / "artifact.json").read_text())
    (guest / "artifact.json").write_text(json.dumps({**head, "condition": {name: [0.0] * 6}}))
    with pytest.raises(ArtifactError, match=f"artifact 'guest' brings a value for '{name}', which {words}"):
        Bundle(bundle_path, device="cpu").load_artifact(guest)
    changed(bundle_copy, lambda table: table["artifacts"]["birds"].update(condition={name: [0.0] * 6}))
    with pytest.raises(ManifestError, match=f"artifact 'birds' brings a value for '{name}', which {words}"):
        Bundle(bundle_copy, device="cpu")


def test_what_pre_processing_fills() -> None:
    parts = {"kind": "parts", "parts": {"a": {**AUDIO, "lengths": "count"}, "b": {"kind": "text", "inputs": {"ids": "ids", "mask": None}}}}
    assert filled_inputs(parts) == {"x", "count", "ids"} and filled_inputs({"kind": "tensors"}) == set()
