"""`merged:FOLDER`: an artifact folded into its base, loaded as a base of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import polyadapt as pa
from polyadapt.artifact import Artifact
from polyadapt.edits import attachments_of
from polyadapt.errors import UserError
from polyadapt.testing.conformance import example_of, non_degenerate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A seeded LoRA artifact of a tiny encoder."""
    attached = pa.attach(pa.load("polyadapt:tiny-whisper", task="features"), "lora")
    non_degenerate(attached.form)
    return attached.artifact().save(tmp_path / "lora")


def test_the_merged_base_answers_as_the_attached_artifact_and_is_another_base(folder: Path) -> None:
    base = pa.load("polyadapt:tiny-whisper", task="features")
    merged = pa.load(f"merged:{folder}", base="polyadapt:tiny-whisper")
    inputs = example_of(base)
    Artifact.load(folder).attach(base)
    with torch.no_grad():
        expected, found = base.module(**inputs)["features"], merged.module(**inputs)["features"]
    attachments_of(base.module).remove_all()
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    assert merged.base_id != base.base_id and merged.base_id == pa.load(f"merged:{folder}?base=polyadapt:tiny-whisper").base_id
    assert merged.task.kind == "features" and merged.reference == "polyadapt:tiny-whisper"
    with pytest.raises(UserError, match="was made for base"):
        Artifact.load(folder).attach(merged)


def test_what_is_missing_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="base"):
        pa.load(f"merged:{folder}")
    with pytest.raises(UserError, match="is not an artifact"):
        pa.load(f"merged:{tmp_path / 'nothing'}", base="polyadapt:tiny-whisper")
    with pytest.raises(UserError, match="was made for base"):
        pa.load(f"merged:{folder}", base="polyadapt:tiny-whisper?seed=5")
