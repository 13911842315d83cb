"""Every family's graph: all methods' slots in one bundle, a baked one and a bank, all through the blocking gate.

The usual task of a family is exported in the default run, its other tasks by `make matrix` and `pytest -m slow`.
"""

from __future__ import annotations

import gc
import json
from pathlib import Path

import onnxruntime
import pytest

from polyadapt.errors import UserError
from polyadapt.host import Host
from polyadapt.methods.base import Method, load_method
from polyadapt.testing.conformance import applies, has_form, tasks_of, tiny_model
from polyadapt.testing.exporting import check_bank, check_export, check_merged, merged_representatives
from polyadapt_onnx.views import writes
from polyadapt_runtime import Bundle

REGISTRY = Host().registry
FAMILIES = {claim.card.id: claim.card for claim in REGISTRY.families.claims()}
CELLS = [
    pytest.param(family, task, id=f"{family}-{task}", marks=[pytest.mark.slow] if index else []) for family, card in FAMILIES.items() for index, task in enumerate(tasks_of(card))
]


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


# One method for each kind of edit that a bank takes: lowrank, keys with bottleneck, prepend, scale and shift, class heads.
IN_A_BANK = ("lora", "mam", "prompt", "norm-tuning", "linear-probe")
NO_BANK = {
    "clip": r"cannot hold text\..*: its module does not run on the rows",
    **dict.fromkeys(("vits", "voice"), "the length of output 'waveform' depends on the artifact"),
}
QUICK_BANKS = ("mlp-policy", "vit", "clip", "vits")


@pytest.mark.parametrize("family", [pytest.param(family, marks=[] if family in QUICK_BANKS else [pytest.mark.slow]) for family in FAMILIES])
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
