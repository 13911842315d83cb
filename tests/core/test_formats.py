"""Format 1 of artifacts and bundles stays readable: the files were written once, by tests/data/formats/make.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyadapt.artifact import Artifact
from polyadapt.errors import UserError
from polyadapt.families.mlp_policy.card import CARD
from polyadapt.model import Model, build_model
from polyadapt.signature import Task
from polyadapt.tensors import load_tensors
from polyadapt.testing.conformance import example_of, load_family, tiny_model
from polyadapt_runtime import Bundle
from polyadapt_runtime.preprocess import Processor

FORMATS = Path(__file__).parents[1] / "data" / "formats"


def recorded_base() -> Model:
    """The policy that the files were made for, from its recorded weights: draws may differ between machines."""
    backbone = tiny_model(CARD).backbone
    backbone.load_state_dict(load_tensors(FORMATS / "base-v1.safetensors", "recorded base"))
    return build_model(load_family(CARD), backbone, Task("control"), Processor({"kind": "tensors"}, {}), reference="recorded")


def test_artifact_of_format_1_is_read_and_acts() -> None:
    artifact = Artifact.load(FORMATS / "artifact-v1")
    assert (artifact.method, artifact.family, artifact.task, artifact.kind) == ("lora", "mlp-policy", "control", "adapter")
    assert list(artifact.slots) == json.loads((FORMATS / "artifact-v1" / "artifact.json").read_text())["slots"]
    model = recorded_base()
    inputs = example_of(model)
    before = model.module(**inputs)["action"]
    artifact.attach(model)
    assert (model.module(**inputs)["action"] - before).abs().max() > 1e-3


def test_bundle_of_format_1_proves_itself() -> None:
    report = Bundle(FORMATS / "bundle-v1").selftest()
    assert report.ok
    assert {case.artifact for case in report.cases} == {None, "lora"}


def test_another_artifact_format_is_refused_by_number(tmp_path: Path) -> None:
    head = json.loads((FORMATS / "artifact-v1" / "artifact.json").read_text())
    (tmp_path / "artifact.json").write_text(json.dumps({**head, "format": 2}))
    with pytest.raises(UserError, match="artifact format 2, this version reads format 1"):
        Artifact.load(tmp_path)


def test_base_identity_is_what_it_was() -> None:
    assert recorded_base().base_id == Artifact.load(FORMATS / "artifact-v1").base_id
