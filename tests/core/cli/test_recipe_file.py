"""Recipes are read strictly: unknown keys are refused with the nearest, at every level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polyadapt.errors import UserError
from polyadapt.recipe import parse_recipe, read_recipe

WHOLE = """
format = 1
seed = 3
[model]
reference = "polyadapt:tiny-vit"
task = "classification"
options = { seed = 1 }
[data]
uri = "csv:rows.csv"
columns = { path = "file" }
split = { by = "label", seed = 2, fractions = { train = 0.5, test = 0.5 } }
[[arm]]
name = "lora"
method = "lora"
options = { rank = 4 }
sites = ["attn.q"]
[[arm]]
name = "ia3"
method = "ia3"
[train]
epochs = 2
[evaluate]
metrics = ["accuracy"]
baselines = ["linear-probe"]
[export]
form = "merged"
directory = "out/bundle"
"""


def table(**changes: Any) -> dict[str, Any]:
    whole: dict[str, Any] = {"format": 1, "model": {"reference": "a:b"}, "data": {"uri": "csv:x"}, "arm": [{"name": "one", "method": "lora"}]}
    return {key: value for key, value in {**whole, **changes}.items() if value is not None}


def test_a_whole_recipe_is_read(tmp_path: Path) -> None:
    (tmp_path / "birds.toml").write_text(WHOLE)
    recipe = read_recipe(tmp_path / "birds.toml")
    assert (recipe.name, recipe.seed, recipe.model.options, recipe.data.columns) == ("birds", 3, {"seed": 1}, {"path": "file"})
    assert [arm.method_options() for arm in recipe.arm] == [{"rank": 4, "sites": ["attn.q"]}, {}]
    assert recipe.export is not None and (recipe.export.form, recipe.export.directory, recipe.export.target) == ("merged", "out/bundle", "onnx")
    assert recipe.evaluate.baselines == ("linear-probe",)


@pytest.mark.parametrize("line", ["", 'name = ""\n'])
def test_an_empty_name_is_the_file_s(tmp_path: Path, line: str) -> None:
    (tmp_path / "birds.toml").write_text(line + WHOLE)
    assert read_recipe(tmp_path / "birds.toml").name == "birds"
    (tmp_path / "birds.toml").write_text('name = "Owls"\n' + WHOLE)
    assert read_recipe(tmp_path / "birds.toml").name == "Owls"


def test_defaults_leave_the_export_out_and_baselines_to_the_task() -> None:
    recipe = parse_recipe(table())
    assert recipe.export is None and recipe.evaluate.baselines is None and recipe.seed == 0


def test_the_digest_tells_recipes_apart() -> None:
    assert parse_recipe(table()).digest == parse_recipe(table()).digest
    assert parse_recipe(table()).digest != parse_recipe(table(seed=1)).digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fromat": 1}, "recipe has no key 'fromat'; did you mean 'format'"),
        ({"format": None}, "expected format = 1, found none"),
        ({"format": 2}, "expected format = 1, found format = 2"),
        ({"model": None}, r"recipe has no \[model\]"),
        ({"arm": []}, r"recipe has no \[arm\]"),
        ({"arm": {"name": "x", "method": "y"}}, r"must be written \[\[arm\]\]"),
        ({"model": {"refrence": "a:b"}}, r"recipe \[model\] has no option 'refrence'; did you mean 'reference'"),
        ({"data": {"uri": "x", "colums": {}}}, r"recipe \[data\] has no option 'colums'; did you mean 'columns'"),
        ({"arm": [{"name": "x", "method": "y", "option": {}}]}, r"recipe \[\[arm\]\] 1 has no option 'option'; did you mean 'options'"),
        ({"arm": [{"name": "x"}]}, "'method': Field required"),
        ({"arm": [{"name": "x/y", "method": "z"}]}, "arm name 'x/y'"),
        ({"arm": [{"name": "x", "method": "a"}, {"name": "x", "method": "b"}]}, "two arms are called 'x'"),
        ({"arm": [{"name": "x", "method": "a", "sites": ["q"], "options": {"sites": ["v"]}}]}, "gives sites twice"),
        ({"evaluate": {"metric": ["accuracy"]}}, "did you mean 'metrics'"),
        ({"export": {"form": "slot"}}, "unknown form 'slot'; did you mean 'slots'"),
        ({"export": {"options": {"layout": "triton"}}}, "a run proves and measures a bundle; leave layout out"),
        ({"export": {"directory": "../elsewhere"}}, "a path inside the run's directory"),
        ({"export": {"directory": "/tmp"}}, "a path inside the run's directory"),
        ({"seed": "many"}, "option 'seed'.*got 'many'"),
        ({"seed": -1}, "option 'seed'"),
    ],
)
def test_what_does_not_fit_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_recipe(table(**changes))


def test_a_broken_file_is_the_user_s_error_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("format = 1\nseed = = 2\n")
    with pytest.raises(UserError, match=r"is not TOML: .*line 2"):
        read_recipe(tmp_path / "bad.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not a text file"):
        read_recipe(tmp_path / "bytes.toml")
