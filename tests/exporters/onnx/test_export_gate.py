"""The gate blocks: what disagrees with torch, what does nothing and what should do nothing and does, is not written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from polyadapt.artifact import Artifact
from polyadapt.edits import Edit, attachments_of
from polyadapt.edits.kinds.lowrank import LowRank
from polyadapt.edits.kinds.shift import Shift
from polyadapt.errors import ExportError, UserError
from polyadapt.families.mlp_policy.card import CARD as POLICY
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.model import Model
from polyadapt.testing.conformance import state_of, tiny_model
from polyadapt.testing.exporting import adapted_artifact
from polyadapt_onnx import graph
from polyadapt_onnx.exporter import export
from polyadapt_onnx.forms import merged, slots
from polyadapt_onnx.gate import Arrays, Case, GateReport, check_artifact_effect, check_parity, check_slot_effects, check_swap, relative_error

METHODS = {claim.card.id: claim.card for claim in Host().registry.methods.claims()}


def policy() -> Model:
    return tiny_model(POLICY)


def artifact_of(model: Model, method: str) -> Artifact:
    return adapted_artifact(load_method(METHODS[method]), model)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(model: Model, artifacts: Mapping[str, Artifact], folder: Path, words: str, form: str = "slots", **options: Any) -> None:
    """The export fails with these words, leaves nothing behind, keeps the bundle that was there, and the model as it was."""
    old = folder / "old.bundle"
    old.mkdir()
    (old / "manifest.json").write_text("an older bundle")
    before = state_of(model)
    with pytest.raises(ExportError, match=words):
        export(model, artifacts, old, form, options)
    assert tree(folder) == {"old.bundle/manifest.json": b"an older bundle"}
    assert [path.name for path in folder.iterdir()] == ["old.bundle"]
    after = state_of(model)
    assert set(after) == set(before) and all(torch.equal(after[name], value) for name, value in before.items())
    assert not hasattr(model.module, "polyadapt")


def test_a_first_bundle_that_fails_leaves_an_empty_folder(tmp_path: Path) -> None:
    model = policy()
    silent = Artifact("bitfit", model.base_id, "mlp-policy", "control", (Edit("embed", "shift", {"b": torch.zeros(32)}),))
    with pytest.raises(ExportError, match="artifact silent: changes nothing"):
        export(model, {"silent": silent}, tmp_path / "deep" / "new.bundle", options={"legacy_fallback": False})
    assert not any(path.is_file() for path in tmp_path.rglob("*")) and not (tmp_path / "deep" / "new.bundle").exists()


def spoilt(monkeypatch: pytest.MonkeyPatch, change: Callable[[onnx.ModelProto], None]) -> None:
    """Change every graph behind the exporter's back, before the gate sees it."""
    honest = graph.write_graph

    def write(traced: Any, path: Path) -> str:
        made = honest(traced, path)
        model = onnx.load(str(path))
        change(model)
        onnx.save(model, str(path))
        return made

    for form in (slots, merged):
        monkeypatch.setattr(form, "write_graph", write)


def nudge(model: onnx.ModelProto) -> None:
    """One weight of the largest constant moved by one thousandth."""
    largest = max((tensor for tensor in model.graph.initializer if ":" not in tensor.name), key=lambda tensor: int(np.prod(tensor.dims)))
    values = numpy_helper.to_array(largest).copy()
    values.flat[0] += 1e-3
    largest.CopyFrom(numpy_helper.from_array(values, largest.name))


@pytest.mark.parametrize("form", ["slots", "merged"])
def test_a_wrong_weight(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = policy()
    artifact = artifact_of(model, "lora")
    spoilt(monkeypatch, nudge)
    refused(model, {"a": artifact}, tmp_path, r"did not pass the gate .* relative error .*, tolerance 1e-05; nothing was written", form, legacy_fallback=False)


def test_a_default_that_is_not_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(model: onnx.ModelProto) -> None:
        scale = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(":scale.g"))
        scale.CopyFrom(numpy_helper.from_array(np.full(tuple(scale.dims), 1.01, np.float32), scale.name))

    model = policy()
    artifact = artifact_of(model, "ia3")
    spoilt(monkeypatch, change)
    refused(model, {"a": artifact}, tmp_path, r"base/0, output action, .*relative error", legacy_fallback=False)


