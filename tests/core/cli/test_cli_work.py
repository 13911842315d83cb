"""`sites`, `plan`, `adapt`, `evaluate`, `infer`, `export` and `verify`, one after another on a tiny policy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyadapt.cli import main
from polyadapt.cli.context import parse_pairs
from polyadapt.cli.work import nested
from polyadapt.errors import UserError

MODEL = "polyadapt:tiny-mlp-policy"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, an adapted artifact and an exported bundle."""
    folder = tmp_path_factory.mktemp("work")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(40, 39)).astype(np.float32)
    np.savez(folder / "rows.npz", x=x, y=np.tanh(x[:, :4]))
    np.save(folder / "one.npy", x[0])
    arguments = [MODEL, "lora", f"npz:{folder / 'rows.npz'}", "-o", 'sites=["ffn.*"]', "-t", "epochs=6", "-t", "learning_rate=0.01"]
    assert main(["adapt", *arguments, "--out", str(folder / "lora"), "--json"]) == 0
    assert main(["export", MODEL, "--artifact", f"first={folder / 'lora'}", "--out", str(folder / "policy.bundle"), "--json"]) == 0
    return folder


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_sites_are_listed_by_port_and_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    found = answered(capsys, "sites", MODEL, "--port", "op", "--match", "ffn.up")
    assert [row["site"] for row in found["sites"]] == ["block.0.ffn.up", "block.1.ffn.up"]
    assert all(row["kind"] == "linear" and row["in"] > 0 for row in found["sites"]) and len(found["base_id"]) == 64
    assert main(["sites", MODEL]) == 0
    assert "block.0.ffn.up" in capsys.readouterr().out
    assert main(["sites", MODEL, "--port", "opp"]) == 1


def test_a_plan_counts_what_would_train(capsys: pytest.CaptureFixture[str]) -> None:
    found = answered(capsys, "plan", MODEL, "lora", "-o", 'sites=["ffn.up"]', "-o", "rank=3")
    shapes = [row["shapes"] for row in found["rows"]]
    assert found["trainable"] == sum(rank * (a + b) for (a, rank), (_, b) in ((shape["a"], shape["b"]) for shape in shapes))
    assert all(shape["a"][1] == 3 for shape in shapes) and found["identity_at_start"] == "yes"


def test_adaptation_helps_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = f"npz:{folder / 'rows.npz'}"
    base = answered(capsys, "evaluate", MODEL, data)
    adapted = answered(capsys, "evaluate", MODEL, data, "--artifact", str(folder / "lora"))
    assert (base["metric"], base["n"]) == ("mse", 40)
    assert adapted["value"] < base["value"] and adapted["interval"]["low"] < adapted["value"] < adapted["interval"]["high"]
    part = answered(capsys, "evaluate", MODEL, data, "--part", "test", "-s", "fractions.train=0.5", "-s", "fractions.test=0.5")
    assert part["n"] == 20


def test_model_and_bundle_give_the_same_answer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model,) = answered(capsys, "infer", MODEL, str(folder / "one.npy"), "--artifact", str(folder / "lora"))
    (base,) = answered(capsys, "infer", MODEL, str(folder / "one.npy"))
    (bundle,) = answered(capsys, "infer", str(folder / "policy.bundle"), str(folder / "one.npy"), "--artifact", "first")
    np.testing.assert_allclose(bundle["answer"]["action"], model["answer"]["action"], rtol=0, atol=1e-5)
    assert np.abs(np.subtract(base["answer"]["action"], model["answer"]["action"])).max() > 1e-3


def test_nothing_is_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["adapt", MODEL, "lora", f"npz:{folder / 'rows.npz'}", "--out", str(folder / "lora")]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["export", MODEL, "--artifact", str(folder / "lora"), "--out", str(folder / "policy.bundle")]) == 1
    assert not list(folder.glob(".*checkpoints"))


def test_a_dry_run_of_adapt_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answered(
        capsys, "adapt", MODEL, "lora", f"npz:{folder / 'rows.npz'}", "--out", str(folder / "new"), "-o", 'sites=["ffn.*"]', "-t", "epochs=3", "-t", "batch_size=7", "--dry-run"
    )
    assert found["steps"] == 3 * 4 and found["trainable"] > 0 and not (folder / "new").exists()


def test_an_unfinished_adaptation_is_not_thrown_away(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / ".later.checkpoints").mkdir()
    assert main(["adapt", MODEL, "lora", f"npz:{folder / 'rows.npz'}", "--out", str(folder / "later")]) == 1
    assert "--resume goes on with it" in capsys.readouterr().err


