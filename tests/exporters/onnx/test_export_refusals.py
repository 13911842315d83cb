"""What an export refuses before anything is traced, and what it leaves out of a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyadapt.artifact import Artifact
from polyadapt.edits import Edit
from polyadapt.errors import ExportError, UserError
from polyadapt.families.mlp_policy.card import CARD as POLICY
from polyadapt.model import Model
from polyadapt.tensors import load_tensors, save_tensors
from polyadapt.testing.conformance import tiny_model
from polyadapt_onnx.exporter import export
from polyadapt_onnx.forms.merged import check_baked_effect
from polyadapt_onnx.gate import Case, GateReport, check_parity
from polyadapt_onnx.into import add_artifacts
from polyadapt_onnx.manifest import shown_reference

SITE = "block.0.ffn.up"


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(POLICY)


def shift(model: Model, value: float = 0.5) -> Artifact:
    edit = Edit(SITE, "shift", {"b": torch.full((model.ports.get("op", SITE).out_features,), value)})
    return Artifact("bitfit", model.base_id, model.family.card.id, model.task.kind, (edit,))


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*given: Any) -> str:
        raise AssertionError("something was traced")

    for form in ("slots", "merged", "bank"):
        monkeypatch.setattr(f"polyadapt_onnx.forms.{form}.write_graph", write)


def refused(model: Model, artifacts: Mapping[str, Artifact], folder: Path, words: str, form: str = "slots", **options: Any) -> None:
    with pytest.raises(UserError, match=words):
        export(model, artifacts, folder / "a.bundle", form, options)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("form", ["slots", "merged", "bank"])
@pytest.mark.parametrize(("name", "words"), [("base", "recorded cases without an artifact"), ("random", "recorded cases without an artifact"), ("../up", "use letters, digits")])
def test_names_that_no_artifact_has(model: Model, name: str, words: str, form: str, tmp_path: Path) -> None:
    """`base` would take the place of the case that proves the base, `random` of those that prove the slots."""
    refused(model, {name: shift(model)}, tmp_path, f"'{name}' cannot name an artifact in a bundle.*{words}", form)


@pytest.mark.parametrize("name", ["base", "random", "../up"])
def test_names_that_no_artifact_has_later(model: Model, name: str, tmp_path: Path) -> None:
    """The name alone decides: there need not be a bundle yet."""
    with pytest.raises(UserError, match=f"'{name}' cannot name an artifact in a bundle"):
        add_artifacts(model, {name: shift(model)}, tmp_path / "none.bundle")


@pytest.mark.parametrize("form", ["slots", "merged", "bank"])
def test_an_artifact_that_holds_nothing(model: Model, form: str, tmp_path: Path) -> None:
    empty = shift(model).with_edits(())
    refused(model, {"empty": empty} if form == "merged" else {"good": shift(model), "empty": empty}, tmp_path, "artifact empty holds no edits and brings no input", form)


@pytest.mark.parametrize("form", ["slots", "merged", "bank"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_artifact_with_numbers_that_are_none(model: Model, value: float, form: str, tmp_path: Path) -> None:
    """torch and the graph agree on not-a-numbers, so no comparison sees them."""
    refused(model, {"bad": shift(model, value)}, tmp_path, rf"artifact bad: {SITE}:shift\.b holds numbers that are not finite", form)


def test_an_artifact_that_would_replace_the_raw_input(model: Model, tmp_path: Path) -> None:
    name = model.signature.inputs[0].name
    strange = replace(shift(model), own={"condition.nothing": torch.ones(3)})
    refused(model, {"a": strange}, tmp_path, f"artifact a brings a value for 'nothing', which is no input of this model; it takes {name}")


@pytest.mark.parametrize("form", ["merged", "bank"])
def test_adapter_files_of_a_form_without_fed_slots(model: Model, form: str, tmp_path: Path) -> None:
    refused(model, {"a": shift(model)}, tmp_path, f"adapters=true writes the tensors that are fed to slots, and a bundle of form '{form}' takes none", form, adapters=True)


class Echo:
    """A graph that answers what is asked of it."""

    def __init__(self, answer: list[float]) -> None:
        self.answer = np.array(answer, np.float32)

    def run(self, inputs: Any, slots: Any) -> dict[str, np.ndarray]:
        return {"logits": self.answer}


@pytest.mark.parametrize(("values", "absent", "good"), [([1, np.nan], (), False), ([1, np.inf], ("logits",), False), ([1, -np.inf], (), False), ([1, -np.inf], ("logits",), True)])
def test_what_torch_answers_is_a_number(values: list[float], absent: tuple[str, ...], good: bool) -> None:
    """Minus infinity says that a row of a bank has no such class; anything else that is not finite is no answer, though both sides give it."""
    report, graph = GateReport(1e-5), Echo(values)
    check_parity(graph, [Case("a/0", None, {}, {}, {}, {"logits": graph.answer}, absent=absent)], report, 1e-5)  # type: ignore[arg-type]
    assert report.ok is good
    if not good:
        with pytest.raises(ExportError, match="torch's own answer holds numbers that are not finite"):
            report.require()


@pytest.mark.parametrize(("found", "good"), [(1.00010, True), (1.0, False), (1.00005, False)])
def test_a_baked_artifact_acts_in_the_graph_as_in_torch(found: float, good: bool) -> None:
    """A change of 1e-4 of the answer within a tolerance of 1e-3: a graph without half of it would pass by parity alone."""
    report = GateReport(1e-3)
    plain, expected, answer = ({"y": np.array([value], np.float64)} for value in (1.0, 1.0001, found))
    check_baked_effect("a", plain, expected, answer, report)
    assert report.ok is good and report.effects[0]["change"] == pytest.approx(1e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("reference", "shown"),
    [
        ("/srv/ann/m", "m"),
        ("hf:/srv/ann/m", "m"),
        ("usat:/srv/ann/voices/ben/", "ben"),
        ("diffusers:~/m", "m"),
        ("voice:C:\\Users\\ann\\m", "m"),
        ("usat:voice:/srv/ann/m", "m"),
        ("~/m", "m"),
        ("hf:openai/whisper-tiny", "hf:openai/whisper-tiny"),
        ("timm:hf-hub:timm/vit", "timm:hf-hub:timm/vit"),
        ("polyadapt:tiny-vit", "polyadapt:tiny-vit"),
    ],
)
def test_a_manifest_names_no_folder_of_whoever_exported(reference: str, shown: str) -> None:
    assert shown_reference(reference) == shown


@pytest.mark.parametrize("metadata", [None, {}, {"a": "b"}])
def test_no_tensors_are_a_file_that_can_be_read(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_tensors(tmp_path / "none.safetensors", {}, metadata)
    assert load_tensors(tmp_path / "none.safetensors", "nothing") == {}
