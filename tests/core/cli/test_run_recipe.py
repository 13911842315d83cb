"""A whole recipe: what a run writes, that it can be resumed after a kill with the same result, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyadapt.cli import main
from polyadapt.errors import UserError
from polyadapt.hookspecs import hookimpl
from polyadapt.host import Host
from polyadapt.job.directory import EventLog
from polyadapt.job.run import prepare, run_recipe
from polyadapt.recipe import Recipe, parse_recipe

RECIPE = """
format = 1
seed = 4
[model]
reference = "polyadapt:tiny-mlp-policy"
[data]
uri = "npz:{data}"
split = {{ by = "random", fractions = {{ train = 0.6, validation = 0.2, test = 0.2 }} }}
[[arm]]
name = "lora"
method = "lora"
sites = ["ffn.*"]
[[arm]]
name = "scales"
method = "ia3"
sites = ["ffn.up"]
[train]
epochs = 12
learning_rate = 0.01
batch_size = 4
[evaluate]
baselines = ["mean"]
[export]
form = "slots"
"""


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with seeded data: four numbers that depend on 39 others."""
    folder = tmp_path_factory.mktemp("recipe")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 39)).astype(np.float32)
    y = np.tanh(x @ generator.normal(size=(39, 4)) / 4).astype(np.float32)
    np.savez(folder / "rows.npz", x=x, y=y)
    (folder / "policy.toml").write_text(RECIPE.format(data=folder / "rows.npz"))
    return folder / "policy.toml"


@pytest.fixture(scope="module")
def finished(recipe_path: Path) -> Path:
    """The directory of an unbroken run."""
    out = recipe_path.parent / "run"
    assert main(["run", str(recipe_path), "--out", str(out), "--json"]) == 0
    return out


def weights(run: Path, arm: str) -> bytes:
    return (run / "artifacts" / arm / "artifact.safetensors").read_bytes()


def report(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "report.json").read_text())
    return found


def test_a_run_leaves_artifacts_bundle_and_report(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(path.name for path in finished.iterdir()) == ["artifacts", "bundle", "recipe.json", "report.html", "report.json", "work"]
    assert sorted(path.name for path in (finished / "artifacts").iterdir()) == ["lora", "scales"]
    found = report(finished)
    assert [(arm["name"], arm["role"]) for arm in found["arms"]] == [("mean", "baseline"), ("lora", "arm"), ("scales", "arm")]
    assert [(row["first"], row["second"]) for row in found["comparisons"]] == [("lora", "mean"), ("scales", "mean"), ("scales", "lora")]
    assert found["bundle"]["parity"]["ok"] and found["bundle"]["latency_ms"] > 0
    lora = found["arms"][1]
    assert len(lora["curves"]["validation loss"]) == 12 and lora["trainable_parameters"] > 0 and lora["evaluation"]["n"] == 12
    assert main(["verify", str(finished / "bundle"), "--json"]) == 0
    proof = json.loads(capsys.readouterr().out)
    assert proof["ok"] and proof["files"] > 4
    assert all(list(case) == ["case", "artifact", "output", "error", "tolerance", "ok"] for case in proof["selftest"])


def test_a_recipe_may_ask_for_a_bank_of_its_arms(recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = recipe_path.read_text().replace('form = "slots"', 'form = "bank"').replace("epochs = 12", "epochs = 2")
    (tmp_path / "bank.toml").write_text(text)
    assert main(["run", str(tmp_path / "bank.toml"), "--out", str(tmp_path / "run"), "--json"]) == 0
    found = report(tmp_path / "run")
    assert found["bundle"]["form"] == "bank" and found["bundle"]["parity"]["ok"] and found["bundle"]["latency_ms"] > 0
    manifest = json.loads((tmp_path / "run" / "bundle" / "manifest.json").read_text())
    assert {name: entry["artifact_id"] for name, entry in manifest["artifacts"].items()} == {"lora": 1, "scales": 2}


def test_a_run_with_variants_measures_each_by_its_bundle(recipe_path: Path, tmp_path: Path) -> None:
    """The metric of float32 is the one of the arm, though the runtime measured it; the variant's stands beside it."""
    text = recipe_path.read_text().replace("epochs = 12", "epochs = 2").replace('form = "slots"', 'form = "slots"\noptions = { variants = ["float16"] }')
    (tmp_path / "variants.toml").write_text(text)
    assert main(["run", str(tmp_path / "variants.toml"), "--out", str(tmp_path / "run"), "--json"]) == 0
    found = report(tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "bundle" / "manifest.json").read_text())
    plain, half = found["bundle"]["metrics"], found["bundle"]["variants"]["float16"]["metrics"]
    assert plain == manifest["parity"]["metrics"] and half == manifest["variants"]["float16"]["metrics"]
    for arm in found["arms"][1:]:
        name, value = arm["name"], arm["evaluation"]["value"]
        assert plain[name] == {"metric": "mse", "value": pytest.approx(value, rel=1e-5), "n": 12}
        assert half[name]["n"] == 12 and 0 < abs(half[name]["value"] - value) < 0.01 * value


def test_checkpoints_of_finished_arms_are_removed(finished: Path) -> None:
    assert sorted(path.name for path in (finished / "work" / "lora").iterdir()) == ["events.jsonl", "result.json"]


def test_the_same_run_is_not_done_twice_and_resume_keeps_what_is_there(finished: Path, recipe_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "artifacts").rglob("*")}
    first = report(finished)
    assert main(["run", str(recipe_path), "--out", str(finished)]) == 1
    assert "--resume" in capsys.readouterr().err
    assert main(["run", str(recipe_path), "--out", str(finished), "--resume"]) == 0
    assert "lora: finished before, kept" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (finished / "artifacts").rglob("*")} == before
    second = report(finished)
    assert second["arms"] == first["arms"] and second["comparisons"] == first["comparisons"]


