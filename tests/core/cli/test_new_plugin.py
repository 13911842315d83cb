"""`new-plugin`: what it writes is the example in the repository, keeps the contract and passes its own tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polyadapt.cli import main
from polyadapt.cli.new_plugin import render, write_plugin
from polyadapt.errors import PluginError, UserError
from polyadapt.testing.plugins import check_plugin

EXAMPLE = Path(__file__).parents[3] / "examples" / "plugin-template"


def test_the_example_is_what_the_command_writes() -> None:
    paths = {path.relative_to(EXAMPLE): path for path in EXAMPLE.rglob("*") if path.is_file()}
    written = {name.as_posix(): path for name, path in paths.items() if not any(part.startswith((".", "__pycache__")) for part in name.parts)}
    assert {name: path.read_text() for name, path in written.items()} == render("demo")


def test_a_new_plugin_keeps_the_contract_and_passes_its_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-plugin", "my-lab"]) == 0
    assert "pip install -e polyadapt-my-lab" in capsys.readouterr().out
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "polyadapt-my-lab"), *(path for path in sys.path if path)])}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=tmp_path / "polyadapt-my-lab", capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_nothing_is_overwritten_and_names_of_core_are_refused(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists already"):
        write_plugin("lab", tmp_path / "there")
    for name in ("run", "onnx", "core"):
        with pytest.raises(UserError, match="used by polyadapt itself"):
            write_plugin(name, tmp_path / name)
    for name in ("Lab", "my_lab", "-lab", "lab-", "1lab", ""):
        with pytest.raises(UserError, match="expected lower-case"):
            write_plugin(name, tmp_path / "new")


CARD = """
from polyadapt.hookspecs import hookimpl
from polyadapt.methods.card import MethodCard
from polyadapt.options import Options
{top}
@hookimpl
def polyadapt_register_methods(register):
    {inside}
    register(MethodCard(id="x-method", title="t", kind="edits", domains=("any",), options=Options, implementation="{implementation}"))
"""
RANGE = "HOOK_API_RANGE = (1, 1)"


BROKEN = [
    (f"import numpy\n{RANGE}", "", "json:dumps", r"imports numpy at .*xplug0_entry\.py:5"),
    (RANGE, "import diffusers", "json:dumps", r"diffusers at .*xplug1_entry\.py:8"),
    ("", "", "json:dumps", "does not state HOOK_API_RANGE"),
    (RANGE, "1 / 0", "json:dumps", "ZeroDivisionError"),
    (RANGE, "", "json:nothing", "json has no 'nothing'"),
    (RANGE, "", "no_such_module_at_all:x", "No module named 'no_such_module_at_all'"),
    ("raise SystemExit(4)", "", "json:dumps", "SystemExit: 4"),
]


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_the_check_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    top, inside, implementation, message = BROKEN[number]
    (tmp_path / "diffusers.py").write_text("")  # stands for the library, which takes seconds to import
    package = tmp_path / f"xplug{number}"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / f"xplug{number}_entry.py").write_text(CARD.format(top=top, inside=inside or "pass", implementation=implementation))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match=message):
        check_plugin(f"xplug{number}.xplug{number}_entry")


def test_the_check_takes_names_of_installed_plugins() -> None:
    assert "lora" in check_plugin("core").registered["methods"]
    assert check_plugin("onnx").registered == {"models": [], "families": [], "methods": [], "readers": []}
    with pytest.raises(PluginError, match="no installed plugin is called 'corr'; did you mean 'core'"):
        check_plugin("corr")
