"""Every family's graph: all methods' slots in one bundle, a baked one and a bank, all through the blocking gate.

The families of NEAR, one of each build, are exported in the default run, the others by `make test-wide`; their further tasks by
`make matrix` and `pytest -m slow`.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

from polyadapt.errors import ExportError, UserError
from polyadapt.host import Host
from polyadapt.methods.base import Method, load_method
from polyadapt.testing.conformance import applies, has_form, tasks_of, tiny_model
from polyadapt.testing.exporting import check_bank, check_export, check_merged, merged_representatives
from polyadapt_onnx.views import writes
from polyadapt_runtime import Bundle

REGISTRY = Host().registry
FAMILIES = {claim.card.id: claim.card for claim in REGISTRY.families.claims()}
NEAR = ("ast", "bert", "gpt2", "mlp-policy", "resnet", "vit", "vits")


def reach(family: str, near: tuple[str, ...] = NEAR, usual: bool = True) -> list[pytest.MarkDecorator]:
    """Which run exports it."""
    return [pytest.mark.slow] if not usual else [] if family in near else [pytest.mark.wide]


CELLS = [pytest.param(family, task, id=f"{family}-{task}", marks=reach(family, usual=not index)) for family, card in FAMILIES.items() for index, task in enumerate(tasks_of(card))]


def all_methods() -> list[Method]:
    made = [load_method(claim.card) for claim in REGISTRY.methods.claims()]
    return [method for method in made if has_form(method)]


@pytest.mark.parametrize(("family", "task"), CELLS)
def test_slots_of_all_methods_in_one_graph(family: str, task: str, tmp_path: Path) -> None:
    model, methods = tiny_model(FAMILIES[family], task), all_methods()
    made = check_export(methods, model, tmp_path)
    expected = {method.card.id for method in methods if "slots" in method.card.exports and not applies(method, model)}
    manifest = json.loads((made.directory / "manifest.json").read_text())
    assert set(manifest["artifacts"]) == expected and {"lora", "ia3", "hydra", "dora"} <= expected
    rows = made.report["effects"]
    assert {row["slot"] for row in rows if row["check"] == "slot"} == set(manifest["slots"])
    assert {row["artifact"] for row in rows if row["check"] == "swap"} == {None, *expected}
    assert {row["artifact"] for row in rows if row["check"] == "artifact"} == expected
    overridable: list[str] = []
    for graph in manifest["graphs"].values():
        assert graph["exporter"] == FAMILIES[family].export[task].exporter
        session = onnxruntime.InferenceSession(made.directory / graph["file"], providers=["CPUExecutionProvider"])
        overridable += [value.name for value in session.get_overridable_initializers()]
        assert [value.name for value in session.get_inputs()] == [port["name"] for port in graph["inputs"]]
    assert sorted(overridable) == sorted(manifest["slots"])  # each slot stands in one graph
    assert Bundle(made.directory).selftest().ok
    gc.collect()


@pytest.mark.parametrize(("family", "task"), CELLS)
def test_a_folding_and_a_staying_method_baked_into_one_graph(family: str, task: str, tmp_path: Path) -> None:
    model = tiny_model(FAMILIES[family], task)
    chosen = merged_representatives(all_methods(), model)
    assert chosen
    made = check_merged(chosen, model, tmp_path)
    manifest = json.loads((made.directory / "manifest.json").read_text())
    assert manifest["form"] == "merged" and manifest["slots"] == {}
    for graph in manifest["graphs"].values():
        session = onnxruntime.InferenceSession(made.directory / graph["file"], providers=["CPUExecutionProvider"])
        assert not session.get_overridable_initializers()
    assert Bundle(made.directory).selftest().ok
    gc.collect()


@pytest.mark.parametrize("check", [check_export, check_merged, check_bank])
def test_a_graph_that_only_the_other_exporter_makes_is_no_proof(check: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = torch.onnx.export

    def without_dynamo(*given: Any, **options: Any) -> Any:
        if options.get("dynamo"):
            raise torch.onnx.errors.OnnxExporterError("dynamo is broken")
        return made(*given, **options)

    monkeypatch.setattr(torch.onnx, "export", without_dynamo)
    with pytest.raises(ExportError, match="dynamo is broken"):
        check([method for method in all_methods() if method.card.id == "lora"], tiny_model(FAMILIES["mlp-policy"]), tmp_path)


# One method for each kind of edit that a bank takes: lowrank, keys with bottleneck, prepend, scale and shift, class heads.
IN_A_BANK = ("lora", "mam", "prompt", "norm-tuning", "linear-probe")
NO_BANK = {
    "clip": r"cannot hold text\..*: its module does not run on the rows",
    **dict.fromkeys(("vits", "voice"), "the length of output 'waveform' depends on the artifact"),
}


@pytest.mark.parametrize("family", [pytest.param(family, marks=reach(family, ("mlp-policy", "vit", "clip", "vits"))) for family in FAMILIES])
def test_a_bank_of_several_methods(family: str, tmp_path: Path) -> None:
    model = tiny_model(FAMILIES[family])
    methods = [method for method in all_methods() if method.card.id in IN_A_BANK]
    if family in NO_BANK:
        with pytest.raises(UserError, match=NO_BANK[family]):
            check_bank(methods, model, tmp_path)
        assert not list(tmp_path.iterdir())
        return
    made = check_bank(methods, model, tmp_path)
    manifest = json.loads((made.directory / "manifest.json").read_text())
    expected = [method.card.id for method in methods if not applies(method, model) and not (writes(model) and method.card.id == "prompt")]
    assert {name: entry["artifact_id"] for name, entry in manifest["artifacts"].items()} == {name: number for number, name in enumerate(expected, 1)}
    rows = made.report["effects"]
    assert {row["slot"] for row in rows if row["check"] == "slot"} == set(manifest["slots"])
    assert all({row["artifact"] for row in rows if row["check"] == check} == {None, *expected} for check in ("swap", "rows", "places"))
    assert Bundle(made.directory).selftest().ok
    gc.collect()


def test_a_staying_method_is_among_the_representatives_where_there_is_one() -> None:
    chosen = {
        family: [method.card.id for method in merged_representatives(all_methods(), tiny_model(card))]
        for family, card in FAMILIES.items()
        if family in ("bert", "resnet", "mlp-policy")
    }
    assert chosen == {"bert": ["lora", "bottleneck"], "resnet": ["lora"], "mlp-policy": ["lora", "bottleneck"]}