def stop(recipe_path: Path, out: Path, checkpoints: int, number: signal.Signals, *flags: str) -> subprocess.CompletedProcess[str]:
    """Start a comparison in a process of its own and send it a signal once the first arm wrote so many checkpoints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "polyadapt.cli", "compare", str(recipe_path), "--out", str(out), *flags]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline_s = time.monotonic() + 120
    while len(events(out, "checkpoint")) < checkpoints:
        assert process.poll() is None and time.monotonic() < deadline_s
        time.sleep(0.005)
    process.send_signal(number)
    _, printed = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, "", printed)


def events(out: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in EventLog(out / "work" / "lora" / "events.jsonl", resume=True).read() if event["kind"] == kind]


@pytest.mark.slow
def test_after_ctrl_c_and_a_kill_the_result_is_that_of_an_unbroken_run(finished: Path, recipe_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    first = stop(recipe_path, out, 2, signal.SIGINT)
    assert first.returncode == 130
    last = first.stderr.splitlines()[-1]
    assert last.startswith("stopped by Ctrl-C") and "Traceback" not in first.stderr
    second = stop(recipe_path, out, len(events(out, "checkpoint")) + 3, signal.SIGKILL, "--resume")
    assert second.returncode == -signal.SIGKILL
    assert not (out / "artifacts" / "lora").exists()
    assert main(["compare", str(recipe_path), "--out", str(out), "--resume", "--json"]) == 0
    begun = [event["step"] for event in events(out, "started")]
    assert len(begun) == 3 and 0 == begun[0] < begun[1] < begun[2]
    assert weights(out, "lora") == weights(finished, "lora")
    assert weights(out, "scales") == weights(finished, "scales")
    lora, unbroken = report(out)["arms"][1], report(finished)["arms"][1]
    assert lora["evaluation"] == unbroken["evaluation"] and lora["curves"]["validation loss"] == unbroken["curves"]["validation loss"]
    assert not (out / "bundle").exists()


def test_a_directory_of_another_recipe_or_with_other_things_is_left_alone(finished: Path, recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.toml"
    other.write_text(recipe_path.read_text().replace("seed = 4", "seed = 5"))
    assert main(["run", str(other), "--out", str(finished), "--resume"]) == 1
    assert "run of another recipe" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    assert main(["run", str(recipe_path), "--out", str(tmp_path / "full")]) == 1
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_a_run_over_other_data_is_not_resumed(recipe_path: Path, tmp_path: Path) -> None:
    """The same ids with other numbers behind them: finished arms are results of data that are gone."""
    data, out = tmp_path / "rows.npz", tmp_path / "run"
    with np.load(recipe_path.parent / "rows.npz") as rows:
        x, y = rows["x"], rows["y"]
    np.savez(data, x=x, y=y)
    quick = parse_recipe(tomllib.loads(RECIPE.format(data=data).replace("epochs = 12", "max_steps = 2")))
    run_recipe(quick, out, Host(), has_export=False)
    before = report(out)
    np.savez(data, x=-x, y=y)
    with pytest.raises(UserError, match=r"holds a run over other data: npz:.*rows\.npz had hash \w{12} and now has \w{12}; bring the data back"):
        run_recipe(quick, out, Host(), has_export=False, resume=True)
    np.savez(data, x=x, y=y)
    stored = json.loads((out / "recipe.json").read_text())
    assert stored.pop("data") == before["data"]["hash"]
    (out / "recipe.json").write_text(json.dumps(stored))  # as an earlier version left it
    run_recipe(quick, out, Host(), has_export=False, resume=True)
    assert report(out)["arms"] == before["arms"]


def test_private_examples_stay_out_of_the_report_and_baselines_may_have_other_weights(recipe_path: Path, tmp_path: Path) -> None:
    quick = tmp_path / "quick.toml"
    other = '[[arm]]\nname = "other-weights"\nmethod = "lora"\nsites = ["ffn.*"]\nrole = "baseline"\nmodel = { seed = 1 }\n[train]'
    quick.write_text(recipe_path.read_text().replace("epochs = 12", "max_steps = 2").replace("[train]", other))
    assert main(["compare", str(quick), "--out", str(tmp_path / "run"), "--no-examples", "--json"]) == 0
    found = report(tmp_path / "run")
    assert [(arm["name"], arm["role"]) for arm in found["arms"]][-1] == ("other-weights", "baseline")
    lora, elsewhere = (next(arm for arm in found["arms"] if arm["name"] == name) for name in ("lora", "other-weights"))
    assert lora["evaluation"]["value"] != elsewhere["evaluation"]["value"]
    assert found["examples"] == [] and all("predictions" not in arm["evaluation"] for arm in found["arms"])


def test_a_dry_run_writes_nothing_and_tells_time_memory_and_disk(recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe_path), "--out", str(tmp_path / "run"), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "run").exists()
    assert [arm["name"] for arm in found["arms"]] == ["mean", "lora", "scales"]
    assert all(arm["trainable"] > 0 and arm["steps"] == 108 and arm["seconds"] > 0 for arm in found["arms"][1:])
    assert found["disk_bytes"] > 0 and found["memory_bytes"] > 0 and found["examples"] == {"train": 36, "validation": 12, "test": 12}


def given(recipe_path: Path, old: str, new: str) -> Recipe:
    return parse_recipe(tomllib.loads(recipe_path.read_text().replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('method = "ia3"', 'method = "iaa"', "unknown method 'iaa'"),
        ('sites = ["ffn.up"]', 'options = { sits = ["q"] }', "arm 'scales', method 'ia3' has no option 'sits'; did you mean 'sites'"),
        ("epochs = 12", "epoch = 12", "recipe \\[train\\] has no option 'epoch'; did you mean 'epochs'"),
        ('baselines = ["mean"]', 'baselines = ["meen"]', "unknown baseline 'meen'; did you mean 'mean'"),
        ('by = "random"', 'buy = "random"', "split has no option 'buy'; did you mean 'by'"),
        ('name = "lora"', 'name = "lora"\nmodel = { seeed = 1 }', "arm 'lora', model 'polyadapt:tiny-mlp-policy' has no option 'seeed'; did you mean 'seed'"),
        ('name = "lora"', 'name = "lora"\nmodel = { seed = 1 }', "arm 'lora' asks for another model"),
        ('baselines = ["mean"]', 'baselines = []\nmetrics = ["mse", "acuracy"]', "unknown metric 'acuracy'; did you mean 'accuracy'"),
        ('form = "slots"', 'target = "onx"', "unknown export target 'onx'; did you mean 'onnx'"),
        ('method = "ia3"\nsites = ["ffn.up"]', 'method = "full"', "form 'slots', and method 'full' of arm 'scales' exports as merged only; set form = 'merged'"),
        ('name = "lora"', 'name = "base"', "a bundle calls a case of its own proof 'base', so no arm of it can be called that"),
        ('form = "slots"', 'form = "merged"', r"form 'merged' bakes in exactly one arm, found 2 \(lora, scales\)"),
        ("npz:", "npzz:", "unknown data scheme 'npzz'; did you mean 'npz'"),
        ("tiny-mlp-policy", "tiny-mlp-polisy", "unknown model 'polyadapt:tiny-mlp-polisy'; did you mean 'polyadapt:tiny-mlp-policy'"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained_or_written(recipe_path: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run_recipe(given(recipe_path, old, new), tmp_path / "run", Host())
    assert not (tmp_path / "run").exists()


def test_a_failed_export_loses_nothing_and_another_is_made_of_the_same_run(recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is exported decides nothing of what was trained: it may be corrected, and the run goes on."""
    out, quick = tmp_path / "run", recipe_path.read_text().replace("epochs = 12", "epochs = 1")

    def run(export: str) -> int:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.toml"
        path.write_text(quick.replace('form = "slots"', export))
        return main(["run", str(path), "--out", str(out), "--resume"])

    assert run('form = "slots"\noptions = { varaints = ["float16"] }') == 1
    assert "varaints" in capsys.readouterr().err
    trained = weights(out, "lora")
    assert report(out)["bundle"] is None and len(report(out)["arms"]) == 3
    for form in ("slots", "bank"):
        assert run(f'form = "{form}"') == 0
        assert "lora: finished before, kept" in capsys.readouterr().err
        assert json.loads((out / "bundle" / "manifest.json").read_text())["form"] == report(out)["bundle"]["form"] == form
    assert weights(out, "lora") == trained


