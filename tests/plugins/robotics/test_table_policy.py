"""Cloned policies: trained once, kept, the same again; and counted in whole episodes by the command."""

from __future__ import annotations

import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from polyadapt.artifact import Artifact
from polyadapt.cli import main
from polyadapt.errors import UserError
from polyadapt.host import Host
from polyadapt.methods.base import load_method
from polyadapt.methods.lora.card import CARD as LORA
from polyadapt.testing.conformance import non_degenerate
from polyadapt_onnx import export
from polyadapt_robotics import entry, policy
from polyadapt_robotics.rollout import roll_out
from polyadapt_robotics.world import OBSERVATION_SIZE
from polyadapt_runtime import Bundle

QUICK = policy.Cloning(episodes=300, width=64, blocks=1, steps=600)
HOST = Host(plugins=[("core", import_module("polyadapt.builtin")), ("robotics", entry)], discover=False, environment={})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and policies that are trained in a moment."""
    monkeypatch.setenv("POLYADAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(policy, "Cloning", lambda: QUICK)
    return tmp_path / "cache"


def test_a_policy_is_trained_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = HOST.load("table-policy:reach")
    assert model.task.kind == "control" and model.signature.inputs[0].shape == ("batch", OBSERVATION_SIZE)
    kept = list(cache.rglob("*.safetensors"))
    assert len(kept) == 1
    monkeypatch.setattr(policy, "train_policy", lambda *arguments: pytest.fail("trained again"))
    again = HOST.load("table-policy:reach")
    assert again.base_id == model.base_id and again.reference == "table-policy:reach"


def test_training_is_seeded_and_a_damaged_file_is_replaced(cache: Path) -> None:
    first = HOST.load("table-policy:reach")
    path = next(cache.rglob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    state = torch.random.get_rng_state()
    assert HOST.load("table-policy:reach").base_id == first.base_id
    assert torch.equal(torch.random.get_rng_state(), state)
    assert HOST.load("table-policy:reach?seed=1").base_id != first.base_id


def test_a_cloned_policy_does_its_task(cache: Path) -> None:
    backbone = policy.cached_policy("reach", 0)

    def act(observations: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return backbone(torch.from_numpy(observations)).numpy()

    assert roll_out(act, "reach", 200, 99).rate > 0.9


def test_an_unknown_task_is_refused_before_anything_trains(cache: Path) -> None:
    with pytest.raises(UserError, match="table-policy:reach"):
        HOST.load("table-policy:raech")
    assert not cache.exists()


@pytest.fixture
def bundle(cache: Path, tmp_path: Path) -> Path:
    """A bundle of a policy with an artifact that spoils it, and the artifact's folder beside it."""
    model = HOST.load("table-policy:reach")
    form = load_method(LORA).build(model, LORA.options(sites=("head", "ffn.*"), rank=2), torch.Generator().manual_seed(0))
    non_degenerate(form)
    artifact = Artifact("lora", model.base_id, model.family.card.id, "control", tuple(form.lower()), LORA.options().model_dump(mode="json"))
    artifact.save(tmp_path / "spoilt")
    export(model, {"spoilt": artifact}, tmp_path / "x.bundle", "slots")
    return tmp_path / "x.bundle"


def test_rollouts_count_the_same_from_bundle_and_model(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for name, policy_argument in (("bundle", [str(bundle)]), ("model", ["table-policy:reach", "--artifact", str(tmp_path / "spoilt")])):
        assert main(["robotics", "rollout", policy_argument[0], "table-world:reach", *policy_argument[1:], "--episodes", "20", "--json"]) == 0
        found[name] = {row["policy"]: row["success"] for row in json.loads(capsys.readouterr().out)["rollouts"]}
    assert found["bundle"] == found["model"]
    assert found["bundle"]["base"] > 0.8 > found["bundle"]["spoilt"]


@pytest.mark.parametrize(("form", "policies"), [("merged", ["spoilt"]), ("bank", ["base", "spoilt"])])
def test_rollouts_of_bundles_of_every_form(form: str, policies: list[str], bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one artifact of a merged graph is no base, and a bank is told by number."""
    place = tmp_path / f"{form}.bundle"
    export(HOST.load("table-policy:reach"), {"spoilt": Artifact.load(tmp_path / "spoilt")}, place, form)
    found = {}
    for path in (bundle, place):
        assert main(["robotics", "rollout", str(path), "table-world:reach", "--episodes", "20", "--json"]) == 0
        found[path] = {row["policy"]: row["success"] for row in json.loads(capsys.readouterr().out)["rollouts"]}
    assert list(found[place]) == policies and all(found[place][name] == found[bundle][name] for name in policies)


def test_a_name_that_no_bundle_has_is_no_row_of_figures(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "merged.bundle"
    export(HOST.load("table-policy:reach"), {"spoilt": Artifact.load(tmp_path / "spoilt")}, place, "merged")
    for path in (bundle, place):
        assert main(["robotics", "rollout", str(path), "table-world:reach", "--artifact", "spoild", "--episodes", "2"]) == 1
        assert "has no artifact 'spoild'; did you mean 'spoilt'" in capsys.readouterr().err


def test_normalisation_stands_in_the_graph(bundle: Path) -> None:
    """Raw observations in metres go in; the answer is torch's."""
    opened = Bundle(bundle, device="cpu")
    model = HOST.load("table-policy:reach")
    observations = np.random.default_rng(0).uniform(-0.5, 0.5, (6, OBSERVATION_SIZE)).astype(np.float32)
    with torch.no_grad():
        expected = model.module(observation=torch.from_numpy(observations))["action"].numpy()
    assert np.abs(opened.run({"observation": observations})["action"] - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["expert", "reach"], "expected a URI such as 'table-world:"),
        (["expert", "table-world:raech"], "did you mean 'reach'"),
        (["expert", "table-world:reach?episodes=4"], "for rollouts give --episodes"),
        pytest.param(
            ["polyadapt:tiny-bert", "table-world:reach"],
            "a policy for the table world takes observation",
            marks=pytest.mark.skipif(find_spec("transformers") is None, reason="the model that is no policy needs transformers"),
        ),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robotics", "rollout", *arguments]) == 1
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_the_expert_is_shown_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robotics", "rollout", "expert", "table-world:carry", "--episodes", "50"]) == 0
    assert "100.0%" in capsys.readouterr().out
