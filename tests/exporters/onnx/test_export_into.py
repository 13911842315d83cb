"""Artifacts added to a bundle that is there: proved like those of an export, or nothing changes."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from polyadapt import api
from polyadapt.artifact import Artifact, detach
from polyadapt.cli import main
from polyadapt.edits import Edit
from polyadapt.errors import ExportError, UserError
from polyadapt.families.mlp_policy.card import CARD as POLICY
from polyadapt.families.vit.card import CARD as VIT
from polyadapt.model import Model
from polyadapt.testing.conformance import example_of, tiny_model
from polyadapt_onnx.exporter import export
from polyadapt_onnx.into import add_artifacts
from polyadapt_onnx.variants import VARIANTS
from polyadapt_runtime import Bundle
from polyadapt_runtime.seal import sealed

SITE = "block.0.ffn.up"


def low_rank(model: Model, seed: int, rank: int = 2, site: str = SITE) -> Artifact:
    port = model.ports.get("op", site)
    generator = torch.Generator().manual_seed(seed)
    tensors = {"a": torch.randn(port.in_features, rank, generator=generator), "b": torch.randn(rank, port.out_features, generator=generator)}
    return Artifact("lora", model.base_id, model.family.card.id, model.task.kind, (Edit(site, "lowrank", tensors),))


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(POLICY)


@pytest.fixture(scope="module")
def exported(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(model, {"first": low_rank(model, 1)}, tmp_path_factory.mktemp("into") / "policy.bundle").directory


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "policy.bundle"))


def digests(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}


def test_an_added_artifact_answers_as_torch_and_is_proved(model: Model, bundle: Path) -> None:
    before, second = digests(bundle), low_rank(model, 2, rank=5)
    made = add_artifacts(model, {"second": second}, bundle)
    opened = Bundle(bundle, device="cpu")
    inputs = example_of(model, seed=9)
    second.attach(model)
    with torch.no_grad():
        expected = model.module(**inputs)["action"].numpy()
    detach(model)
    found = opened.run({name: value.numpy() for name, value in inputs.items()}, "second")["action"]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    proof = opened.selftest()
    assert proof.ok and {row.artifact for row in proof.cases} == {None, "first", "second"}
    assert opened.artifacts()["second"].method == "lora" and made.report["ok"]
    same = {name for name, digest in digests(bundle).items() if before.get(name) == digest}
    assert set(before) - same == {"manifest.json", "README.md", "parity/cases.json", "parity/cases.safetensors", "parity/report.json"}
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_the_proof_is_that_of_an_export_with_both(model: Model, bundle: Path, tmp_path: Path) -> None:
    """What is listed and checked does not depend on the order in which artifacts came."""
    artifacts = {"first": low_rank(model, 1), "second": low_rank(model, 2, rank=5)}
    whole = export(model, artifacts, tmp_path / "whole.bundle").directory
    add_artifacts(model, {"second": artifacts["second"]}, bundle)
    added, both = (json.loads((root / "manifest.json").read_text()) for root in (bundle, whole))
    assert added["artifacts"] == both["artifacts"] and added["slots"] == both["slots"] and set(added["files"]) == set(both["files"])
    cases = [{(row["name"], row["output"]) for row in json.loads((root / "parity/report.json").read_text())["cases"]} for root in (bundle, whole)]
    assert cases[0] == cases[1]
    report = json.loads((bundle / "parity/report.json").read_text())
    assert added["parity"]["max_relative_error"] == max(row["error"] for row in report["cases"])
    assert {row["artifact"] for row in report["effects"] if row["check"] == "artifact"} == {"first", "second"}


def refused(model: Model, bundle: Path, artifacts: dict[str, Artifact], error: type[Exception], message: str) -> None:
    before = digests(bundle)
    with pytest.raises(error, match=message):
        add_artifacts(model, artifacts, bundle)
    assert digests(bundle) == before and [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_a_failing_gate_leaves_the_bundle_as_it_was(model: Model, bundle: Path) -> None:
    dead = low_rank(model, 3)
    dead = dead.with_edits([replace(edit, tensors={**edit.tensors, "b": torch.zeros_like(edit.tensors["b"])}) for edit in dead.edits])
    refused(model, bundle, {"alive": low_rank(model, 2), "dead": dead}, ExportError, "artifact dead: changes nothing")


def test_a_graph_that_does_not_repeat_torch_is_found(model: Model, bundle: Path) -> None:
    """The graph's own weights altered, digests written anew: only parity tells."""
    path = bundle / "onnx/model.onnx.data"
    weights = np.frombuffer(path.read_bytes(), np.float32) * np.float32(1.01)
    path.write_bytes(weights.tobytes())
    table = json.loads((bundle / "manifest.json").read_text())
    table["files"]["onnx/model.onnx.data"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (bundle / "manifest.json").write_text(sealed(table))
    refused(model, bundle, {"second": low_rank(model, 2)}, ExportError, r"second/0.*relative error")


def test_what_does_not_fit_is_refused_with_its_reason(model: Model, bundle: Path) -> None:
    other = tiny_model(POLICY, seed=1)
    missing = r"does not have: block.1.ffn.up:lowrank.a, block.1.ffn.up:lowrank.b"
    refused(model, bundle, {"far": low_rank(model, 2, site="block.1.ffn.up")}, UserError, missing)
    refused(model, bundle, {"first": low_rank(model, 2)}, UserError, "'first' already")
    refused(model, bundle, {"strange": low_rank(other, 2)}, UserError, "made for base")
    refused(other, bundle, {"strange": low_rank(other, 2)}, UserError, "load the model that it was exported from")
    refused(model, bundle, {"../up": low_rank(model, 2)}, UserError, "cannot name an artifact")


def test_a_broken_or_merged_bundle_takes_nothing(model: Model, bundle: Path, tmp_path: Path) -> None:
    merged = export(model, {"first": low_rank(model, 1)}, tmp_path / "m" / "merged.bundle", "merged").directory
    refused(model, merged, {"second": low_rank(model, 2)}, UserError, "this bundle is merged")
    (tmp_path / "b").mkdir()
    bundle = bundle.rename(tmp_path / "b" / "policy.bundle")
    (bundle / "README.md").write_text("other")
    refused(model, bundle, {"second": low_rank(model, 2)}, UserError, "README.md")


def test_the_command_line_adds_by_the_bundles_own_reference(model: Model, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A signature covered the old files, so it goes, and the command says so."""
    (bundle / "signature.json").write_text("{}")
    base = api.load("polyadapt:tiny-mlp-policy")
    table = json.loads((bundle / "manifest.json").read_text())
    assert table["reference"] == base.reference and table["base_id"] == model.base_id == base.base_id
    folder = low_rank(base, 4).save(tmp_path / "later")
    assert main(["export", "--artifact", str(folder), "--into", str(bundle), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["added"] == ["later"] and "sign the bundle again" in facts["signature"] and not (bundle / "signature.json").exists()
    assert main(["verify", str(bundle)]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either --out"),
        (("--out", "x", "--into", "y"), "either --out"),
        (("--out", "x"), "needs the model REF"),
        (("--into", "y"), "at least one"),
        (("--into", "y", "--artifact", "a", "--form", "merged"), "form slots"),
    ],
)
def test_contradictory_arguments_are_one_clear_line(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_variants_and_adapter_files_are_kept_up(model: Model, tmp_path: Path) -> None:
    """An artifact that comes later passes every variant's gate too, and gets the files that the others have."""
    made = export(model, {"first": low_rank(model, 1)}, tmp_path / "policy.bundle", options={"variants": ("float16", "int8"), "adapters": True}).directory
    add_artifacts(model, {"second": low_rank(model, 2, rank=5)}, made)
    manifest, report = (json.loads((made / name).read_text()) for name in ("manifest.json", "parity/report.json"))
    assert manifest["artifacts"]["second"]["onnx_adapter"] in manifest["files"]
    for name in ("float16", "int8"):
        assert set(manifest["variants"][name]["parity"]["effect_correlations"]) == {"first", "second"} == set(report["variants"][name]["effect_correlations"])
        assert any(row.get("artifact") == "second" for row in report["variants"][name]["effects"])
        told = [json.dumps(row, sort_keys=True) for part in ("cases", "effects") for row in report["variants"][name][part] if row.get("name") != "all"]
        assert len(told) == len(set(told))  # base and random adapters stand there once
        assert Bundle(made, device="cpu", variant=name).selftest().ok


def test_an_artifact_that_fails_a_variant_is_refused(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 passes, the variant asks for more than there can be, and the bundle stays as it was."""
    made = export(model, {"first": low_rank(model, 1)}, tmp_path / "policy.bundle", options={"variants": ("float16",)}).directory
    before = digests(made)
    monkeypatch.setitem(VARIANTS, "float16", replace(VARIANTS["float16"], correlation=1.1))
    with pytest.raises(ExportError, match="variant float16 did not pass its gate.* artifact second: its effect correlates"):
        add_artifacts(model, {"second": low_rank(model, 2)}, made)
    assert digests(made) == before


def test_answers_of_a_variant_count_the_new_ones_once(tmp_path: Path) -> None:
    """Best classes that were compared: as many as an export with both artifacts compares."""
    model = tiny_model(VIT, "classification")
    made_of = {"first": low_rank(model, 1, site="block.0.attn.q"), "second": low_rank(model, 2, site="block.0.attn.q")}
    artifacts = {
        name: whole.with_edits(replace(edit, tensors={part: value * 0.2 for part, value in edit.tensors.items()}) for edit in whole.edits) for name, whole in made_of.items()
    }
    options = {"variants": ("float16",)}
    made = export(model, {"first": artifacts["first"]}, tmp_path / "made.bundle", options=options).directory
    whole = export(model, artifacts, tmp_path / "whole.bundle", options=options).directory
    add_artifacts(model, {"second": artifacts["second"]}, made)
    counts = [json.loads((root / "manifest.json").read_text())["variants"]["float16"]["parity"]["answers"]["compared"] for root in (whole, made)]
    assert counts[0] == counts[1] > 0