def test_a_slot_that_reaches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch and the graph agree perfectly, and the slot is dead in both: an absolute tolerance alone would pass."""
    honest = Shift.apply
    monkeypatch.setattr(Shift, "apply", lambda self, edit, x, h, port: honest(self, edit, x, h, port) * 0 + h if edit.site == "block.1.ffn.up" else honest(self, edit, x, h, port))
    model = policy()
    refused(
        model, {"a": artifact_of(model, "bitfit")}, tmp_path, r"1 of \d+ checks failed\): slot block\.1\.ffn\.up:shift\.b: moves no output beyond rounding", legacy_fallback=False
    )


def test_an_artifact_that_changes_nothing(tmp_path: Path) -> None:
    model = policy()
    artifact = artifact_of(model, "lora")
    silent = artifact.with_edits(replace(edit, tensors={"a": edit.tensors["a"], "b": torch.zeros_like(edit.tensors["b"])}) for edit in artifact.edits)
    refused(model, {"good": artifact, "silent": silent}, tmp_path, r"1 of \d+ checks failed\): artifact silent: changes nothing", legacy_fallback=False)


def test_a_baked_artifact_that_changes_nothing(tmp_path: Path) -> None:
    model = policy()
    artifact = artifact_of(model, "bitfit")
    silent = artifact.with_edits(replace(edit, tensors={"b": torch.zeros_like(edit.tensors["b"])}) for edit in artifact.edits)
    refused(model, {"silent": silent}, tmp_path, "artifact silent changes nothing", "merged", legacy_fallback=False)


def test_a_declared_null_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = policy()
    monkeypatch.setattr(model.family, "no_effect", lambda backbone: {"embed:shift": "somebody said so"})
    refused(
        model, {"a": artifact_of(model, "bitfit")}, tmp_path, r"slot embed:shift\.b: declared without effect \(somebody said so\) but moves the output by", legacy_fallback=False
    )


def test_a_null_that_is_not_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shift of all keys moves the scores of a query alike; what is left of it is rounding, and that is no effect."""
    model = tiny_model(VIT, "features")
    edits = tuple(Edit(f"block.{n}.attn.{part}", "shift", {"b": torch.ones(32)}) for n in range(2) for part in "kv")
    artifact = Artifact("bitfit", model.base_id, "vit", "features", edits)
    monkeypatch.setattr(model.family, "no_effect", lambda backbone: {})
    refused(model, {"a": artifact}, tmp_path, r"2 of \d+ checks failed\): slot block\.0\.attn\.k:shift\.b: moves no output beyond rounding", legacy_fallback=False)


def test_a_graph_that_onnxruntime_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = policy()
    spoilt(monkeypatch, lambda made: setattr(made.graph.node[0], "op_type", "NoSuchOp"))
    refused(model, {}, tmp_path, "onnxruntime refuses the exported graph", legacy_fallback=False)


def test_what_dynamo_cannot_trace_goes_through_the_legacy_exporter_and_the_same_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    def fail(*_: Any) -> None:
        raise RuntimeError("cannot trace")

    model = policy()
    artifact = artifact_of(model, "lora")
    monkeypatch.setattr(graph, "_write_dynamo", fail)
    with pytest.raises(ExportError, match="the dynamo exporter cannot trace this model: cannot trace"):
        export(model, {"a": artifact}, tmp_path / "a.bundle", "slots", {"legacy_fallback": False})
    export(model, {"a": artifact}, tmp_path / "a.bundle")
    manifest = json.loads((tmp_path / "a.bundle" / "manifest.json").read_text())
    assert manifest["graphs"]["model"]["exporter"] == "legacy" and manifest["parity"]["ok"] is True
    monkeypatch.setattr(LowRank, "apply", lambda self, edit, x, h, port: h)
    with pytest.raises(ExportError):
        export(model, {"a": artifact}, tmp_path / "b.bundle")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"form": "banks"}, "unknown form 'banks'; bundles come as slots or merged or bank"),
        ({"form": "merged", "artifacts": ()}, "bakes in exactly one artifact, 0 were given"),
        ({"form": "merged", "artifacts": ("lora", "ia3")}, "bakes in exactly one artifact, 2 were given; use form 'slots'"),
        ({"artifacts": ("full",)}, "and patch has no slots; export it with form='merged'"),
        ({"options": {"seeds": 1}}, "seed"),
        ({"options": {"extra_slots": ("attn.q",)}}, "'attn.q' does not name slots"),
        ({"options": {"extra_slots": ("ffn.upp:lowrank",)}}, "no site matches 'ffn.upp'"),
        ({"options": {"extra_slots": ("ffn:bottleneck~beside",)}}, "has no variant 'beside'"),
        ({"options": {"extra_slots": ("ffn:patch",)}}, "edits of kind 'patch' have no slots"),
    ],
    ids=["form", "none", "two", "patch", "option", "slots", "site", "variant", "kind"],
)
def test_what_the_exporter_refuses_before_it_begins(arguments: dict[str, Any], words: str, tmp_path: Path) -> None:
    model = policy()
    artifacts = {name: artifact_of(model, name) for name in arguments.get("artifacts", ())}
    with pytest.raises(UserError, match=words):
        export(model, artifacts, tmp_path / "a.bundle", arguments.get("form", "slots"), arguments.get("options"))
    assert not list(tmp_path.iterdir())


def test_another_base_and_a_model_with_something_attached_are_refused(tmp_path: Path) -> None:
    model, other = policy(), tiny_model(POLICY, seed=1)
    artifact = artifact_of(model, "lora")
    with pytest.raises(UserError) as refusal:
        export(other, {"a": artifact}, tmp_path / "a.bundle")
    assert model.base_id[:12] in str(refusal.value) and other.base_id[:12] in str(refusal.value)
    artifact.attach(model, "forgotten")
    with pytest.raises(UserError, match="detach forgotten before exporting"):
        export(model, {"a": artifact}, tmp_path / "a.bundle")
    assert attachments_of(model.module).names == ("forgotten",) and not list(tmp_path.iterdir())