def test_verify_finds_an_altered_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    altered = tmp_path / "altered.bundle"
    shutil.copytree(folder / "policy.bundle", altered)
    weights = altered / "artifacts" / "first" / "slots.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert main(["verify", str(folder / "policy.bundle")]) == 0
    assert "agrees with torch" in capsys.readouterr().out
    assert main(["verify", str(altered), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"] and "slots.safetensors" in report["error"]


def test_a_bank_is_exported_and_verified(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its answer for a named artifact is that of the bundle with slots; an altered graph is found."""
    out = tmp_path / "bank.bundle"
    found = answered(capsys, "export", MODEL, "--artifact", f"first={folder / 'lora'}", "--form", "bank", "--out", str(out))
    assert found["form"] == "bank" and found["artifacts"] == ["first"]
    proof = answered(capsys, "verify", str(out))
    assert proof["ok"] and {row["artifact"] for row in proof["selftest"]} == {None}
    answers = [answered(capsys, "infer", str(bundle), str(folder / "one.npy"), "--artifact", "first")[0]["answer"]["action"] for bundle in (out, folder / "policy.bundle")]
    np.testing.assert_allclose(answers[0], answers[1], rtol=0, atol=1e-5)
    graph = out / "onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    assert main(["verify", str(out), "--json"]) == 1


def test_variants_are_exported_and_verified_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "small.bundle"
    assert main(["export", MODEL, "--artifact", f"first={folder / 'lora'}", "-o", "variants=float16,int8", "-o", "adapters=true", "--out", str(out)]) == 0
    assert (out / "artifacts" / "first" / "first.onnx_adapter").is_file()
    for variant, measured in (("float32", 1e-5), ("float16", 5e-3), ("int8", 5e-2)):
        report = answered(capsys, "verify", str(out), "--variant", variant)
        assert report["ok"] and report["variant"] == variant and max(row["tolerance"] for row in report["selftest"]) <= measured
    assert main(["verify", str(out), "--variant", "int4", "--json"]) == 1
    assert "no variant 'int4'" in json.loads(capsys.readouterr().out)["error"]


def test_a_model_repository_in_place_of_a_bundle(folder: Path) -> None:
    assert main(["export", MODEL, "--artifact", f"first={folder / 'lora'}", "--layout", "triton", "-o", "name=policy", "--out", str(folder / "served")]) == 0
    found = sorted(path.relative_to(folder / "served").as_posix() for path in (folder / "served").rglob("*") if path.is_file())
    assert {"policy/config.pbtxt", "policy/1/model.onnx", "policy/artifacts/first/slots.safetensors"} <= set(found) and not [path for path in found if "manifest" in path]


def test_an_artifact_of_another_base_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", MODEL, "-m", "seed=1", "--artifact", str(folder / "lora"), "--out", str(folder / "other.bundle")]) == 1
    assert "was made for base" in capsys.readouterr().err
    assert not (folder / "other.bundle").exists()


def test_values_are_read_as_toml_and_else_as_text() -> None:
    found = parse_pairs(["a=1", 'b=["x", "y"]', "c=plain text", "d=0.5", "e=true", "f=attn.q", "g="], "-o")
    assert found == {"a": 1, "b": ["x", "y"], "c": "plain text", "d": 0.5, "e": True, "f": "attn.q", "g": ""}
    with pytest.raises(UserError, match="gives 'a' twice"):
        parse_pairs(["a=1", "a=2"], "-o")


def test_parts_of_a_table_are_put_together_and_do_not_replace_a_value() -> None:
    assert nested({"by": "label", "fractions.train": 0.5, "fractions.test": 0.5}) == {"by": "label", "fractions": {"train": 0.5, "test": 0.5}}
    assert nested({"fractions.test": 0.5, "fractions": {"train": 0.5}}) == {"fractions": {"train": 0.5, "test": 0.5}}
    for pairs in ({"fractions": 3, "fractions.train": 0.2}, {"fractions.train": 0.2, "fractions": 3}):
        with pytest.raises(UserError, match=r"--split gives fractions = 3 and fractions\.train = 0\.2; fractions is a value or a table, keep one"):
            nested(pairs)


@pytest.mark.parametrize("ways", [["-s", "seed=3"], ["-s", "fractions.train=0.5", "-s", "fractions.test=0.5"]])
def test_an_artifact_is_tested_on_what_it_has_not_seen(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ways: list[str]) -> None:
    """It remembers how its data were split, so nobody has to say so again, and another split of the same data is refused."""
    data, quick = f"npz:{folder / 'rows.npz'}", ["-t", "max_steps=1", "--json"]
    assert main(["adapt", MODEL, "lora", data, "--out", str(tmp_path / "lora"), *ways, *quick]) == 0
    tested = ["evaluate", MODEL, data, "--artifact", str(tmp_path / "lora"), "--part", "test"]
    own, told = answered(capsys, *tested), answered(capsys, *tested, *ways)
    assert own == told and own["n"] == (20 if len(ways) > 2 else 6)
    assert main([*tested, "-s", "seed=4"]) == 1
    assert "trained on these data by another split (by auto, seed " in capsys.readouterr().err
    np.savez(tmp_path / "others.npz", x=np.ones((20, 39), np.float32), y=np.zeros((20, 4), np.float32))
    elsewhere = ["evaluate", MODEL, f"npz:{tmp_path / 'others.npz'}", "--artifact", str(tmp_path / "lora"), "--part", "test"]
    assert answered(capsys, *elsewhere, "-s", "seed=4")["n"] == 3
    assert main(["evaluate", MODEL, data, "--artifact", str(tmp_path / "lora")]) == 0
    assert "was trained on a part of these data" in capsys.readouterr().err
    assert main(["adapt", MODEL, "lora", data, "--out", str(tmp_path / "all"), "-s", "fractions.train=1", *quick]) == 0
    assert main(["evaluate", MODEL, data, "--artifact", str(tmp_path / "all"), "--part", "test"]) == 1
    assert "unknown part 'test'" in capsys.readouterr().err