def test_a_comparison_needs_two_sides(recipe_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = recipe_path.read_text().replace('[[arm]]\nname = "scales"\nmethod = "ia3"\nsites = ["ffn.up"]\n', "").replace('baselines = ["mean"]', "baselines = []")
    (tmp_path / "alone.toml").write_text(alone)
    assert main(["compare", str(tmp_path / "alone.toml"), "--out", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err == "error: compare needs at least two arms, or an arm and a baseline\n"
    assert not (tmp_path / "run").exists()


def test_what_is_not_exported_is_not_checked_for_it(recipe_path: Path) -> None:
    recipe = given(recipe_path, 'method = "ia3"\nsites = ["ffn.up"]', 'method = "full"')
    assert [arm.method for arm in prepare(recipe, Host(), has_export=False).arms] == ["mean", "lora", "full"]
    with pytest.raises(UserError, match="exports as merged only"):
        prepare(recipe, Host())


def test_a_base_without_the_classes_is_no_baseline(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the host alone brings no library of texts")
    table = {"format": 1, "model": {"reference": "polyadapt:tiny-vit"}, "data": {"uri": "sklearn:digits"}, "arm": [{"name": "a", "method": "lora"}]}
    host = Host()
    with pytest.raises(UserError, match="baseline 'frozen': polyadapt:tiny-vit has no class '0'"):
        prepare(parse_recipe({**table, "evaluate": {"baselines": ["frozen"]}}), host)
    assert [arm.method for arm in prepare(parse_recipe(table), host).arms] == ["majority", "linear-probe", "lora"]


class Listener:
    """A plugin that hears everything."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []

    @hookimpl
    def polyadapt_event(self, event: Any) -> None:
        self.heard.append((event["kind"], event.get("state", "")))


def test_plugins_hear_of_arms_and_of_each_training_event_once(recipe_path: Path, tmp_path: Path) -> None:
    listener = Listener()
    host = Host(plugins=[("listener", listener)])
    run_recipe(given(recipe_path, "epochs = 12", "max_steps = 3"), tmp_path / "run", host, has_export=False)
    kinds = [kind for kind, _ in listener.heard]
    assert listener.heard[:2] == [("arm", "started"), ("arm", "finished")]
    assert kinds.count("arm") == 6 and kinds.count("started") == 2 and kinds.count("finished") == 2