def test_a_model_in_half_precision_is_refused_in_a_line(tmp_path: Path) -> None:
    model = policy()
    artifact = artifact_of(model, "lora")
    model.backbone.to(torch.bfloat16)
    with pytest.raises(UserError, match="is in bfloat16, and graphs are written from float32; load it anew"):
        export(model, {"a": artifact}, tmp_path / "a.bundle")
    assert not list(tmp_path.iterdir())


def test_relative_error() -> None:
    one = np.array([1.0, -4.0, 2.0], np.float32)
    assert relative_error(one, one) == 0.0 and relative_error(one + 0.04, one) == pytest.approx(0.01, rel=1e-5)
    assert relative_error(one[:2], one) == np.inf
    holes = np.array([1.0, np.nan, 2.0], np.float32)
    assert relative_error(one, holes) == np.inf and relative_error(holes, one) == np.inf and relative_error(holes, holes) == 0.0
    assert relative_error(np.zeros((0, 3)), np.zeros((0, 3))) == 0.0
    assert relative_error(np.full(3, np.inf, np.float32), one) == np.inf


class Fake:
    """A graph whose answers the test decides."""

    outputs = ("y",)

    def __init__(self, answer: Callable[[Arrays, Arrays], Any]) -> None:
        self.answer = answer

    def run(self, inputs: Arrays, slots: Arrays) -> Arrays:
        return {"y": np.asarray(self.answer(inputs, slots), np.float32)}


def case(name: str, slots: Arrays, expected: Any, artifact: str | None = None) -> Case:
    return Case(name, artifact, {"batch": 2}, {"x": np.ones(2, np.float32)}, slots, {"y": np.asarray(expected, np.float32)})


def test_parity_looks_at_every_output_of_every_case() -> None:
    report = GateReport(1e-5)
    fake: Any = Fake(lambda inputs, slots: [1.0, 2.0])
    check_parity(fake, [case("good/0", {}, [1.0, 2.0]), case("bad/0", {}, [1.0, 2.1])], report, 1e-5)
    assert [row["ok"] for row in report.cases] == [True, False] and not report.ok and report.max_error == pytest.approx(0.1 / 2.1, rel=1e-5)
    with pytest.raises(ExportError, match=r"1 of 2 checks failed\): bad/0, output y"):
        report.require()


def test_a_graph_is_held_to_its_own_tolerance() -> None:
    """Graphs of one bundle may have different ones; the summary's is that of the first."""
    report, fake = GateReport(1e-1), cast(Any, Fake(lambda inputs, slots: [1.0, 2.0]))
    cases = [case("near/0", {}, [1.0, 2.02])]
    check_parity(fake, cases, report, 1e-1)
    check_parity(fake, cases, report, 1e-3)
    assert [(row["ok"], row["tolerance"]) for row in report.cases] == [(True, 1e-1), (False, 1e-3)] and not report.ok


def test_a_graph_that_remembers_the_last_adapter_fails_the_swap() -> None:
    calls: list[Any] = []
    fake: Any = Fake(lambda inputs, slots: calls.append(slots) or [float(len(calls))])
    report = GateReport(1e-5)
    check_swap(fake, {None: case("base/0", {}, [1.0]), "a": case("a/0", {"s": np.ones(1)}, [2.0])}, report)
    assert [row["ok"] for row in report.effects] == [False, False] and len(calls) == 4


def test_an_error_as_large_as_the_effect_fails() -> None:
    """Both within tolerance of 1e-5, and yet the adapter's own contribution is half wrong."""
    fake: Any = Fake(lambda inputs, slots: [1.0 + (1e-6 if slots else 0.0)])
    report = GateReport(1e-5)
    adapted = case("a/0", {"s": np.ones(1)}, [1.0 + 2e-6], "a")
    check_artifact_effect(fake, case("base/0", {}, [1.0]), adapted, report)
    assert not report.effects[0]["ok"]


def test_a_sleeping_unit_is_tried_with_other_inputs() -> None:
    """A slot behind a closed rectifier moves nothing at one case and something at another; a dead one nowhere."""
    fake: Any = Fake(lambda inputs, slots: inputs["x"] + np.maximum(inputs["x"].sum() - 2.0, 0.0) * slots["up:shift.b"] + 0.0 * slots["dead:shift.b"])
    slots = {"up:shift.b": np.ones(1, np.float32), "dead:shift.b": np.ones(1, np.float32)}
    closed = case("random/0", slots, [0.0])
    opened = replace(closed, name="random/1", inputs={"x": np.ones(3, np.float32)})
    report = GateReport(1e-5)
    check_slot_effects(fake, [closed, opened], {}, report)
    assert {row["slot"]: row["ok"] for row in report.effects} == {"up:shift.b": True, "dead:shift.b": False}
